"""How orchestrator and runners agree, a test for each rule: tables and reports in, events and commands out.

Each test is a small film: a leader whose clock moves in ticks, one scenario (unless it says otherwise), and reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.leader import LeaderState, OutgoingCommand, Plan, ScenarioView, Snapshot, Timing, apply_report
from vidflow.domain.messages import EndReason, Entry, Forget, Ping, Report, StopWork, WorkerWait
from vidflow.domain.progress import Progress
from vidflow.domain.reconcile import build_tick_context, count_free_slots, find_free_slots, reconcile
from vidflow.domain.scenario import Event, Kind, Outcome, RetryPolicy, Scenario, State

UUID = "01930000-0000-7000-8000-000000000001"
OTHER = "01930000-0000-7000-8000-000000000002"
EPOCH = 5
DB_S = 1_700_000_000.0
"""How far the database's clock is ahead of the leader's."""
TICK_S = 0.2
LIMITS, TIMING = RetryPolicy(), Timing()
FATAL = ErrorInfo("source_changed", "it is another file now")


def scenario(state: State = State.ACTIVE, uuid: str = UUID, **changes: Any) -> Scenario:
    shut = state in {State.INIT_SHUTDOWN, State.IN_SHUTDOWN_PROCESSING}
    base = Scenario(uuid, state, Outcome.STOPPED if shut else None, epoch=EPOCH, runner="r1", resume_frame=10)
    return msgspec.structs.replace(base, **changes)


def progress(**changes: Any) -> Progress:
    return msgspec.structs.replace(Progress(epoch=EPOCH, next_frame=12, last_pts=110), **changes)


def whole_progress() -> Progress:
    return progress(end_epoch=EPOCH, end_last_frame=11, end_reason=EndReason.FINISHED)


def running(epoch: int = EPOCH, uuid: str = UUID, next_frame: int = 12) -> Entry:
    return Entry(uuid, epoch, next_frame, WorkerWait.SOURCE)


def ended(reason: EndReason, epoch: int = EPOCH, **changes: Any) -> Entry:
    return msgspec.structs.replace(Entry(UUID, epoch, 12, WorkerWait.SOURCE, reason), **changes)


class LeaderHarness:
    """A leader's memory and what it sees. `inbox_s`: how far the inbox is behind; `hearing_since_s`: its probes."""

    def __init__(self, *known: ScenarioView, hearing_since_s: float | None = 0.0, inbox_s: float = 0.0) -> None:
        self.known: Sequence[ScenarioView] = known
        self.memory = LeaderState()
        self.now_s = 100.0
        self.hearing_since_s = hearing_since_s
        self.inbox_s: float | None = inbox_s
        self.db_s = DB_S
        self.numbers: dict[str, int] = {}
        self.commands: list[OutgoingCommand] = []

    def hear(
        self, *entries: Entry, runner: str = "r1", taken: int = 0, draining: bool = False, capacity: int = 4
    ) -> None:
        self.numbers[runner] = number = self.numbers.get(runner, 0) + 1
        told = Report(runner, "default", number, capacity, taken, draining, entries)
        self.memory = apply_report(self.memory, told, self.now_s)

    def tick(self, after_s: float = TICK_S) -> Plan:
        self.now_s += after_s
        now_db_s = self.db_s + self.now_s
        caught_up = None if self.inbox_s is None else now_db_s - self.inbox_s
        world = Snapshot(self.known, self.now_s, now_db_s, caught_up, self.hearing_since_s)
        plan = reconcile(self.memory, world, LIMITS, TIMING)
        self.memory = plan.memory
        self.commands += plan.commands
        return plan

    def event(self, after_s: float = TICK_S) -> Event | None:
        """The event of a tick for the first scenario."""
        return next((event for known, event in self.tick(after_s).events if known is self.known[0]), None)

    def events_while_it_hears(self, *entries: Entry, seconds: float, **report: Any) -> list[Event]:
        """The events of ticks and a report each half second, to the first that has one."""
        for _ in range(round(seconds / 0.5)):
            self.now_s += 0.5 - TICK_S
            self.hear(*entries, **report)
            if event := self.event():
                return [event]
        return []

    def silence(self, seconds: float) -> list[Event]:
        """The events of ticks without any report, to the first that has one."""
        for _ in range(round(seconds / 0.5)):
            if event := self.event(0.5):
                return [event]
        return []

    @property
    def mark(self) -> int | None:
        return self.memory.runners["r1"].mark

    def commands_of(self, kind: str) -> list[OutgoingCommand]:
        return [one for one in self.commands if one.kind == kind]


def active(**changes: Any) -> ScenarioView:
    return ScenarioView(scenario(), progress(**changes))


def starting(**known: Any) -> ScenarioView:
    return ScenarioView(scenario(State.IN_STARTUP_PROCESSING), progress(next_frame=10), **known)


def shutting_down(**changes: Any) -> ScenarioView:
    return ScenarioView(scenario(State.IN_SHUTDOWN_PROCESSING), progress(**changes))


def waiting_scenario(uuid: str = UUID, **changes: Any) -> ScenarioView:
    return ScenarioView(scenario(State.INIT_STARTUP, uuid, **changes), progress(next_frame=10))


# --- wanted and listed


def test_what_is_wanted_and_listed_running_is_left_alone() -> None:
    leader = LeaderHarness(active())
    assert leader.events_while_it_hears(running(), seconds=60) == []
    assert leader.commands == []


def test_a_report_of_a_frame_behind_the_resume_makes_it_active() -> None:
    leader = LeaderHarness(starting())
    leader.hear(running(next_frame=11))
    event = leader.event()
    assert event is not None
    assert (event.kind, event.epoch) == (Kind.FIRST_FRAME, EPOCH)


def test_a_stored_frame_behind_the_resume_makes_it_active() -> None:
    leader = LeaderHarness(ScenarioView(scenario(State.IN_STARTUP_PROCESSING), progress(next_frame=11)))
    leader.hear(running(next_frame=10))
    event = leader.event()
    assert event is not None
    assert event.kind is Kind.FIRST_FRAME


def test_a_report_at_the_resume_itself_does_not_make_it_active() -> None:
    leader = LeaderHarness(starting())
    leader.hear(running(next_frame=10))
    assert leader.event() is None


def test_a_report_of_another_epochs_frame_does_not_make_it_active() -> None:
    leader = LeaderHarness(starting())
    leader.hear(running(EPOCH - 1, next_frame=11))
    assert leader.event() is None


# --- whole, first of all


@pytest.mark.parametrize("state", [State.IN_STARTUP_PROCESSING, State.ACTIVE])
def test_whole_completes(state: State) -> None:
    leader = LeaderHarness(ScenarioView(scenario(state), whole_progress()))
    leader.hear(running())
    event = leader.event()
    assert event is not None
    assert (event.kind, event.epoch) == (Kind.COMPLETED, EPOCH)


@pytest.mark.parametrize("reason", list(EndReason))
def test_whole_comes_before_whatever_the_runner_says(reason: EndReason) -> None:
    leader = LeaderHarness(ScenarioView(scenario(), whole_progress()))
    leader.hear(ended(reason, fatal=True, error=FATAL))
    event = leader.event()
    assert event is not None
    assert event.kind is Kind.COMPLETED


def test_whole_waits_for_no_inbox_and_no_runner() -> None:
    leader = LeaderHarness(ScenarioView(scenario(), whole_progress()), hearing_since_s=None)
    leader.inbox_s = None
    event = leader.event()
    assert event is not None
    assert event.kind is Kind.COMPLETED


def test_what_was_found_before_the_databases_clock_went_back_waits_for_the_inbox_and_no_longer() -> None:
    leader = LeaderHarness(active(), inbox_s=10.0)
    leader.hear(ended(EndReason.FINISHED))
    assert leader.event() is None
    leader.db_s -= 3600.0
    assert leader.event() is None
    leader.inbox_s = 0.0
    event = leader.event()
    assert event is not None
    assert event.kind is Kind.LOST


def test_nothing_but_progress_completes() -> None:
    leader = LeaderHarness(active())
    leader.hear(ended(EndReason.FINISHED))
    event = leader.event()
    assert event is not None
    assert (event.kind, event.attempt, event.reason) == (Kind.LOST, 1, "ended without being whole")


# --- an error that no retry mends


def test_a_fatal_error_fails_at_the_first_attempt() -> None:
    leader = LeaderHarness(active())
    leader.hear(ended(EndReason.ERROR, error=FATAL, fatal=True, detail="tail"))
    event = leader.event()
    assert event is not None
    assert (event.kind, event.error, event.detail, event.epoch) == (Kind.FAILED, FATAL, "tail", EPOCH)


def test_a_fatal_error_waits_for_the_inbox() -> None:
    leader = LeaderHarness(active(), inbox_s=2.0)
    leader.hear(ended(EndReason.ERROR, error=FATAL, fatal=True))
    assert leader.event() is None
    assert leader.event(1.0) is None
    assert leader.event(1.5) is not None


def test_an_error_that_a_retry_may_mend_is_a_loss() -> None:
    leader = LeaderHarness(active())
    leader.hear(ended(EndReason.ERROR, error=FATAL))
    event = leader.event()
    assert event is not None
    assert event.kind is Kind.LOST


def test_a_fatal_error_of_another_epoch_says_nothing() -> None:
    leader = LeaderHarness(active())
    leader.hear(ended(EndReason.ERROR, EPOCH - 1, error=FATAL, fatal=True))
    assert leader.event() is None


# --- holes


def test_a_hole_is_a_loss_at_once_though_the_inbox_is_behind() -> None:
    leader = LeaderHarness(active(hole_epoch=EPOCH))
    leader.inbox_s = None
    leader.hear(running())
    event = leader.event()
    assert event is not None
    assert (event.kind, event.reason, event.attempt) == (Kind.LOST, "hole", 1)


def test_a_hole_of_an_older_epoch_is_none() -> None:
    leader = LeaderHarness(active(hole_epoch=EPOCH - 1))
    leader.hear(running())
    assert leader.event() is None


def test_a_frame_that_is_a_hole_at_every_attempt_is_skipped_on_request() -> None:
    poisoned = scenario(resume_frame=12, attempt=4, skips_poison=True)
    leader = LeaderHarness(ScenarioView(poisoned, progress(hole_epoch=EPOCH)))
    leader.hear(running())
    event = leader.event()
    assert event is not None
    assert event.kind is Kind.SKIPPED


# --- lost


@pytest.mark.parametrize(
    "reason", [EndReason.CRASHED, EndReason.HUNG, EndReason.MEMORY, EndReason.ERROR, EndReason.FINISHED]
)
def test_a_crash_a_hang_the_memory_cap_and_an_error_are_losses(reason: EndReason) -> None:
    leader = LeaderHarness(active())
    leader.hear(ended(reason))
    event = leader.event()
    assert event is not None
    assert (event.kind, event.attempt) == (Kind.LOST, 1)


def test_a_loss_waits_until_the_inbox_has_caught_up_past_the_moment_it_was_heard_of() -> None:
    leader = LeaderHarness(active(), inbox_s=3.0)
    leader.hear(ended(EndReason.CRASHED))
    assert leader.silence(2.5) == []
    assert [event.kind for event in leader.silence(1.5)] == [Kind.LOST]


def test_a_loss_waits_for_ever_while_nobody_knows_what_is_stored() -> None:
    leader = LeaderHarness(active())
    leader.inbox_s = None
    assert leader.events_while_it_hears(ended(EndReason.CRASHED), seconds=120) == []


def test_the_moment_counts_from_the_first_report_that_lists_the_end() -> None:
    leader = LeaderHarness(active(), inbox_s=2.0)
    assert leader.events_while_it_hears(ended(EndReason.CRASHED), seconds=2.0) == []
    assert [event.kind for event in leader.events_while_it_hears(ended(EndReason.CRASHED), seconds=1.0)] == [Kind.LOST]


def test_a_frame_that_felled_its_worker_in_inference_is_the_culprit() -> None:
    poisoned = scenario(resume_frame=12, attempt=4, skips_poison=True)
    leader = LeaderHarness(ScenarioView(poisoned, progress()))
    leader.hear(ended(EndReason.CRASHED, waits_for=WorkerWait.INFERENCE))
    event = leader.event()
    assert event is not None
    assert event.kind is Kind.SKIPPED


# --- the runner lease


def test_a_runner_that_is_silent_for_its_lease_is_lost() -> None:
    leader = LeaderHarness(active())
    leader.hear(running())
    assert leader.silence(2.5) == []
    events = leader.silence(1.0)
    assert [(event.kind, event.reason, event.attempt) for event in events] == [(Kind.LOST, "runner lost", 1)]


def test_nobody_is_called_dead_while_the_leader_hears_no_probes() -> None:
    leader = LeaderHarness(active())
    leader.hear(running())
    leader.hearing_since_s = None
    assert leader.silence(120.0) == []


def test_every_runner_has_a_whole_lease_when_the_probes_return() -> None:
    leader = LeaderHarness(active())
    leader.hear(running())
    leader.hearing_since_s = None
    leader.silence(60.0)
    leader.hearing_since_s = leader.now_s
    assert leader.silence(2.5) == []
    assert [event.kind for event in leader.silence(1.0)] == [Kind.LOST]


def test_a_new_leader_gives_every_runner_a_whole_lease() -> None:
    leader = LeaderHarness(active())
    leader.hear(running())
    leader.silence(2.5)
    leader.memory = LeaderState()
    assert leader.silence(3.0) == []
    assert [event.kind for event in leader.silence(1.0)] == [Kind.LOST]


def test_a_runner_that_speaks_again_before_the_inbox_has_caught_up_is_not_lost() -> None:
    leader = LeaderHarness(active(), inbox_s=5.0)
    leader.hear(running())
    assert leader.silence(4.0) == []
    assert leader.events_while_it_hears(running(), seconds=20) == []


def test_an_overtaken_report_renews_no_lease() -> None:
    leader = LeaderHarness(active())
    leader.hear(running())
    leader.hear(running())
    leader.silence(2.5)
    leader.memory = apply_report(leader.memory, Report("r1", "default", 1, 4, 0, False, (running(),)), leader.now_s)
    assert [event.kind for event in leader.silence(1.0)] == [Kind.LOST]


# --- ways back that do not count


@pytest.mark.parametrize("reason", [EndReason.STOPPED, EndReason.REFUSED, EndReason.HANDED_OVER, EndReason.CUT_OFF])
def test_ended_without_a_failure_goes_back_uncounted(reason: EndReason) -> None:
    leader = LeaderHarness(ScenarioView(scenario(attempt=3, resume_frame=12), progress()))
    leader.hear(ended(reason))
    event = leader.event()
    assert event is not None
    assert (event.kind, event.reason, event.attempt) == (Kind.RETURNED, reason, None)


@pytest.mark.parametrize("reason", [EndReason.STOPPED, EndReason.REFUSED, EndReason.HANDED_OVER, EndReason.CUT_OFF])
def test_a_way_back_waits_for_the_inbox(reason: EndReason) -> None:
    leader = LeaderHarness(active(), inbox_s=3.0)
    leader.hear(ended(reason))
    assert leader.silence(2.0) == []
    assert [event.kind for event in leader.silence(2.0)] == [Kind.RETURNED]


def test_what_a_draining_runner_does_not_list_goes_back_uncounted() -> None:
    leader = LeaderHarness(starting())
    leader.hear(draining=True)
    event = leader.event()
    assert event is not None
    assert (event.kind, event.reason) == (Kind.RETURNED, EndReason.HANDED_OVER)


def test_the_silence_of_a_runner_that_has_drained_is_no_death() -> None:
    leader = LeaderHarness(starting(), inbox_s=20.0)
    leader.hear(draining=True)
    events = leader.silence(30.0)
    assert [event.kind for event in events] == [Kind.RETURNED]


def test_what_a_draining_runner_lists_running_is_lost_with_it() -> None:
    leader = LeaderHarness(active())
    leader.hear(running(), draining=True)
    assert [event.kind for event in leader.silence(4.0)] == [Kind.LOST]


# --- not taken


def test_a_deploy_that_is_not_listed_is_given_again_after_a_second_and_each_second() -> None:
    leader = LeaderHarness(starting())
    leader.events_while_it_hears(seconds=1.0)
    assert leader.commands_of("deploy") == []
    leader.events_while_it_hears(seconds=4.0)
    assert leader.commands_of("deploy") == [OutgoingCommand("r1", None, "deploy", UUID, EPOCH)] * 4


def test_unlisted_in_the_reports_of_five_seconds_more_is_not_taken_and_marks_the_runner() -> None:
    leader = LeaderHarness(starting())
    assert leader.events_while_it_hears(seconds=6.0, taken=7) == []
    events = leader.events_while_it_hears(seconds=1.5, taken=7)
    assert [(event.kind, event.reason, event.attempt) for event in events] == [(Kind.RETURNED, "not_taken", None)]
    assert leader.mark == 7


def test_not_taken_waits_for_the_inbox() -> None:
    leader = LeaderHarness(starting(), inbox_s=10.0)
    assert leader.events_while_it_hears(seconds=15.0) == []
    assert [event.kind for event in leader.events_while_it_hears(seconds=4.0)] == [Kind.RETURNED]


def test_a_deploy_that_is_taken_at_last_is_left_alone() -> None:
    leader = LeaderHarness(starting())
    leader.events_while_it_hears(seconds=5.0)
    assert leader.events_while_it_hears(running(next_frame=10), seconds=10.0) == []
    assert leader.mark is None


def test_only_reports_count_for_not_taken() -> None:
    leader = LeaderHarness(starting())
    leader.hear()
    leader.hearing_since_s = None
    assert leader.silence(60.0) == []
    assert leader.commands_of("deploy") == []


def test_the_time_without_kafka_is_none_in_which_a_runner_took_nothing() -> None:
    leader = LeaderHarness(starting())
    leader.events_while_it_hears(seconds=2.0)
    leader.hearing_since_s = None
    leader.silence(60.0)
    leader.hearing_since_s = leader.now_s
    assert leader.events_while_it_hears(seconds=5.0) == []
    assert [event.kind for event in leader.events_while_it_hears(seconds=2.0)] == [Kind.RETURNED]


def test_no_deploy_is_given_again_while_a_copy_waits_unpublished() -> None:
    leader = LeaderHarness(starting(deploy_waits=True))
    assert leader.events_while_it_hears(seconds=30.0) == []
    assert leader.commands_of("deploy") == []


def test_a_scenario_whose_deploy_kafka_refuses_fails_and_no_runner_is_blamed() -> None:
    leader = LeaderHarness(starting(deploy_refused="Broker: Message size too large"))
    [event] = leader.events_while_it_hears(seconds=1.0)
    assert (event.kind, event.reason) == (Kind.FAILED, "deploy_refused")
    assert event.error is not None
    assert "(Broker: Message size too large); ask for fewer labels" in event.error.message
    assert leader.mark is None


def test_a_copy_that_kafka_refuses_takes_no_scenario_from_the_runner_that_has_it() -> None:
    leader = LeaderHarness(starting(deploy_refused="Broker: Message size too large"))
    leader.hear(running(next_frame=10))
    assert leader.event() is None


def test_a_runner_is_not_blamed_before_its_deploy_was_published() -> None:
    leader = LeaderHarness(starting(deploy_waits=True))
    leader.events_while_it_hears(seconds=30.0)
    leader.known = [starting()]
    assert leader.events_while_it_hears(seconds=6.0) == []
    assert [event.kind for event in leader.events_while_it_hears(seconds=1.5)] == [Kind.RETURNED]


def test_a_copy_given_again_that_waits_for_a_moment_does_not_start_the_time_anew() -> None:
    leader = LeaderHarness(starting())
    events: list[Event] = []
    while not events and leader.now_s < 130.0:
        before = len(leader.commands_of("deploy"))
        events = leader.events_while_it_hears(seconds=0.5)
        waits_now = len(leader.commands_of("deploy")) > before  # the relay takes it up after the next tick
        leader.known = [starting(deploy_waits=waits_now)]
    assert [event.reason for event in events] == ["not_taken"]
    assert leader.now_s < 110.0


def test_a_runner_is_not_blamed_while_a_copy_waits_unpublished() -> None:
    leader = LeaderHarness(starting())
    leader.events_while_it_hears(seconds=3.0)
    leader.known = [starting(deploy_waits=True)]
    assert leader.events_while_it_hears(seconds=30.0) == []
    leader.known = [starting()]
    assert [event.reason for event in leader.events_while_it_hears(seconds=1.0)] == ["not_taken"]


def test_unlisted_by_an_older_epochs_entry_is_unlisted() -> None:
    leader = LeaderHarness(starting())
    assert [event.kind for event in leader.events_while_it_hears(running(EPOCH - 1), seconds=8.0)] == [Kind.RETURNED]


# --- marked runners


def marked_leader(*known: ScenarioView) -> LeaderHarness:
    """A leader by whom r1 is marked, at 7 commands taken; its scenario went back."""
    leader = LeaderHarness(starting())
    leader.events_while_it_hears(seconds=8.0, taken=7)
    assert leader.mark == 7
    leader.known, leader.commands = known, []
    return leader


def test_a_marked_runner_gets_no_scenario() -> None:
    leader = marked_leader(waiting_scenario())
    assert leader.events_while_it_hears(seconds=10.0, taken=7) == []


def test_a_marked_runner_is_pinged_each_two_seconds() -> None:
    leader = marked_leader()
    leader.events_while_it_hears(seconds=10.0, taken=7)
    assert leader.commands_of("ping") == [OutgoingCommand("r1", Ping("r1"), "ping", "r1", 0)] * 5


def test_the_mark_goes_when_the_count_of_taken_commands_grows() -> None:
    leader = marked_leader(waiting_scenario())
    leader.hear(taken=8)
    assert leader.mark is None
    assert [event.kind for event in leader.events_while_it_hears(seconds=1.0, taken=8)] == [Kind.ASSIGNED]


def test_the_mark_stays_while_the_count_stays() -> None:
    leader = marked_leader()
    leader.events_while_it_hears(seconds=30.0, taken=7)
    assert leader.mark == 7


def test_a_runner_that_is_not_marked_is_not_pinged() -> None:
    leader = LeaderHarness(active())
    leader.events_while_it_hears(running(), seconds=10.0)
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


@pytest.mark.parametrize("known", UNWANTED)
def test_what_runs_unwanted_is_stopped_and_again_each_two_seconds_until_it_is_unlisted(
    known: list[ScenarioView],
) -> None:
    leader = LeaderHarness(*known, hearing_since_s=None)
    for _ in range(10):
        leader.hear(running())
        leader.tick(0.5)
    assert leader.commands_of("stop") == [OutgoingCommand("r1", StopWork(UUID, EPOCH), "stop", UUID, EPOCH)] * 3
    leader.commands = []
    for _ in range(10):
        leader.hear()
        leader.tick(0.5)
    assert leader.commands_of("stop") == []


@pytest.mark.parametrize("known", UNWANTED[:-1])
def test_what_has_ended_unwanted_is_forgotten_and_again_until_it_is_unlisted(known: list[ScenarioView]) -> None:
    leader = LeaderHarness(*known, hearing_since_s=None)
    for _ in range(10):
        leader.hear(ended(EndReason.STOPPED))
        leader.tick(0.5)
    assert leader.commands_of("forget") == [OutgoingCommand("r1", Forget(UUID, EPOCH), "forget", UUID, EPOCH)] * 3
    leader.commands = []
    for _ in range(10):
        leader.hear()
        leader.tick(0.5)
    assert leader.commands_of("forget") == []


def test_what_has_ended_is_not_forgotten_while_its_scenario_shuts_down_which_it_ends_soon() -> None:
    leader = LeaderHarness(ScenarioView(scenario(State.INIT_SHUTDOWN), progress()))
    leader.hear(ended(EndReason.ERROR))
    leader.tick()
    leader.known = [shutting_down()]
    [event] = leader.events_while_it_hears(ended(EndReason.ERROR), seconds=1.0)
    assert (event.kind, event.reason) == (Kind.DRAINED, "ended, inbox caught up")
    assert leader.commands_of("forget") == []
    leader.known = []
    leader.hear(ended(EndReason.ERROR))
    leader.tick()
    assert leader.commands_of("forget") == [OutgoingCommand("r1", Forget(UUID, EPOCH), "forget", UUID, EPOCH)]


def test_what_is_wanted_is_never_forgotten() -> None:
    leader = LeaderHarness(active(), inbox_s=1000.0)
    leader.events_while_it_hears(ended(EndReason.CRASHED), seconds=30.0)
    assert leader.commands_of("forget") == []


def test_a_silent_runner_is_told_nothing() -> None:
    leader = LeaderHarness()
    leader.hear(running())
    leader.silence(3.5)
    leader.commands = []
    leader.silence(20.0)
    assert leader.commands == []


def test_nothing_is_sent_where_nothing_is_listed() -> None:
    leader = LeaderHarness()
    leader.events_while_it_hears(seconds=30.0)
    assert leader.commands == []


# --- shutting down


def test_a_shutdown_is_taken_at_once() -> None:
    leader = LeaderHarness(ScenarioView(scenario(State.INIT_SHUTDOWN), progress()))
    event = leader.event()
    assert event is not None
    assert (event.kind, event.epoch) == (Kind.TAKEN, EPOCH)


def drain_reasons(events: Sequence[Event | None]) -> list[str]:
    return [event.reason for event in events if event is not None and event.kind is Kind.DRAINED]


def test_what_was_never_assigned_is_drained() -> None:
    leader = LeaderHarness(ScenarioView(scenario(State.IN_SHUTDOWN_PROCESSING, epoch=0, runner=None), Progress()))
    leader.inbox_s = None
    assert drain_reasons([leader.event()]) == ["never assigned"]


@pytest.mark.parametrize("reason", [EndReason.FINISHED, EndReason.STOPPED, EndReason.HANDED_OVER])
def test_a_stored_end_marker_of_the_epoch_is_drained_whatever_its_reason(reason: EndReason) -> None:
    leader = LeaderHarness(shutting_down(end_epoch=EPOCH, end_last_frame=11, end_reason=reason))
    leader.inbox_s = None
    leader.hear(running())
    assert drain_reasons([leader.event()]) == ["end marker stored"]


def test_an_end_marker_of_an_older_epoch_drains_nothing() -> None:
    leader = LeaderHarness(shutting_down(end_epoch=EPOCH - 1, end_last_frame=11, end_reason=EndReason.STOPPED))
    assert leader.events_while_it_hears(running(), seconds=10.0) == []


def test_listed_ended_is_drained_once_the_inbox_has_caught_up() -> None:
    leader = LeaderHarness(shutting_down(), inbox_s=3.0)
    leader.hear(ended(EndReason.CRASHED))
    assert leader.silence(2.0) == []
    assert drain_reasons(leader.silence(2.0)) == ["ended, inbox caught up"]


def test_ended_and_then_forgotten_is_drained_as_soon_as_if_it_were_listed_still() -> None:
    leader = LeaderHarness(shutting_down(), inbox_s=3.0)
    leader.hear(ended(EndReason.CRASHED))
    leader.tick()
    leader.hear()
    assert drain_reasons(leader.events_while_it_hears(seconds=4.0)) == ["ended, inbox caught up"]


def test_a_runner_whose_lease_is_over_is_drained_once_the_inbox_has_caught_up() -> None:
    leader = LeaderHarness(shutting_down(), inbox_s=3.0)
    leader.hear(running())
    assert leader.silence(5.5) == []
    assert drain_reasons(leader.silence(2.0)) == ["lease_over, inbox caught up"]


def test_unlisted_is_drained_after_its_time_once_the_inbox_has_caught_up() -> None:
    leader = LeaderHarness(shutting_down(), inbox_s=3.0)
    assert leader.events_while_it_hears(seconds=8.0) == []
    assert drain_reasons(leader.events_while_it_hears(seconds=4.0)) == ["not_taken, inbox caught up"]


def test_a_draining_runner_that_does_not_list_it_is_drained_of_it() -> None:
    leader = LeaderHarness(shutting_down())
    leader.hear(draining=True)
    assert drain_reasons([leader.event()]) == ["left, inbox caught up"]


@pytest.mark.parametrize("entries", [[ended(EndReason.CRASHED)], []])
def test_nothing_is_drained_while_nobody_knows_what_is_stored(entries: list[Entry]) -> None:
    leader = LeaderHarness(shutting_down())
    leader.inbox_s = None
    assert leader.events_while_it_hears(*entries, seconds=60.0) == []


def test_still_running_after_thirty_seconds_of_stops_is_drained_and_marks_the_runner() -> None:
    leader = LeaderHarness(shutting_down())
    assert leader.events_while_it_hears(running(), seconds=29.0, taken=3) == []
    assert len(leader.commands_of("stop")) == 15
    assert drain_reasons(leader.events_while_it_hears(running(), seconds=2.0, taken=3)) == [
        "still running after 30 s of stops"
    ]
    assert leader.mark == 3


def test_the_thirty_seconds_of_stops_do_not_pass_while_kafka_is_away() -> None:
    leader = LeaderHarness(shutting_down())
    leader.events_while_it_hears(running(), seconds=1.0)
    leader.hearing_since_s = None
    assert leader.silence(60.0) == []
    leader.hearing_since_s = leader.now_s
    assert leader.events_while_it_hears(running(), seconds=25.0) == []
    assert leader.mark is None


# --- placing


def test_what_is_due_goes_to_a_runner_with_a_free_slot() -> None:
    leader = LeaderHarness(ScenarioView(Scenario(UUID), Progress()))
    leader.hear(runner="r1")
    event = leader.event()
    assert event is not None
    assert (event.kind, event.epoch, event.runner, event.resume_frame) == (Kind.ASSIGNED, 0, "r1", 0)
    assert event.new_epoch == int((DB_S + leader.now_s) * 1000)


def test_a_redeployment_resumes_at_the_next_frame() -> None:
    leader = LeaderHarness(waiting_scenario())
    leader.hear()
    event = leader.event()
    assert event is not None
    assert event.resume_frame == 10


def test_a_frame_stored_since_the_scenario_came_back_starts_the_count_again() -> None:
    leader = LeaderHarness(ScenarioView(scenario(State.INIT_STARTUP, attempt=4), progress(next_frame=11)))
    leader.hear()
    event = leader.event()
    assert event is not None
    assert (event.resume_frame, event.attempt) == (11, 0)


def test_no_frame_stored_since_leaves_the_count() -> None:
    leader = LeaderHarness(waiting_scenario(attempt=4))
    leader.hear()
    event = leader.event()
    assert event is not None
    assert event.attempt is None


def test_what_is_not_due_waits() -> None:
    leader = LeaderHarness(msgspec.structs.replace(waiting_scenario(), due=False))
    assert leader.events_while_it_hears(seconds=5.0) == []


def test_a_scenario_avoids_the_runner_that_it_came_back_from() -> None:
    leader = LeaderHarness(waiting_scenario(attempt=1))
    leader.hear(runner="r1", capacity=9)
    leader.hear(runner="r2", capacity=1)
    event = leader.event()
    assert event is not None
    assert event.runner == "r2"


def test_a_scenario_goes_back_to_the_same_runner_where_there_is_no_other() -> None:
    leader = LeaderHarness(waiting_scenario(attempt=1))
    leader.hear(runner="r1")
    event = leader.event()
    assert event is not None
    assert event.runner == "r1"


def slots(leader: LeaderHarness) -> dict[str, int]:
    world = Snapshot(leader.known, leader.now_s, DB_S, None, leader.hearing_since_s)
    return {one.runner: one.free for one in find_free_slots(build_tick_context(leader.memory, world, LIMITS, TIMING))}


def test_a_draining_runner_has_no_slots() -> None:
    leader = LeaderHarness()
    leader.hear(draining=True)
    assert slots(leader) == {}


def test_a_silent_runner_has_no_slots() -> None:
    leader = LeaderHarness()
    leader.hear()
    leader.now_s += 3.0
    assert slots(leader) == {}


def test_no_runner_has_slots_while_the_leader_hears_no_probes() -> None:
    leader = LeaderHarness(hearing_since_s=None)
    leader.hear()
    assert slots(leader) == {}


def test_a_runner_of_another_pool_gets_nothing() -> None:
    leader = LeaderHarness(waiting_scenario())
    leader.memory = apply_report(leader.memory, Report("r1", "gpu", 1, 4, 0, False), leader.now_s)
    assert leader.event() is None


def test_each_pool_places_its_own() -> None:
    gpu = ScenarioView(
        msgspec.structs.replace(waiting_scenario().scenario, scenario_uuid=OTHER, pool="gpu"), progress()
    )
    leader = LeaderHarness(waiting_scenario(), gpu)
    leader.hear(runner="r1")
    leader.memory = apply_report(leader.memory, Report("r2", "gpu", 1, 4, 0, False), leader.now_s)
    plan = leader.tick()
    assert {(known.scenario.pool, event.runner) for known, event in plan.events} == {("default", "r1"), ("gpu", "r2")}


def test_a_command_goes_to_the_pool_of_its_runner() -> None:
    leader = LeaderHarness()
    leader.memory = apply_report(leader.memory, Report("r2", "gpu", 1, 4, 0, False, (running(),)), leader.now_s)
    assert [(command.kind, command.pool) for command in leader.tick().commands] == [("stop", "gpu")]


def test_vacancies_are_the_free_slots_of_each_pool_and_no_more_than_one_tick_places() -> None:
    leader = LeaderHarness(starting())
    leader.hear(runner="r1", capacity=3)
    leader.hear(runner="r3", capacity=1000)
    leader.memory = apply_report(leader.memory, Report("r2", "gpu", 1, 4, 0, False), leader.now_s)
    world = Snapshot(leader.known, leader.now_s, DB_S, None, leader.hearing_since_s)
    assert count_free_slots(leader.memory, world, TIMING) == {"default": TIMING.max_assignments, "gpu": 4}


def test_a_slot_is_held_from_the_assignment_on_and_counted_once() -> None:
    leader = LeaderHarness(starting(), ScenarioView(scenario(uuid=OTHER), progress()))
    leader.hear(running(uuid=OTHER), capacity=4)
    assert slots(leader) == {"r1": 2}


def test_what_runs_unwanted_holds_its_slot_until_it_has_ended() -> None:
    leader = LeaderHarness()
    leader.hear(running(), capacity=1)
    assert slots(leader) == {"r1": 0}
    leader.hear(ended(EndReason.STOPPED), capacity=1)
    assert slots(leader) == {"r1": 1}


def test_a_tick_places_no_more_than_its_limit() -> None:
    known = [ScenarioView(Scenario(f"01930000-0000-7000-8000-{n:012x}"), Progress()) for n in range(150)]
    leader = LeaderHarness(*known)
    leader.hear(capacity=1000)
    assert len(leader.tick().events) == TIMING.max_assignments


def test_the_death_of_a_runner_moves_all_its_work_in_one_tick() -> None:
    known = [ScenarioView(scenario(uuid=f"01930000-0000-7000-8000-{n:012x}"), progress()) for n in range(50)]
    leader = LeaderHarness(*known)
    leader.tick()  # a new leader: the runner has a whole lease from here
    leader.tick(2.9)
    assert [event.kind for _, event in leader.tick().events] == [Kind.LOST] * 50


def test_one_scenario_gets_one_event_a_tick() -> None:
    leader = LeaderHarness(active(hole_epoch=EPOCH), waiting_scenario(OTHER))
    leader.hear(ended(EndReason.CRASHED))
    uuids = [known.scenario.scenario_uuid for known, _ in leader.tick().events]
    assert sorted(uuids) == [UUID, OTHER]


# --- what is remembered


def test_a_runner_that_nobody_names_is_forgotten_after_a_minute() -> None:
    leader = LeaderHarness()
    leader.hear()
    leader.tick(59.0)
    assert "r1" in leader.memory.runners
    leader.tick(2.0)
    assert "r1" not in leader.memory.runners


def test_nothing_is_remembered_of_scenarios_that_are_done() -> None:
    leader = LeaderHarness(active(), inbox_s=1000.0)
    leader.hear(ended(EndReason.CRASHED), running(uuid=OTHER))
    leader.tick()
    assert (len(leader.memory.findings), len(leader.memory.last_sent_s)) == (1, 1)
    leader.known = []
    leader.hear()
    leader.tick()
    assert (len(leader.memory.findings), len(leader.memory.last_sent_s)) == (0, 0)
