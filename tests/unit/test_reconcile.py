"""The rules by which orchestrator and runners agree: tables and reports in, events and commands out.

Each test drives a leader whose clock advances in ticks. It has one scenario, unless stated otherwise, and receives reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.leader import LeaderState, OutgoingCommand, Plan, ScenarioView, Snapshot, Timing, apply_reports
from vidflow.domain.messages import EndReason, Entry, Forget, Ping, Report, StopWork, WorkerWait
from vidflow.domain.progress import Progress
from vidflow.domain.reason_codes import ReasonCode
from vidflow.domain.reconcile import build_tick_context, count_free_slots, find_free_slots, reconcile
from vidflow.domain.scenario import Event, Kind, Outcome, RetryPolicy, Scenario, State

UUID = "01930000-0000-7000-8000-000000000001"
OTHER = "01930000-0000-7000-8000-000000000002"
EPOCH = 5
DB_S = 1_700_000_000.0
"""How far the database's clock is ahead of the leader's."""
TICK_S = 0.2
RETRY_POLICY, TIMING = RetryPolicy(), Timing()
FATAL = ErrorInfo("source_changed", "it is another file now")
END_CODES = {
    EndReason.STOPPED: "worker_stopped",
    EndReason.REFUSED: "runner_refused",
    EndReason.HANDED_OVER: "handed_over",
    EndReason.CUT_OFF: "cut_off",
    EndReason.FINISHED: "finished_incomplete",
    EndReason.ERROR: "worker_error",
    EndReason.CRASHED: "worker_crashed",
    EndReason.HUNG: "worker_hung",
    EndReason.MEMORY: "worker_out_of_memory",
}
LOSS_CODES = {
    "runner_lost", "worker_error", "worker_crashed", "worker_hung", "worker_out_of_memory", "results_missing", "finished_incomplete",
}  # fmt: skip
CODES = {
    Kind.ASSIGNED: {"assigned"},
    Kind.FIRST_FRAME: {"first_frame"},
    Kind.RETURNED: {"deploy_not_taken", "runner_refused", "worker_stopped", "handed_over", "cut_off"},
    Kind.LOST: LOSS_CODES,
    Kind.SKIPPED: LOSS_CODES,
    Kind.FAILED: LOSS_CODES | {"non_retryable_error", "deploy_refused"},
    Kind.COMPLETED: {"all_frames_stored"},
    Kind.SHUTDOWN_REQUESTED: {"shutdown_requested"},
    Kind.TAKEN: {"shutdown_started"},
    Kind.DRAINED: {
        "never_deployed", "end_marker_stored", "worker_ended", "runner_lost", "handed_over", "deploy_not_taken", "stop_timed_out",
    },
}  # fmt: skip
"""The reason codes that an event of each kind may have. The harness checks every event."""


def scenario(state: State = State.ACTIVE, uuid: str = UUID, **changes: Any) -> Scenario:
    shut = state in {State.INIT_SHUTDOWN, State.IN_SHUTDOWN_PROCESSING}
    base = Scenario(uuid, state, Outcome.STOPPED if shut else None, epoch=EPOCH, runner="r1", resume_frame=10)
    return msgspec.structs.replace(base, **changes)


def progress(**changes: Any) -> Progress:
    return msgspec.structs.replace(Progress(epoch=EPOCH, next_frame=12, last_pts=110), **changes)


def complete_progress() -> Progress:
    return progress(end_epoch=EPOCH, end_last_frame=11, end_reason=EndReason.FINISHED)


def running(epoch: int = EPOCH, uuid: str = UUID, next_frame: int = 12) -> Entry:
    return Entry(uuid, epoch, next_frame, WorkerWait.SOURCE)


def ended(reason: EndReason, epoch: int = EPOCH, **changes: Any) -> Entry:
    return msgspec.structs.replace(Entry(UUID, epoch, 12, WorkerWait.SOURCE, reason), **changes)


class LeaderHarness:
    """A leader's memory and its input. `inbox_lag_s`: lag of the inbox (None: unknown)."""

    def __init__(
        self, *scenarios: ScenarioView, probes_received_since_s: float | None = 0.0, inbox_lag_s: float = 0.0
    ) -> None:
        self.scenarios: Sequence[ScenarioView] = scenarios
        self.memory = LeaderState()
        self.now_s = 100.0
        self.probes_received_since_s = probes_received_since_s
        self.inbox_lag_s: float | None = inbox_lag_s
        self.db_offset_s = DB_S
        self.report_numbers: dict[str, int] = {}
        self.commands: list[OutgoingCommand] = []

    def receive(
        self, *entries: Entry, runner: str = "r1", taken: int = 0, draining: bool = False, capacity: int = 4
    ) -> None:
        self.report_numbers[runner] = number = self.report_numbers.get(runner, 0) + 1
        self.receive_report(Report(runner, "default", number, capacity, taken, draining, entries))

    def receive_report(self, report: Report) -> None:
        self.memory = apply_reports(self.memory, [(report, self.now_s)])

    def tick(self, after_s: float = TICK_S) -> Plan:
        self.now_s += after_s
        now_db_s = self.db_offset_s + self.now_s
        caught_up = None if self.inbox_lag_s is None else now_db_s - self.inbox_lag_s
        snapshot = Snapshot(self.scenarios, self.now_s, now_db_s, caught_up, self.probes_received_since_s)
        plan = reconcile(self.memory, snapshot, RETRY_POLICY, TIMING)
        for _, event in plan.events:
            assert event.reason_code in CODES[event.kind], event
        self.memory = plan.memory
        self.commands += plan.commands
        return plan

    def event(self, after_s: float = TICK_S) -> Event | None:
        """Tick and return the event for the first scenario."""
        return next((event for item, event in self.tick(after_s).events if item is self.scenarios[0]), None)

    def events_with_reports(self, *entries: Entry, seconds: float, **report: Any) -> list[Event]:
        """Report and tick every half second until a tick has an event or the time is over."""
        for _ in range(round(seconds / 0.5)):
            self.now_s += 0.5 - TICK_S
            self.receive(*entries, **report)
            if event := self.event():
                return [event]
        return []

    def events_without_reports(self, seconds: float) -> list[Event]:
        """Tick without reports every half second until a tick has an event or the time is over."""
        for _ in range(round(seconds / 0.5)):
            if event := self.event(0.5):
                return [event]
        return []

    @property
    def mark(self) -> int | None:
        return self.memory.runners["r1"].mark

    def commands_of(self, kind: str) -> list[OutgoingCommand]:
        return [command for command in self.commands if command.kind == kind]


def active(**changes: Any) -> ScenarioView:
    return ScenarioView(scenario(), progress(**changes))


def starting(**changes: Any) -> ScenarioView:
    return ScenarioView(scenario(State.IN_STARTUP_PROCESSING), progress(next_frame=10), **changes)


def shutting_down(**changes: Any) -> ScenarioView:
    return ScenarioView(scenario(State.IN_SHUTDOWN_PROCESSING), progress(**changes))


def waiting_scenario(uuid: str = UUID, **changes: Any) -> ScenarioView:
    return ScenarioView(scenario(State.INIT_STARTUP, uuid, **changes), progress(next_frame=10))


# --- wanted entries


def test_a_wanted_running_entry_is_left_alone() -> None:
    leader = LeaderHarness(active())
    assert leader.events_with_reports(running(), seconds=60) == []
    assert leader.commands == []


def test_a_reported_frame_after_the_resume_point_makes_it_active() -> None:
    leader = LeaderHarness(starting())
    leader.receive(running(next_frame=11))
    event = leader.event()
    assert event is not None
    assert (event.kind, event.epoch) == (Kind.FIRST_FRAME, EPOCH)


def test_a_stored_frame_after_the_resume_point_makes_it_active() -> None:
    leader = LeaderHarness(ScenarioView(scenario(State.IN_STARTUP_PROCESSING), progress(next_frame=11)))
    leader.receive(running(next_frame=10))
    event = leader.event()
    assert event is not None
    assert event.kind is Kind.FIRST_FRAME


def test_a_report_at_the_resume_point_does_not_make_it_active() -> None:
    leader = LeaderHarness(starting())
    leader.receive(running(next_frame=10))
    assert leader.event() is None


def test_a_reported_frame_of_another_epoch_does_not_make_it_active() -> None:
    leader = LeaderHarness(starting())
    leader.receive(running(EPOCH - 1, next_frame=11))
    assert leader.event() is None


# --- completion


@pytest.mark.parametrize("state", [State.IN_STARTUP_PROCESSING, State.ACTIVE])
def test_complete_progress_completes_the_scenario(state: State) -> None:
    leader = LeaderHarness(ScenarioView(scenario(state), complete_progress()))
    leader.receive(running())
    event = leader.event()
    assert event is not None
    assert (event.kind, event.epoch) == (Kind.COMPLETED, EPOCH)


@pytest.mark.parametrize("reason", list(EndReason))
def test_complete_progress_takes_precedence_over_any_report(reason: EndReason) -> None:
    leader = LeaderHarness(ScenarioView(scenario(), complete_progress()))
    leader.receive(ended(reason, fatal=True, error=FATAL))
    event = leader.event()
    assert event is not None
    assert event.kind is Kind.COMPLETED


def test_completion_does_not_wait_for_the_inbox_or_a_runner() -> None:
    leader = LeaderHarness(ScenarioView(scenario(), complete_progress()), probes_received_since_s=None)
    leader.inbox_lag_s = None
    event = leader.event()
    assert event is not None
    assert event.kind is Kind.COMPLETED


def test_a_finding_from_before_the_database_clock_stepped_back_waits_only_for_the_inbox() -> None:
    leader = LeaderHarness(active(), inbox_lag_s=10.0)
    leader.receive(ended(EndReason.FINISHED))
    assert leader.event() is None
    leader.db_offset_s -= 3600.0
    assert leader.event() is None
    leader.inbox_lag_s = 0.0
    event = leader.event()
    assert event is not None
    assert event.kind is Kind.LOST


def test_a_finished_worker_without_complete_progress_is_a_loss() -> None:
    leader = LeaderHarness(active())
    leader.receive(ended(EndReason.FINISHED))
    event = leader.event()
    assert event is not None
    assert (event.kind, event.attempt, event.reason) == (Kind.LOST, 1, "ended without being whole")
    assert event.reason_code == "finished_incomplete"


# --- non-retryable errors


def test_a_fatal_error_fails_at_the_first_attempt() -> None:
    leader = LeaderHarness(active())
    leader.receive(ended(EndReason.ERROR, error=FATAL, fatal=True, detail="tail"))
    event = leader.event()
    assert event is not None
    assert (event.kind, event.error, event.detail, event.epoch) == (Kind.FAILED, FATAL, "tail", EPOCH)
    assert (event.reason_code, event.reason) == ("non_retryable_error", FATAL.code)


def test_a_fatal_error_waits_for_the_inbox() -> None:
    leader = LeaderHarness(active(), inbox_lag_s=2.0)
    leader.receive(ended(EndReason.ERROR, error=FATAL, fatal=True))
    assert leader.event() is None
    assert leader.event(1.0) is None
    assert leader.event(1.5) is not None


def test_a_retryable_error_is_a_loss() -> None:
    leader = LeaderHarness(active())
    leader.receive(ended(EndReason.ERROR, error=FATAL))
    event = leader.event()
    assert event is not None
    assert event.kind is Kind.LOST


def test_a_fatal_error_of_another_epoch_is_ignored() -> None:
    leader = LeaderHarness(active())
    leader.receive(ended(EndReason.ERROR, EPOCH - 1, error=FATAL, fatal=True))
    assert leader.event() is None


# --- holes


def test_a_hole_is_a_loss_at_once_even_if_the_inbox_lags() -> None:
    leader = LeaderHarness(active(hole_epoch=EPOCH))
    leader.inbox_lag_s = None
    leader.receive(running())
    event = leader.event()
    assert event is not None
    assert (event.kind, event.reason_code, event.attempt) == (Kind.LOST, "results_missing", 1)


def test_a_hole_in_an_older_epoch_is_ignored() -> None:
    leader = LeaderHarness(active(hole_epoch=EPOCH - 1))
    leader.receive(running())
    assert leader.event() is None


def test_a_frame_that_is_a_hole_at_every_attempt_is_skipped_on_request() -> None:
    poisoned = scenario(resume_frame=12, attempt=4, skips_poison=True)
    leader = LeaderHarness(ScenarioView(poisoned, progress(hole_epoch=EPOCH)))
    leader.receive(running())
    event = leader.event()
    assert event is not None
    assert event.kind is Kind.SKIPPED


# --- losses


@pytest.mark.parametrize(
    "reason", [EndReason.CRASHED, EndReason.HUNG, EndReason.MEMORY, EndReason.ERROR, EndReason.FINISHED]
)
def test_a_crash_a_hang_the_memory_cap_and_an_error_are_losses(reason: EndReason) -> None:
    leader = LeaderHarness(active())
    leader.receive(ended(reason))
    event = leader.event()
    assert event is not None
    assert (event.kind, event.attempt, event.reason_code) == (Kind.LOST, 1, END_CODES[reason])


def test_a_loss_waits_until_the_inbox_has_caught_up_past_its_report() -> None:
    leader = LeaderHarness(active(), inbox_lag_s=3.0)
    leader.receive(ended(EndReason.CRASHED))
    assert leader.events_without_reports(2.5) == []
    assert [event.kind for event in leader.events_without_reports(1.5)] == [Kind.LOST]


def test_a_loss_waits_while_the_position_of_the_inbox_is_unknown() -> None:
    leader = LeaderHarness(active())
    leader.inbox_lag_s = None
    assert leader.events_with_reports(ended(EndReason.CRASHED), seconds=120) == []


def test_the_inbox_must_catch_up_past_the_first_report_of_the_end() -> None:
    leader = LeaderHarness(active(), inbox_lag_s=2.0)
    assert leader.events_with_reports(ended(EndReason.CRASHED), seconds=2.0) == []
    assert [event.kind for event in leader.events_with_reports(ended(EndReason.CRASHED), seconds=1.0)] == [Kind.LOST]


def test_a_crash_in_inference_is_attributed_to_the_frame() -> None:
    poisoned = scenario(resume_frame=12, attempt=4, skips_poison=True)
    leader = LeaderHarness(ScenarioView(poisoned, progress()))
    leader.receive(ended(EndReason.CRASHED, waits_for=WorkerWait.INFERENCE))
    event = leader.event()
    assert event is not None
    assert event.kind is Kind.SKIPPED


# --- the runner lease


def test_a_runner_that_is_silent_for_its_lease_is_lost() -> None:
    leader = LeaderHarness(active())
    leader.receive(running())
    assert leader.events_without_reports(2.5) == []
    events = leader.events_without_reports(1.0)
    assert [(event.kind, event.reason_code, event.attempt) for event in events] == [(Kind.LOST, "runner_lost", 1)]


def test_no_runner_is_lost_while_the_leader_receives_no_probes() -> None:
    leader = LeaderHarness(active())
    leader.receive(running())
    leader.probes_received_since_s = None
    assert leader.events_without_reports(120.0) == []


def test_every_runner_gets_a_whole_lease_when_the_probes_return() -> None:
    leader = LeaderHarness(active())
    leader.receive(running())
    leader.probes_received_since_s = None
    leader.events_without_reports(60.0)
    leader.probes_received_since_s = leader.now_s
    assert leader.events_without_reports(2.5) == []
    assert [event.kind for event in leader.events_without_reports(1.0)] == [Kind.LOST]


def test_a_new_leader_gives_every_runner_a_whole_lease() -> None:
    leader = LeaderHarness(active())
    leader.receive(running())
    leader.events_without_reports(2.5)
    leader.memory = LeaderState()
    assert leader.events_without_reports(3.0) == []
    assert [event.kind for event in leader.events_without_reports(1.0)] == [Kind.LOST]


def test_a_runner_that_reports_again_before_the_inbox_has_caught_up_is_not_lost() -> None:
    leader = LeaderHarness(active(), inbox_lag_s=5.0)
    leader.receive(running())
    assert leader.events_without_reports(4.0) == []
    assert leader.events_with_reports(running(), seconds=20) == []


def test_a_report_older_than_the_last_does_not_renew_the_lease() -> None:
    leader = LeaderHarness(active())
    leader.receive(running())
    leader.receive(running())
    leader.events_without_reports(2.5)
    leader.receive_report(Report("r1", "default", 1, 4, 0, False, (running(),)))
    assert [event.kind for event in leader.events_without_reports(1.0)] == [Kind.LOST]


# --- requeues


@pytest.mark.parametrize("reason", [EndReason.STOPPED, EndReason.REFUSED, EndReason.HANDED_OVER, EndReason.CUT_OFF])
def test_an_end_without_a_failure_is_a_requeue_and_counts_no_attempt(reason: EndReason) -> None:
    leader = LeaderHarness(ScenarioView(scenario(attempt=3, resume_frame=12), progress()))
    leader.receive(ended(reason))
    event = leader.event()
    assert event is not None
    assert (event.kind, event.reason_code, event.attempt) == (Kind.RETURNED, END_CODES[reason], None)
    assert event.reason == reason


@pytest.mark.parametrize("reason", [EndReason.STOPPED, EndReason.REFUSED, EndReason.HANDED_OVER, EndReason.CUT_OFF])
def test_a_requeue_waits_for_the_inbox(reason: EndReason) -> None:
    leader = LeaderHarness(active(), inbox_lag_s=3.0)
    leader.receive(ended(reason))
    assert leader.events_without_reports(2.0) == []
    assert [event.kind for event in leader.events_without_reports(2.0)] == [Kind.RETURNED]


def test_a_scenario_that_a_draining_runner_does_not_list_is_requeued() -> None:
    leader = LeaderHarness(starting())
    leader.receive(draining=True)
    event = leader.event()
    assert event is not None
    assert (event.kind, event.reason_code) == (Kind.RETURNED, "handed_over")


def test_the_silence_of_a_drained_runner_is_not_a_loss() -> None:
    leader = LeaderHarness(starting(), inbox_lag_s=20.0)
    leader.receive(draining=True)
    events = leader.events_without_reports(30.0)
    assert [event.kind for event in events] == [Kind.RETURNED]


def test_a_scenario_still_running_on_a_draining_runner_is_lost_with_it() -> None:
    leader = LeaderHarness(active())
    leader.receive(running(), draining=True)
    assert [event.kind for event in leader.events_without_reports(4.0)] == [Kind.LOST]


# --- deploys that are not taken


def test_an_unlisted_deploy_is_resent_every_second() -> None:
    leader = LeaderHarness(starting())
    leader.events_with_reports(seconds=1.0)
    assert leader.commands_of("deploy") == []
    leader.events_with_reports(seconds=4.0)
    assert leader.commands_of("deploy") == [OutgoingCommand("r1", None, "deploy", UUID, EPOCH)] * 4


def test_a_scenario_unlisted_for_five_more_seconds_is_requeued_and_its_runner_marked() -> None:
    leader = LeaderHarness(starting())
    assert leader.events_with_reports(seconds=6.0, taken=7) == []
    events = leader.events_with_reports(seconds=1.5, taken=7)
    assert [(event.kind, event.reason_code, event.attempt) for event in events] == [
        (Kind.RETURNED, "deploy_not_taken", None)
    ]
    assert leader.mark == 7


def test_the_requeue_of_an_unlisted_scenario_waits_for_the_inbox() -> None:
    leader = LeaderHarness(starting(), inbox_lag_s=10.0)
    assert leader.events_with_reports(seconds=15.0) == []
    assert [event.kind for event in leader.events_with_reports(seconds=4.0)] == [Kind.RETURNED]


def test_a_deploy_that_is_taken_late_is_left_alone() -> None:
    leader = LeaderHarness(starting())
    leader.events_with_reports(seconds=5.0)
    assert leader.events_with_reports(running(next_frame=10), seconds=10.0) == []
    assert leader.mark is None


def test_without_reports_an_unlisted_scenario_is_neither_resent_nor_requeued() -> None:
    leader = LeaderHarness(starting())
    leader.receive()
    leader.probes_received_since_s = None
    assert leader.events_without_reports(60.0) == []
    assert leader.commands_of("deploy") == []


def test_time_without_kafka_does_not_count_towards_the_take_timeout() -> None:
    leader = LeaderHarness(starting())
    leader.events_with_reports(seconds=2.0)
    leader.probes_received_since_s = None
    leader.events_without_reports(60.0)
    leader.probes_received_since_s = leader.now_s
    assert leader.events_with_reports(seconds=5.0) == []
    assert [event.kind for event in leader.events_with_reports(seconds=2.0)] == [Kind.RETURNED]


def test_no_deploy_is_resent_while_a_copy_is_unpublished() -> None:
    leader = LeaderHarness(starting(deploy_waits=True))
    assert leader.events_with_reports(seconds=30.0) == []
    assert leader.commands_of("deploy") == []


def test_a_scenario_whose_deploy_kafka_refuses_fails_and_no_runner_is_marked() -> None:
    leader = LeaderHarness(starting(deploy_refused="Broker: Message size too large"))
    [event] = leader.events_with_reports(seconds=1.0)
    assert (event.kind, event.reason_code) == (Kind.FAILED, "deploy_refused")
    assert event.error is not None
    assert "(Broker: Message size too large). Request fewer labels" in event.error.message
    assert leader.mark is None


def test_a_refused_copy_of_a_deploy_does_not_fail_a_running_scenario() -> None:
    leader = LeaderHarness(starting(deploy_refused="Broker: Message size too large"))
    leader.receive(running(next_frame=10))
    assert leader.event() is None


def test_the_take_timeout_starts_when_the_deploy_is_published() -> None:
    leader = LeaderHarness(starting(deploy_waits=True))
    leader.events_with_reports(seconds=30.0)
    leader.scenarios = [starting()]
    assert leader.events_with_reports(seconds=6.0) == []
    assert [event.kind for event in leader.events_with_reports(seconds=1.5)] == [Kind.RETURNED]


def test_a_resent_deploy_that_waits_briefly_does_not_restart_the_take_timeout() -> None:
    leader = LeaderHarness(starting())
    events: list[Event] = []
    while not events and leader.now_s < 130.0:
        count = len(leader.commands_of("deploy"))
        events = leader.events_with_reports(seconds=0.5)
        is_resent = len(leader.commands_of("deploy")) > count  # the relay publishes it after the next tick
        leader.scenarios = [starting(deploy_waits=is_resent)]
    assert [event.reason_code for event in events] == ["deploy_not_taken"]
    assert leader.now_s < 110.0


def test_a_scenario_is_not_requeued_while_a_copy_of_its_deploy_is_unpublished() -> None:
    leader = LeaderHarness(starting())
    leader.events_with_reports(seconds=3.0)
    leader.scenarios = [starting(deploy_waits=True)]
    assert leader.events_with_reports(seconds=30.0) == []
    leader.scenarios = [starting()]
    assert [event.reason_code for event in leader.events_with_reports(seconds=1.0)] == ["deploy_not_taken"]


def test_an_entry_of_an_older_epoch_counts_as_unlisted() -> None:
    leader = LeaderHarness(starting())
    assert [event.kind for event in leader.events_with_reports(running(EPOCH - 1), seconds=8.0)] == [Kind.RETURNED]


# --- marked runners


def marked_leader(*scenarios: ScenarioView) -> LeaderHarness:
    """Return a leader that has marked r1 at 7 commands taken and requeued its scenario."""
    leader = LeaderHarness(starting())
    leader.events_with_reports(seconds=8.0, taken=7)
    assert leader.mark == 7
    leader.scenarios, leader.commands = scenarios, []
    return leader


def test_a_marked_runner_gets_no_scenario() -> None:
    leader = marked_leader(waiting_scenario())
    assert leader.events_with_reports(seconds=10.0, taken=7) == []


def test_a_marked_runner_is_pinged_every_two_seconds() -> None:
    leader = marked_leader()
    leader.events_with_reports(seconds=10.0, taken=7)
    assert leader.commands_of("ping") == [OutgoingCommand("r1", Ping("r1"), "ping", "r1", 0)] * 5


def test_the_mark_is_removed_when_the_count_of_taken_commands_grows() -> None:
    leader = marked_leader(waiting_scenario())
    leader.receive(taken=8)
    assert leader.mark is None
    assert [event.kind for event in leader.events_with_reports(seconds=1.0, taken=8)] == [Kind.ASSIGNED]


def test_the_mark_stays_while_the_count_does_not_grow() -> None:
    leader = marked_leader()
    leader.events_with_reports(seconds=30.0, taken=7)
    assert leader.mark == 7


def test_an_unmarked_runner_is_not_pinged() -> None:
    leader = LeaderHarness(active())
    leader.events_with_reports(running(), seconds=10.0)
    assert leader.commands_of("ping") == []


# --- stop and forget


UNWANTED = [
    pytest.param([], id="unknown uuid"),
    pytest.param([waiting_scenario()], id="waiting"),
    pytest.param([ScenarioView(scenario(epoch=EPOCH + 1), progress(epoch=EPOCH + 1))], id="newer epoch"),
    pytest.param(
        [ScenarioView(scenario(epoch=EPOCH - 1), progress(epoch=EPOCH - 1))], id="older epoch, after a restore"
    ),
    pytest.param([ScenarioView(scenario(runner="r2"), progress())], id="other runner"),
    pytest.param([shutting_down()], id="shutting down"),
]


@pytest.mark.parametrize("scenarios", UNWANTED)
def test_an_unwanted_running_entry_is_stopped_every_two_seconds_until_it_is_unlisted(
    scenarios: list[ScenarioView],
) -> None:
    leader = LeaderHarness(*scenarios, probes_received_since_s=None)
    for _ in range(10):
        leader.receive(running())
        leader.tick(0.5)
    assert leader.commands_of("stop") == [OutgoingCommand("r1", StopWork(UUID, EPOCH), "stop", UUID, EPOCH)] * 3
    leader.commands = []
    for _ in range(10):
        leader.receive()
        leader.tick(0.5)
    assert leader.commands_of("stop") == []


@pytest.mark.parametrize("scenarios", UNWANTED[:-1])
def test_an_unwanted_ended_entry_is_forgotten_every_two_seconds_until_it_is_unlisted(
    scenarios: list[ScenarioView],
) -> None:
    leader = LeaderHarness(*scenarios, probes_received_since_s=None)
    for _ in range(10):
        leader.receive(ended(EndReason.STOPPED))
        leader.tick(0.5)
    assert leader.commands_of("forget") == [OutgoingCommand("r1", Forget(UUID, EPOCH), "forget", UUID, EPOCH)] * 3
    leader.commands = []
    for _ in range(10):
        leader.receive()
        leader.tick(0.5)
    assert leader.commands_of("forget") == []


def test_an_ended_entry_is_kept_until_its_scenario_has_shut_down() -> None:
    leader = LeaderHarness(ScenarioView(scenario(State.INIT_SHUTDOWN), progress()))
    leader.receive(ended(EndReason.ERROR))
    leader.tick()
    leader.scenarios = [shutting_down()]
    [event] = leader.events_with_reports(ended(EndReason.ERROR), seconds=1.0)
    assert (event.kind, event.reason_code) == (Kind.DRAINED, "worker_ended")
    assert leader.commands_of("forget") == []
    leader.scenarios = []
    leader.receive(ended(EndReason.ERROR))
    leader.tick()
    assert leader.commands_of("forget") == [OutgoingCommand("r1", Forget(UUID, EPOCH), "forget", UUID, EPOCH)]


def test_a_wanted_entry_is_never_forgotten() -> None:
    leader = LeaderHarness(active(), inbox_lag_s=1000.0)
    leader.events_with_reports(ended(EndReason.CRASHED), seconds=30.0)
    assert leader.commands_of("forget") == []


def test_a_silent_runner_is_sent_nothing() -> None:
    leader = LeaderHarness()
    leader.receive(running())
    leader.events_without_reports(3.5)
    leader.commands = []
    leader.events_without_reports(20.0)
    assert leader.commands == []


def test_a_runner_without_entries_is_sent_nothing() -> None:
    leader = LeaderHarness()
    leader.events_with_reports(seconds=30.0)
    assert leader.commands == []


# --- shutting down


def test_a_shutdown_is_taken_at_once() -> None:
    leader = LeaderHarness(ScenarioView(scenario(State.INIT_SHUTDOWN), progress()))
    event = leader.event()
    assert event is not None
    assert (event.kind, event.epoch) == (Kind.TAKEN, EPOCH)


def drain_codes(events: Sequence[Event | None]) -> list[ReasonCode]:
    return [event.reason_code for event in events if event is not None and event.kind is Kind.DRAINED]


def test_a_scenario_that_was_never_assigned_is_drained() -> None:
    leader = LeaderHarness(ScenarioView(scenario(State.IN_SHUTDOWN_PROCESSING, epoch=0, runner=None), Progress()))
    leader.inbox_lag_s = None
    assert drain_codes([leader.event()]) == ["never_deployed"]


@pytest.mark.parametrize("reason", [EndReason.FINISHED, EndReason.STOPPED, EndReason.HANDED_OVER])
def test_a_scenario_with_a_stored_end_marker_is_drained_whatever_the_reason(reason: EndReason) -> None:
    leader = LeaderHarness(shutting_down(end_epoch=EPOCH, end_last_frame=11, end_reason=reason))
    leader.inbox_lag_s = None
    leader.receive(running())
    assert drain_codes([leader.event()]) == ["end_marker_stored"]


def test_an_end_marker_of_an_older_epoch_does_not_drain() -> None:
    leader = LeaderHarness(shutting_down(end_epoch=EPOCH - 1, end_last_frame=11, end_reason=EndReason.STOPPED))
    assert leader.events_with_reports(running(), seconds=10.0) == []


def test_a_scenario_with_an_ended_entry_is_drained_once_the_inbox_has_caught_up() -> None:
    leader = LeaderHarness(shutting_down(), inbox_lag_s=3.0)
    leader.receive(ended(EndReason.CRASHED))
    assert leader.events_without_reports(2.0) == []
    assert drain_codes(leader.events_without_reports(2.0)) == ["worker_ended"]


def test_a_scenario_whose_ended_entry_was_forgotten_is_drained_just_as_soon() -> None:
    leader = LeaderHarness(shutting_down(), inbox_lag_s=3.0)
    leader.receive(ended(EndReason.CRASHED))
    leader.tick()
    leader.receive()
    assert drain_codes(leader.events_with_reports(seconds=4.0)) == ["worker_ended"]


def test_the_scenario_of_a_lost_runner_is_drained_once_the_inbox_has_caught_up() -> None:
    leader = LeaderHarness(shutting_down(), inbox_lag_s=3.0)
    leader.receive(running())
    assert leader.events_without_reports(5.5) == []
    assert drain_codes(leader.events_without_reports(2.0)) == ["runner_lost"]


def test_an_unlisted_scenario_is_drained_after_the_take_timeout_once_the_inbox_has_caught_up() -> None:
    leader = LeaderHarness(shutting_down(), inbox_lag_s=3.0)
    assert leader.events_with_reports(seconds=8.0) == []
    assert drain_codes(leader.events_with_reports(seconds=4.0)) == ["deploy_not_taken"]


def test_a_scenario_that_a_draining_runner_does_not_list_is_drained() -> None:
    leader = LeaderHarness(shutting_down())
    leader.receive(draining=True)
    assert drain_codes([leader.event()]) == ["handed_over"]


@pytest.mark.parametrize("entries", [[ended(EndReason.CRASHED)], []])
def test_nothing_is_drained_while_the_position_of_the_inbox_is_unknown(entries: list[Entry]) -> None:
    leader = LeaderHarness(shutting_down())
    leader.inbox_lag_s = None
    assert leader.events_with_reports(*entries, seconds=60.0) == []


def test_a_scenario_still_running_after_thirty_seconds_of_stops_is_drained_and_its_runner_marked() -> None:
    leader = LeaderHarness(shutting_down())
    assert leader.events_with_reports(running(), seconds=29.0, taken=3) == []
    assert len(leader.commands_of("stop")) == 15
    assert drain_codes(leader.events_with_reports(running(), seconds=2.0, taken=3)) == ["stop_timed_out"]
    assert leader.mark == 3


def test_time_without_kafka_does_not_count_towards_the_thirty_seconds_of_stops() -> None:
    leader = LeaderHarness(shutting_down())
    leader.events_with_reports(running(), seconds=1.0)
    leader.probes_received_since_s = None
    assert leader.events_without_reports(60.0) == []
    leader.probes_received_since_s = leader.now_s
    assert leader.events_with_reports(running(), seconds=25.0) == []
    assert leader.mark is None


# --- placement


def test_a_due_scenario_goes_to_a_runner_with_a_free_slot() -> None:
    leader = LeaderHarness(ScenarioView(Scenario(UUID), Progress()))
    leader.receive(runner="r1")
    event = leader.event()
    assert event is not None
    assert (event.kind, event.epoch, event.runner, event.resume_frame) == (Kind.ASSIGNED, 0, "r1", 0)
    assert event.new_epoch == int((DB_S + leader.now_s) * 1000)


def test_a_redeployment_resumes_at_the_next_frame() -> None:
    leader = LeaderHarness(waiting_scenario())
    leader.receive()
    event = leader.event()
    assert event is not None
    assert event.resume_frame == 10


def test_a_frame_stored_since_the_requeue_resets_the_attempts() -> None:
    leader = LeaderHarness(ScenarioView(scenario(State.INIT_STARTUP, attempt=4), progress(next_frame=11)))
    leader.receive()
    event = leader.event()
    assert event is not None
    assert (event.resume_frame, event.attempt) == (11, 0)


def test_without_a_frame_stored_since_the_requeue_the_attempts_stay() -> None:
    leader = LeaderHarness(waiting_scenario(attempt=4))
    leader.receive()
    event = leader.event()
    assert event is not None
    assert event.attempt is None


def test_a_scenario_that_is_not_due_waits() -> None:
    leader = LeaderHarness(msgspec.structs.replace(waiting_scenario(), due=False))
    assert leader.events_with_reports(seconds=5.0) == []


def test_a_scenario_avoids_its_previous_runner() -> None:
    leader = LeaderHarness(waiting_scenario(attempt=1))
    leader.receive(runner="r1", capacity=9)
    leader.receive(runner="r2", capacity=1)
    event = leader.event()
    assert event is not None
    assert event.runner == "r2"


def test_a_scenario_returns_to_its_previous_runner_if_there_is_no_other() -> None:
    leader = LeaderHarness(waiting_scenario(attempt=1))
    leader.receive(runner="r1")
    event = leader.event()
    assert event is not None
    assert event.runner == "r1"


def interrupted_and_waiting(priority: int, inbox_lag_s: float = 0.0) -> LeaderHarness:
    """Return a leader with a scenario on r1, which then falls silent, and a scenario of this priority that waits."""
    queued = ScenarioView(waiting_scenario().scenario, Progress(), priority=priority)
    queued = msgspec.structs.replace(queued, scenario=msgspec.structs.replace(queued.scenario, scenario_uuid=OTHER))
    leader = LeaderHarness(active(), queued, inbox_lag_s=inbox_lag_s)
    leader.receive(running(), runner="r1", capacity=1)
    return leader


def assigned(leader: LeaderHarness, silent_s: float) -> list[str]:
    """Return what is assigned to a runner that starts after r1 has been silent for this time."""
    leader.now_s += silent_s
    leader.receive(runner="successor", capacity=1)
    return [item.scenario.scenario_uuid for item, event in leader.tick(0.0).events if event.kind is Kind.ASSIGNED]


@pytest.mark.parametrize("silent_s", [1.5, 2.9, 3.1])
def test_a_free_slot_is_kept_for_the_scenario_of_a_runner_that_has_fallen_silent(silent_s: float) -> None:
    assert assigned(interrupted_and_waiting(-1), silent_s) == []
    assert assigned(interrupted_and_waiting(1), silent_s) == [OTHER]


def test_no_slot_is_kept_for_a_runner_that_reports_or_has_been_lost_for_long() -> None:
    assert assigned(interrupted_and_waiting(-1), 1.0) == [OTHER]
    assert assigned(interrupted_and_waiting(-1, inbox_lag_s=60.0), 6.1) == [OTHER]


def slots(leader: LeaderHarness) -> dict[str, int]:
    snapshot = Snapshot(leader.scenarios, leader.now_s, DB_S, None, leader.probes_received_since_s)
    tick = build_tick_context(leader.memory, snapshot, RETRY_POLICY, TIMING)
    return {slot.runner: slot.free for slot in find_free_slots(tick)}


def test_a_draining_runner_has_no_slots() -> None:
    leader = LeaderHarness()
    leader.receive(draining=True)
    assert slots(leader) == {}


def test_a_silent_runner_has_no_slots() -> None:
    leader = LeaderHarness()
    leader.receive()
    leader.now_s += 3.0
    assert slots(leader) == {}


def test_no_runner_has_slots_while_the_leader_receives_no_probes() -> None:
    leader = LeaderHarness(probes_received_since_s=None)
    leader.receive()
    assert slots(leader) == {}


def test_a_runner_of_another_pool_gets_nothing() -> None:
    leader = LeaderHarness(waiting_scenario())
    leader.receive_report(Report("r1", "gpu", 1, 4, 0, False))
    assert leader.event() is None


def test_each_pool_places_its_own_scenarios() -> None:
    gpu = ScenarioView(
        msgspec.structs.replace(waiting_scenario().scenario, scenario_uuid=OTHER, pool="gpu"), progress()
    )
    leader = LeaderHarness(waiting_scenario(), gpu)
    leader.receive(runner="r1")
    leader.receive_report(Report("r2", "gpu", 1, 4, 0, False))
    plan = leader.tick()
    assert {(item.scenario.pool, event.runner) for item, event in plan.events} == {("default", "r1"), ("gpu", "r2")}


def test_a_command_goes_to_the_pool_of_its_runner() -> None:
    leader = LeaderHarness()
    leader.receive_report(Report("r2", "gpu", 1, 4, 0, False, (running(),)))
    assert [(command.kind, command.pool) for command in leader.tick().commands] == [("stop", "gpu")]


def test_free_slots_are_counted_by_pool_up_to_the_limit_of_a_tick() -> None:
    leader = LeaderHarness(starting())
    leader.receive(runner="r1", capacity=3)
    leader.receive(runner="r3", capacity=1000)
    leader.receive_report(Report("r2", "gpu", 1, 4, 0, False))
    snapshot = Snapshot(leader.scenarios, leader.now_s, DB_S, None, leader.probes_received_since_s)
    assert count_free_slots(leader.memory, snapshot, TIMING) == {"default": TIMING.max_assignments, "gpu": 4}


def test_a_slot_is_held_from_the_assignment_on_and_counted_only_once() -> None:
    leader = LeaderHarness(starting(), ScenarioView(scenario(uuid=OTHER), progress()))
    leader.receive(running(uuid=OTHER), capacity=4)
    assert slots(leader) == {"r1": 2}


def test_an_unwanted_running_entry_holds_its_slot_until_it_has_ended() -> None:
    leader = LeaderHarness()
    leader.receive(running(), capacity=1)
    assert slots(leader) == {"r1": 0}
    leader.receive(ended(EndReason.STOPPED), capacity=1)
    assert slots(leader) == {"r1": 1}


def test_a_tick_places_no_more_than_its_limit() -> None:
    scenarios = [ScenarioView(Scenario(f"01930000-0000-7000-8000-{n:012x}"), Progress()) for n in range(150)]
    leader = LeaderHarness(*scenarios)
    leader.receive(capacity=1000)
    assert len(leader.tick().events) == TIMING.max_assignments


def test_all_scenarios_of_a_lost_runner_are_lost_in_one_tick() -> None:
    scenarios = [ScenarioView(scenario(uuid=f"01930000-0000-7000-8000-{n:012x}"), progress()) for n in range(50)]
    leader = LeaderHarness(*scenarios)
    leader.tick()  # a new leader gives the runner a whole lease from here
    leader.tick(2.9)
    assert [event.kind for _, event in leader.tick().events] == [Kind.LOST] * 50


def test_a_scenario_gets_one_event_per_tick() -> None:
    leader = LeaderHarness(active(hole_epoch=EPOCH), waiting_scenario(OTHER))
    leader.receive(ended(EndReason.CRASHED))
    uuids = [item.scenario.scenario_uuid for item, _ in leader.tick().events]
    assert sorted(uuids) == [UUID, OTHER]


# --- memory


def test_a_runner_without_scenarios_is_forgotten_after_a_minute() -> None:
    leader = LeaderHarness()
    leader.receive()
    leader.tick(59.0)
    assert "r1" in leader.memory.runners
    leader.tick(2.0)
    assert "r1" not in leader.memory.runners


def test_nothing_is_remembered_of_finished_scenarios() -> None:
    leader = LeaderHarness(active(), inbox_lag_s=1000.0)
    leader.receive(ended(EndReason.CRASHED), running(uuid=OTHER))
    leader.tick()
    assert (len(leader.memory.findings), len(leader.memory.last_sent_s)) == (1, 1)
    leader.scenarios = []
    leader.receive()
    leader.tick()
    assert (len(leader.memory.findings), len(leader.memory.last_sent_s)) == (0, 0)
