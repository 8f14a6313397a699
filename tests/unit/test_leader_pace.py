"""When the leader's next tick comes, and how a plan is split into transactions."""

from __future__ import annotations

from vidflow.domain.leader import LeaderState, OutgoingCommand, Plan, ScenarioView
from vidflow.domain.messages import Ping
from vidflow.domain.progress import Progress
from vidflow.domain.reason_codes import ReasonCode
from vidflow.domain.scenario import Event, Kind, Scenario
from vidflow.roles.orchestrator.leader import CHUNK_SIZE, FIRST_PAUSE_S, TICK_S, pause_after, split_plan


def test_after_a_transition_the_next_tick_comes_at_once() -> None:
    assert pause_after(TICK_S, 0.0, woken=False, moved=True) == 0.0


def test_after_a_wake_up_the_pauses_grow_to_the_maximum() -> None:
    pauses = [pause_after(TICK_S, 0.0, woken=True, moved=False)]
    while pauses[-1] < TICK_S:
        pauses.append(pause_after(pauses[-1], 0.0, woken=False, moved=False))
    assert pauses[0] == FIRST_PAUSE_S
    assert len(pauses) <= 6
    assert pauses == sorted(pauses)


def test_a_pause_is_at_least_the_duration_of_the_last_tick_and_at_most_the_maximum() -> None:
    assert pause_after(0.0, 0.05, woken=True, moved=False) == 0.05
    assert pause_after(0.0, 5.0, woken=True, moved=False) == TICK_S


def plan(events: int, commands: int) -> Plan:
    scenario_view = ScenarioView(Scenario("019a0000-0000-7000-8000-00000000000a"), Progress())
    event = Event(kind=Kind.TAKEN, reason_code=ReasonCode.SHUTDOWN_STARTED, reason="taken")
    return Plan(
        LeaderState(), [(scenario_view, event)] * events, [OutgoingCommand("r", Ping("r"), "ping", "r", 0)] * commands
    )


def test_a_plan_is_split_into_bounded_chunks() -> None:
    assert [
        (len(events), len(commands)) for events, commands in split_plan(plan(2 * CHUNK_SIZE + 1, CHUNK_SIZE + 1))
    ] == [
        (CHUNK_SIZE, CHUNK_SIZE),
        (CHUNK_SIZE, 1),
        (1, 0),
    ]


def test_an_empty_plan_needs_no_transaction() -> None:
    assert list(split_plan(plan(0, 0))) == []
