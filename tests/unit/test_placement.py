"""Placement of queued scenarios on runners."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vidflow.domain.placement import QueuedScenario, RunnerSlots, place_scenarios


def waiting(name: str, priority: int = 0, since_s: float = 0.0, avoid: str | None = None) -> QueuedScenario:
    return QueuedScenario(name, priority, since_s, avoid)


def test_the_higher_priority_goes_first() -> None:
    assert place_scenarios([waiting("low", 0), waiting("high", 5)], [RunnerSlots("r1", 1)], 100) == [("high", "r1")]


def test_within_a_priority_the_older_goes_first() -> None:
    assert place_scenarios([waiting("new", since_s=9.0), waiting("old", since_s=1.0)], [RunnerSlots("r1", 1)], 100) == [
        ("old", "r1")
    ]


def test_scenarios_of_the_same_age_are_ordered_by_uuid() -> None:
    assert place_scenarios([waiting("b"), waiting("a")], [RunnerSlots("r1", 1)], 100) == [("a", "r1")]


def test_the_runner_with_the_most_free_slots_gets_it() -> None:
    assert place_scenarios([waiting("a")], [RunnerSlots("r1", 1), RunnerSlots("r2", 3)], 100) == [("a", "r2")]


def test_scenarios_are_spread_over_the_runners() -> None:
    placed = place_scenarios([waiting(name) for name in "abcd"], [RunnerSlots("r1", 2), RunnerSlots("r2", 2)], 100)
    assert sorted(runner for _, runner in placed) == ["r1", "r1", "r2", "r2"]


def test_the_previous_runner_is_avoided_even_if_it_has_more_free_slots() -> None:
    assert place_scenarios([waiting("a", avoid="r1")], [RunnerSlots("r1", 9), RunnerSlots("r2", 1)], 100) == [
        ("a", "r2")
    ]


def test_the_previous_runner_is_used_if_there_is_no_other() -> None:
    assert place_scenarios([waiting("a", avoid="r1")], [RunnerSlots("r1", 1), RunnerSlots("r2", 0)], 100) == [
        ("a", "r1")
    ]


def test_full_and_overfull_runners_get_nothing() -> None:
    assert place_scenarios([waiting("a")], [RunnerSlots("r1", 0), RunnerSlots("r2", -3)], 100) == []


def test_no_more_scenarios_are_placed_than_the_limit() -> None:
    assert len(place_scenarios([waiting(name) for name in "abc"], [RunnerSlots("r1", 9)], 2)) == 2


def test_without_scenarios_or_slots_nothing_is_placed() -> None:
    assert place_scenarios([], [RunnerSlots("r1", 1)], 100) == []
    assert place_scenarios([waiting("a")], [], 100) == []


scenarios = st.lists(
    st.builds(
        QueuedScenario,
        st.uuids().map(str),
        st.integers(-3, 3),
        st.floats(0, 9),
        st.sampled_from([None, "r0", "r1", "r2"]),
    ),
    max_size=12,
    unique_by=lambda scenario: scenario.scenario_uuid,
)
runners = st.lists(st.integers(-1, 4), max_size=4).map(
    lambda free: [RunnerSlots(f"r{n}", slots) for n, slots in enumerate(free)]
)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(scenarios, runners, st.integers(0, 9))
def test_slots_are_used_up_but_never_exceeded(
    scenarios: list[QueuedScenario], slots: list[RunnerSlots], limit: int
) -> None:
    placed = place_scenarios(scenarios, slots, limit)
    free = {slot.runner: max(slot.free, 0) for slot in slots}
    assert len(placed) == min(limit, len(scenarios), sum(free.values()))
    assert len({uuid for uuid, _ in placed}) == len(placed)
    for runner in {runner for _, runner in placed}:
        assert sum(runner == other for _, other in placed) <= free[runner]


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(scenarios, runners)
def test_no_scenario_is_placed_before_one_of_a_higher_priority(
    scenarios: list[QueuedScenario], slots: list[RunnerSlots]
) -> None:
    placed = {uuid for uuid, _ in place_scenarios(scenarios, slots, 100)}
    unplaced = [scenario.priority for scenario in scenarios if scenario.scenario_uuid not in placed]
    highest_unplaced = max(unplaced, default=-9)
    assert all(scenario.priority >= highest_unplaced for scenario in scenarios if scenario.scenario_uuid in placed)


def test_a_slot_is_kept_free_for_an_expected_scenario_but_not_from_a_higher_priority() -> None:
    expected = QueuedScenario("expected", 5, 0.0, expected=True)
    slots = [RunnerSlots("r1", 1), RunnerSlots("r2", 1)]
    assert place_scenarios([expected, waiting("low"), waiting("lower", -1)], slots, 100) == [("low", "r2")]
    both_higher = [waiting("high", 6), waiting("higher", 7)]
    assert {uuid for uuid, _ in place_scenarios([expected, *both_higher], slots, 100)} == {"high", "higher"}
