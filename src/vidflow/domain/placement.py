"""Which waiting scenario goes to which runner. Not when a scenario may wait no longer, nor what its runner makes of it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class Waiting(msgspec.Struct, frozen=True):
    """A scenario that is due: the higher `priority` first, then the older. `avoid` is the runner that it came back from."""

    scenario_uuid: str
    priority: int
    since_s: float
    avoid: str | None = None


class Slots(msgspec.Struct, frozen=True):
    """A runner that may be given work, and how many slots it has free."""

    runner: str
    free: int


def place(waiting: Iterable[Waiting], slots: Iterable[Slots], limit: int) -> list[tuple[str, str]]:
    """At most `limit` pairs (scenario_uuid, runner), none beyond a runner's free slots.

    A scenario goes to the runner with the most free slots, to the one that it came back from only where no other has any.
    """
    free = {slot.runner: slot.free for slot in slots if slot.free > 0}
    pairs: list[tuple[str, str]] = []
    for scenario in sorted(waiting, key=lambda one: (-one.priority, one.since_s, one.scenario_uuid)):
        if not free or len(pairs) >= limit:
            break
        runner = min(free, key=lambda name: (name == scenario.avoid, -free[name], name))
        pairs.append((scenario.scenario_uuid, runner))
        free[runner] -= 1
        if free[runner] == 0:
            del free[runner]
    return pairs
