"""Which waiting scenario goes to which runner. Not when a scenario may wait no longer, nor what its runner makes of it."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush, heapreplace

import msgspec

from vidflow.domain.scenario import DEFAULT_POOL


class QueuedScenario(msgspec.Struct, frozen=True):
    """A scenario that is due: the higher `priority` first, then the older. `avoid` is the runner that it came back from."""

    scenario_uuid: str
    priority: int
    since_s: float
    avoid: str | None = None


class RunnerSlots(msgspec.Struct, frozen=True):
    """A runner of a pool that may be given work, and how many slots it has free."""

    runner: str
    free: int
    pool: str = DEFAULT_POOL


def place_scenarios(
    waiting: Iterable[QueuedScenario], slots: Iterable[RunnerSlots], limit: int
) -> list[tuple[str, str]]:
    """Return at most `limit` pairs (scenario_uuid, runner), none beyond a runner's free slots.

    A scenario goes to the runner with the most free slots, to the one that it came back from only where no other has any.
    All scenarios and slots are of one pool.
    """
    free = [(-slot.free, slot.runner) for slot in slots if slot.free > 0]
    heapify(free)
    pairs: list[tuple[str, str]] = []
    for scenario in sorted(waiting, key=lambda one: (-one.priority, one.since_s, one.scenario_uuid)):
        if not free or len(pairs) >= limit:
            break
        count, runner = _pop(free, scenario.avoid)
        pairs.append((scenario.scenario_uuid, runner))
        if count < -1:
            heappush(free, (count + 1, runner))
    return pairs


def _pop(free: list[tuple[int, str]], avoid: str | None) -> tuple[int, str]:
    """Remove and return the runner with the most free slots; `avoid` only where there is no other."""
    first = heappop(free)
    if first[1] != avoid or not free:
        return first
    return heapreplace(free, first)
