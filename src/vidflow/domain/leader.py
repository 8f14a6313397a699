"""The leader's input and memory: scenarios, runner reports, findings and timing. The decisions are in reconcile.py.

Times in `_s` are the leader's monotonic seconds. Times in `_db_s` are seconds of the database clock, since they are compared
with the time up to which the inbox has caught up. `ScenarioView.since_s` is of the database clock, too; it orders the queue.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum

import msgspec

from vidflow.domain.lease import is_runner_lease_expired
from vidflow.domain.messages import Command, Entry, Report
from vidflow.domain.progress import Progress
from vidflow.domain.scenario import DEFAULT_POOL, Event, RetryPolicy, Scenario


class Timing(msgspec.Struct, frozen=True):
    """The leader's intervals and timeouts in seconds. `max_assignments` limits the assignments of one tick in one pool.

    A runner reports each second, so one that has been silent for `missed_report_s` may be dead. Slots are kept free for its
    scenarios until `keep_slot_s` after the end of its lease, not longer, since an inbox that is away may delay their loss.
    """

    resend_deploy_s: float = 1.0
    resend_s: float = 2.0
    take_timeout_s: float = 5.0
    stop_timeout_s: float = 30.0
    runner_lease_s: float = 3.0
    missed_report_s: float = 1.25
    keep_slot_s: float = 3.0
    forget_runner_s: float = 60.0
    max_assignments: int = 100


CommandKey = tuple[str, str, str, int]
"""Identifies a command in the leader's memory: runner, kind, scenario_uuid, epoch."""


class ScenarioView(msgspec.Struct, frozen=True):
    """An unfinished scenario as stored in the database.

    `due`: its backoff is over. `deploy_waits`: its deploy is still in the outbox. `deploy_refused`: the error with which Kafka
    refused its deploy.
    """

    scenario: Scenario
    progress: Progress
    priority: int = 0
    since_s: float = 0.0
    due: bool = True
    deploy_waits: bool = False
    deploy_refused: str | None = None


class RunnerView(msgspec.Struct, frozen=True):
    """What the leader knows of a runner: its last report (None: only the tables name it) and when it arrived.

    `mark` is set on a runner that reports but takes no commands. It is the report's `taken` count at that moment.
    """

    last_seen_s: float
    report: Report | None = None
    mark: int | None = None


class Cause(StrEnum):
    """Why a scenario may be taken from its runner, or why the runner is done with it."""

    ENDED = "ended"
    LEASE_OVER = "lease_over"
    LEFT = "left"
    UNLISTED = "unlisted"
    NOT_TAKEN = "not_taken"
    RUNS_ON = "runs_on"


class Finding(msgspec.Struct, frozen=True):
    """A cause, the epoch that it concerns, and since when the leader has known it, on both clocks."""

    epoch: int
    cause: Cause
    since_s: float
    since_db_s: float

    def clamp_to(self, now_db_s: float) -> Finding:
        """Return the finding with `since_db_s` at most now. It lies in the future if the database clock has stepped back."""
        return msgspec.structs.replace(self, since_db_s=min(self.since_db_s, now_db_s))


class LeaderState(msgspec.Struct, frozen=True):
    """The leader's memory from tick to tick: runners, findings by scenario_uuid, and when each command was last sent."""

    runners: Mapping[str, RunnerView] = {}
    findings: Mapping[str, Finding] = {}
    last_sent_s: Mapping[CommandKey, float] = {}


class Snapshot(msgspec.Struct, frozen=True):
    """The state of the system that a tick starts from.

    `scenarios` holds those that a runner may have and the head of the queue, not the whole queue. All results that Kafka held
    before `caught_up_db_s` are stored (None: unknown). The leader has received its own probes without interruption since
    `probes_received_since_s` (None: it does not receive them now).
    """

    scenarios: Sequence[ScenarioView]
    now_s: float
    now_db_s: float
    caught_up_db_s: float | None
    probes_received_since_s: float | None


class OutgoingCommand(msgspec.Struct, frozen=True):
    """A command for a runner of `pool`. A deploy has no `command` yet: it is built from the tables when it is written."""

    runner: str
    command: Command | None
    kind: str
    scenario_uuid: str
    epoch: int
    pool: str = DEFAULT_POOL

    @property
    def key(self) -> CommandKey:
        """The key under which the leader remembers the command."""
        return self.runner, self.kind, self.scenario_uuid, self.epoch


class Plan(msgspec.Struct, frozen=True):
    """The outcome of a tick: the memory for the next one, the events to apply and the commands to send."""

    memory: LeaderState
    events: Sequence[tuple[ScenarioView, Event]]
    commands: Sequence[OutgoingCommand]


class TickContext(msgspec.Struct, frozen=True):
    """Everything that the decisions of one tick depend on.

    `entries` maps a runner and a scenario_uuid to the entry in the runner's last report.
    """

    snapshot: Snapshot
    runners: Mapping[str, RunnerView]
    retry_policy: RetryPolicy
    timing: Timing
    entries: Mapping[str, Mapping[str, Entry]]

    def entry(self, runner: str | None, scenario_uuid: str) -> Entry | None:
        """Return the scenario's entry in the runner's last report."""
        return self.entries.get(runner or "", {}).get(scenario_uuid)

    def is_silent(self, view: RunnerView) -> bool:
        """Return whether the runner's lease has expired."""
        return self.is_silent_for(view, self.timing.runner_lease_s)

    def is_silent_for(self, view: RunnerView, seconds: float) -> bool:
        """Return whether the runner has been silent for so long, not counting times when the leader heard nothing at all."""
        return is_runner_lease_expired(
            view.last_seen_s, self.snapshot.probes_received_since_s, self.snapshot.now_s, seconds
        )

    def is_caught_up(self, finding: Finding) -> bool:
        """Return whether all results that Kafka held at the time of the finding are stored."""
        return self.snapshot.caught_up_db_s is not None and self.snapshot.caught_up_db_s >= finding.since_db_s

    def reported_for_s(self, finding: Finding, view: RunnerView) -> float:
        """Return for how long reports have confirmed the finding. Silence and times without Kafka do not count."""
        if self.snapshot.probes_received_since_s is None:
            return 0.0
        return view.last_seen_s - max(finding.since_s, self.snapshot.probes_received_since_s)

    def build_finding(self, epoch: int, cause: Cause) -> Finding:
        """Return a finding that begins now."""
        return Finding(epoch, cause, self.snapshot.now_s, self.snapshot.now_db_s)


def apply_reports(memory: LeaderState, reports: Iterable[tuple[Report, float]]) -> LeaderState:
    """Return the memory after these reports, each given with the time of its arrival.

    A report that is not newer than the runner's last one has no effect. A mark is removed once the count of taken commands has
    grown.
    """
    runners = dict(memory.runners)
    for report, received_s in reports:
        view = runners.get(report.runner)
        if view and view.report and report.number <= view.report.number:
            continue
        mark = view.mark if view and view.mark is not None and report.taken <= view.mark else None
        runners[report.runner] = RunnerView(received_s, report, mark)
    return msgspec.structs.replace(memory, runners=runners)


def needs_tick(previous: Report | None, report: Report) -> bool:
    """Return whether the report calls for a tick. The progress of a running worker does not, except its first frame."""
    return previous is None or _select_tick_fields(previous) != _select_tick_fields(report)


def _select_tick_fields(report: Report) -> tuple[object, ...]:
    entries = [(e.scenario_uuid, e.epoch, e.reason, e.next_frame > 0) for e in report.entries]
    return report.draining, report.capacity, entries


def apply_written_plan(
    previous: LeaderState, plan: Plan, events: Collection[str], commands: Collection[CommandKey]
) -> LeaderState:
    """Return the memory after a plan that was written in part: the events of these scenarios, and these commands.

    The next tick decides the rest again. Its findings keep their age, and its commands do not count as sent.
    """
    unwritten = {item.scenario.scenario_uuid for item, _ in plan.events} - set(events)
    kept = {uuid: finding for uuid, finding in previous.findings.items() if uuid in unwritten}
    withheld = {command.key for command in plan.commands} - set(commands)
    sent = {key: sent_s for key, sent_s in plan.memory.last_sent_s.items() if key not in withheld}
    return LeaderState(plan.memory.runners, {**plan.memory.findings, **kept}, sent)
