"""Placement of queued scenarios on runners with free slots."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush, heapreplace

import msgspec

from vidflow.domain.scenario import DEFAULT_POOL


class QueuedScenario(msgspec.Struct, frozen=True):
    """A scenario that is due. Higher priorities go first, then older scenarios. `avoid` is the runner that it was requeued from.

    `expected`: it is not due yet, but probably will be in a moment. A slot is kept free for it.
    """

    scenario_uuid: str
    priority: int
    since_s: float
    avoid: str | None = None
    expected: bool = False


class RunnerSlots(msgspec.Struct, frozen=True):
    """A runner that may get work, and its number of free slots."""

    runner: str
    free: int
    pool: str = DEFAULT_POOL


def place_scenarios(
    waiting: Iterable[QueuedScenario], slots: Iterable[RunnerSlots], limit: int
) -> list[tuple[str, str]]:
    """Return at most `limit` pairs (scenario_uuid, runner) that fit into the free slots.

    A scenario goes to the runner with the most free slots, but to the one in `avoid` only if no other has any. All scenarios
    and slots must be of one pool.
    """
    free = [(-slot.free, slot.runner) for slot in slots if slot.free > 0]
    heapify(free)
    pairs: list[tuple[str, str]] = []
    for scenario in sorted(waiting, key=lambda queued: (-queued.priority, queued.since_s, queued.scenario_uuid)):
        if not free or len(pairs) >= limit:
            break
        count, runner = _pop(free, scenario.avoid)
        if not scenario.expected:
            pairs.append((scenario.scenario_uuid, runner))
        if count < -1:
            heappush(free, (count + 1, runner))
    return pairs


def _pop(free: list[tuple[int, str]], avoid: str | None) -> tuple[int, str]:
    """Remove and return the runner with the most free slots, `avoid` only if there is no other."""
    first = heappop(free)
    if first[1] != avoid or not free:
        return first
    return heapreplace(free, first)
