"""Decides which waiting requests of a shared model run next, and together.

Each client has at most one request, so what waits is bounded by the clients. A batch closes when it is full, when no client could
add to it, or when its first request has waited for BATCH_WAIT_S. The order is that of start-time fair queueing (Goyal, Vin and
Cheng, SIGCOMM 1996) with a frame as the unit: clients that wait all the time get equally many frames, and one that was idle
gains nothing by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

BATCH_WAIT_S: Final = 0.005
"""How long a request waits for others to share its batch."""
ALONE_AFTER_CRASHES: Final = 2
"""A request that was inside that many crashes in a row runs alone, so that the next crash shows whose fault it is."""


class WaitingRequest(msgspec.Struct, frozen=True):
    """A client's request for `frames` pictures, which waits since `since_s`.

    `start`: its place in the fair order, in frames. `crashes`: how many crashes in a row it was inside.
    """

    client: int
    frames: int
    start: int
    since_s: float
    crashes: int = 0

    @property
    def runs_alone(self) -> bool:
        """Whether it shares no batch."""
        return self.crashes >= ALONE_AFTER_CRASHES


class FairShare(msgspec.Struct, frozen=True):
    """What clients have had: `served` is where each one's next request starts, `now` where the last batch started, in frames."""

    now: int = 0
    served: Mapping[int, int] = {}

    def admit(self, client: int, frames: int) -> tuple[FairShare, int]:
        """Return the shares after a request of so many frames, and its start."""
        start = max(self.now, self.served.get(client, 0))
        return msgspec.structs.replace(self, served={**self.served, client: start + frames}), start

    def advance(self, batch: Sequence[WaitingRequest]) -> FairShare:
        """Return the shares after a batch was started."""
        return msgspec.structs.replace(self, now=max([self.now, *(request.start for request in batch)]))

    def forget(self, client: int) -> FairShare:
        """Return the shares without a client that is gone."""
        kept = {other: served for other, served in self.served.items() if other != client}
        return msgspec.structs.replace(self, served=kept)


class NextBatch(msgspec.Struct, frozen=True):
    """The requests that run now, in order. Without any: wait until `wait_until_s`, or for another request if it is None."""

    requests: tuple[WaitingRequest, ...] = ()
    wait_until_s: float | None = None


def choose_batch(
    waiting: Sequence[WaitingRequest],
    clients: int,
    max_frames: int,
    now_s: float,
    running: Sequence[WaitingRequest] = (),
) -> NextBatch:
    """Return what to do next, on a processor that has nothing to do.

    `clients`: how many are active, those of `waiting` and `running` included. `max_frames`: the largest batch. A request that is larger
    runs alone. `running`: requests that other processors run now.
    """
    if not waiting or any(request.runs_alone for request in running):
        return NextBatch()
    first, *others = sorted(waiting, key=lambda request: (request.start, request.since_s))
    if first.runs_alone:
        return NextBatch(() if running else (first,))
    chosen, frames = [first], first.frames
    for request in others:
        if not request.runs_alone and frames + request.frames <= max_frames:
            chosen.append(request)
            frames += request.frames
    is_closed = frames >= max_frames or len(waiting) + len(running) >= clients or len(chosen) < len(waiting)
    due_s = min(request.since_s for request in chosen) + BATCH_WAIT_S
    return NextBatch(tuple(chosen)) if is_closed or now_s >= due_s else NextBatch(wait_until_s=due_s)
