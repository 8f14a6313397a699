"""The leader's memory after reports, and after a plan that was written in part."""

from __future__ import annotations

import pytest

from vidflow.domain.leader import (
    Cause,
    Finding,
    LeaderState,
    OutgoingCommand,
    Plan,
    RunnerView,
    ScenarioView,
    apply_reports,
    apply_written_plan,
    needs_tick,
)
from vidflow.domain.messages import EndReason, Entry, Report, StopWork, WorkerWait
from vidflow.domain.progress import Progress
from vidflow.domain.reason_codes import ReasonCode
from vidflow.domain.scenario import Event, Kind, Scenario

A, B = ("019a0000-0000-7000-8000-00000000000a", "019a0000-0000-7000-8000-00000000000b")


def report(number: int, *entries: Entry, taken: int = 0, capacity: int = 4, draining: bool = False) -> Report:
    return Report("r1", "default", number, capacity, taken, draining, entries)


def entry(next_frame: int = 0, reason: EndReason | None = None) -> Entry:
    return Entry(A, 1, next_frame, WorkerWait.SOURCE, reason)


def test_the_newest_report_is_kept_with_its_arrival_time() -> None:
    memory = apply_reports(LeaderState(), [(report(1), 10.0), (report(3), 12.0), (report(2), 13.0)])
    assert memory.runners == {"r1": RunnerView(12.0, report(3))}


def test_a_mark_is_removed_when_the_count_of_taken_commands_grows() -> None:
    marked = LeaderState({"r1": RunnerView(1.0, report(1, taken=5), mark=5)})
    assert apply_reports(marked, [(report(2, taken=5), 2.0)]).runners["r1"].mark == 5
    assert apply_reports(marked, [(report(2, taken=6), 2.0)]).runners["r1"].mark is None


@pytest.mark.parametrize(
    ("previous", "current", "needed"),
    [
        (None, report(1), True),
        (report(1), report(2), False),
        (report(1), report(2, entry()), True),
        (report(1, entry()), report(2, entry(next_frame=1)), True),
        (report(1, entry(next_frame=1)), report(2, entry(next_frame=2)), False),
        (report(1, entry(next_frame=2)), report(2, entry(2, EndReason.FINISHED)), True),
        (report(1), report(2, draining=True), True),
        (report(1), report(2, capacity=2), True),
        (report(1), report(2, taken=1), False),
    ],
)
def test_a_tick_is_needed_only_after_a_relevant_change(previous: Report | None, current: Report, needed: bool) -> None:
    assert needs_tick(previous, current) is needed


def lost(uuid: str) -> tuple[ScenarioView, Event]:
    return ScenarioView(Scenario(uuid), Progress()), Event(
        kind=Kind.LOST, reason_code=ReasonCode.RUNNER_LOST, reason="runner lost"
    )


def stop(uuid: str) -> OutgoingCommand:
    return OutgoingCommand("r1", StopWork(uuid, 1), "stop", uuid, 1)


FOUND = Finding(1, Cause.LEASE_OVER, 5.0, 1005.0)
AFTER = LeaderState({"r1": RunnerView(9.0)}, {}, {stop(A).key: 9.0, stop(B).key: 9.0})
PLAN = Plan(AFTER, [lost(A), lost(B)], [stop(A), stop(B)])
BEFORE = LeaderState({}, {A: FOUND, B: FOUND}, {})


def test_a_written_plan_is_remembered_unchanged() -> None:
    assert apply_written_plan(BEFORE, PLAN, {A, B}, {stop(A).key, stop(B).key}) == AFTER


def test_an_unwritten_event_keeps_its_finding_and_an_unwritten_command_does_not_count_as_sent() -> None:
    memory = apply_written_plan(BEFORE, PLAN, {A}, {stop(A).key})
    assert memory.findings == {B: FOUND}
    assert memory.last_sent_s == {stop(A).key: 9.0}


def test_only_the_runners_of_an_unwritten_plan_are_remembered() -> None:
    memory = apply_written_plan(BEFORE, PLAN, set(), set())
    assert (memory.runners, memory.findings, memory.last_sent_s) == (AFTER.runners, BEFORE.findings, {})
