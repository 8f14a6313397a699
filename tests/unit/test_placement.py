"""Which waiting scenario goes to which runner."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vidflow.domain.placement import Slots, Waiting, place


def waiting(name: str, priority: int = 0, since_s: float = 0.0, avoid: str | None = None) -> Waiting:
    return Waiting(name, priority, since_s, avoid)


def test_the_higher_priority_goes_first() -> None:
    assert place([waiting("low", 0), waiting("high", 5)], [Slots("r1", 1)], 100) == [("high", "r1")]


def test_of_one_priority_the_older_goes_first() -> None:
    assert place([waiting("new", since_s=9.0), waiting("old", since_s=1.0)], [Slots("r1", 1)], 100) == [("old", "r1")]


def test_of_one_age_the_order_is_that_of_the_uuids() -> None:
    assert place([waiting("b"), waiting("a")], [Slots("r1", 1)], 100) == [("a", "r1")]


def test_the_runner_with_the_most_free_slots_gets_it() -> None:
    assert place([waiting("a")], [Slots("r1", 1), Slots("r2", 3)], 100) == [("a", "r2")]


def test_many_are_spread_over_the_runners() -> None:
    placed = place([waiting(name) for name in "abcd"], [Slots("r1", 2), Slots("r2", 2)], 100)
    assert sorted(runner for _, runner in placed) == ["r1", "r1", "r2", "r2"]


def test_the_runner_that_it_came_back_from_is_avoided_though_it_has_more_room() -> None:
    assert place([waiting("a", avoid="r1")], [Slots("r1", 9), Slots("r2", 1)], 100) == [("a", "r2")]


def test_the_runner_that_it_came_back_from_is_better_than_none() -> None:
    assert place([waiting("a", avoid="r1")], [Slots("r1", 1), Slots("r2", 0)], 100) == [("a", "r1")]


def test_full_and_overfull_runners_get_nothing() -> None:
    assert place([waiting("a")], [Slots("r1", 0), Slots("r2", -3)], 100) == []


def test_no_more_are_placed_than_the_limit() -> None:
    assert len(place([waiting(name) for name in "abc"], [Slots("r1", 9)], 2)) == 2


def test_nothing_waits_and_nothing_is_free() -> None:
    assert place([], [Slots("r1", 1)], 100) == []
    assert place([waiting("a")], [], 100) == []


scenarios = st.lists(
    st.builds(
        Waiting, st.uuids().map(str), st.integers(-3, 3), st.floats(0, 9), st.sampled_from([None, "r0", "r1", "r2"])
    ),
    max_size=12,
    unique_by=lambda one: one.scenario_uuid,
)
runners = st.lists(st.integers(-1, 4), max_size=4).map(
    lambda free: [Slots(f"r{n}", slots) for n, slots in enumerate(free)]
)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(scenarios, runners, st.integers(0, 9))
def test_slots_are_used_up_and_never_overdrawn(scenarios: list[Waiting], slots: list[Slots], limit: int) -> None:
    placed = place(scenarios, slots, limit)
    free = {slot.runner: max(slot.free, 0) for slot in slots}
    assert len(placed) == min(limit, len(scenarios), sum(free.values()))
    assert len({uuid for uuid, _ in placed}) == len(placed)
    for runner in {runner for _, runner in placed}:
        assert sum(runner == other for _, other in placed) <= free[runner]


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(scenarios, runners)
def test_nobody_is_placed_before_a_higher_priority(scenarios: list[Waiting], slots: list[Slots]) -> None:
    placed = {uuid for uuid, _ in place(scenarios, slots, 100)}
    left = [one.priority for one in scenarios if one.scenario_uuid not in placed]
    assert all(one.priority >= max(left, default=-9) for one in scenarios if one.scenario_uuid in placed)
