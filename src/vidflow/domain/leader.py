"""What a leader has before it: the tables, the runners' reports, its own memory, and what silence and time mean. No verdicts.

Three clocks meet here. Times in `_s` are the leader's monotonic seconds. Times in `_db_s` are the database's, since they are
compared with the inbox's caught-up time. A scenario's `since_s` is the database's too, and orders what waits.
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
    """The leader's numbers, in seconds. `max_assignments` is the most that one tick places in one pool."""

    resend_deploy_s: float = 1.0
    resend_s: float = 2.0
    take_timeout_s: float = 5.0
    stop_timeout_s: float = 30.0
    runner_lease_s: float = 3.0
    forget_runner_s: float = 60.0
    max_assignments: int = 100


CommandKey = tuple[str, str, str, int]
"""A command as the leader remembers it: runner, kind, scenario_uuid, epoch."""


class ScenarioView(msgspec.Struct, frozen=True):
    """An unfinished scenario as the tables have it.

    `deploy_waits`: its deploy is still unpublished in the outbox. `deploy_refused`: why Kafka takes no such deploy.
    """

    scenario: Scenario
    progress: Progress
    priority: int = 0
    since_s: float = 0.0
    due: bool = True
    deploy_waits: bool = False
    deploy_refused: str | None = None


class RunnerView(msgspec.Struct, frozen=True):
    """What the leader holds of a runner: its last report (None: only the tables name it), when that came, and its mark.

    `mark` is the count of taken commands at which the runner was marked as one that reports but hears nothing.
    """

    last_seen_s: float
    report: Report | None = None
    mark: int | None = None


class Cause(StrEnum):
    """What may take a scenario away from its runner, or tells that it is done with it."""

    ENDED = "ended"
    LEASE_OVER = "lease_over"
    LEFT = "left"
    UNLISTED = "unlisted"
    NOT_TAKEN = "not_taken"
    RUNS_ON = "runs_on"


class Finding(msgspec.Struct, frozen=True):
    """A cause, of which deployment, and since when the leader has known it, on both clocks."""

    epoch: int
    cause: Cause
    since_s: float
    since_db_s: float

    def clamp_to(self, now_db_s: float) -> Finding:
        """As it is, or since now, where the database's clock has gone back: by that clock it is still to come."""
        return msgspec.structs.replace(self, since_db_s=min(self.since_db_s, now_db_s))


class LeaderState(msgspec.Struct, frozen=True):
    """All that a leader remembers from tick to tick: the runners, its findings, and when it last gave which command."""

    runners: Mapping[str, RunnerView] = {}
    findings: Mapping[str, Finding] = {}
    last_sent_s: Mapping[CommandKey, float] = {}


class Snapshot(msgspec.Struct, frozen=True):
    """What the leader looks at in a tick.

    `scenarios` holds the scenarios that a runner may have and the first of the queue, not all that waits. What was in the results'
    partitions before `caught_up_db_s` is stored (None: not known). The leader has heard its own probes without a break since
    `probes_received_since_s` (None: it does not now).
    """

    scenarios: Sequence[ScenarioView]
    now_s: float
    now_db_s: float
    caught_up_db_s: float | None
    probes_received_since_s: float | None


class OutgoingCommand(msgspec.Struct, frozen=True):
    """A command for a runner of `pool`. A deploy is named only; its body is made from the tables when it is written."""

    runner: str
    command: Command | None
    kind: str
    scenario_uuid: str
    epoch: int
    pool: str = DEFAULT_POOL

    @property
    def key(self) -> CommandKey:
        """What tells whether it was given before."""
        return self.runner, self.kind, self.scenario_uuid, self.epoch


class Plan(msgspec.Struct, frozen=True):
    """What follows from a tick: the memory for the next one, the events to apply, the commands to give."""

    memory: LeaderState
    events: Sequence[tuple[ScenarioView, Event]]
    commands: Sequence[OutgoingCommand]


class TickContext(msgspec.Struct, frozen=True):
    """One look of the leader: the world, the runners as it knows them, and the numbers by which it judges.

    `entries`: of each runner the entries of its last report, by scenario_uuid.
    """

    snapshot: Snapshot
    runners: Mapping[str, RunnerView]
    retry_policy: RetryPolicy
    timing: Timing
    entries: Mapping[str, Mapping[str, Entry]]

    def entry(self, runner: str | None, scenario_uuid: str) -> Entry | None:
        """Return what the runner's last report says of the scenario."""
        return self.entries.get(runner or "", {}).get(scenario_uuid)

    def is_silent(self, view: RunnerView) -> bool:
        """Whether the runner's lease is over."""
        return is_runner_lease_expired(
            view.last_seen_s, self.snapshot.probes_received_since_s, self.snapshot.now_s, self.timing.runner_lease_s
        )

    def is_caught_up(self, finding: Finding) -> bool:
        """Whether all that lay in Kafka when the leader learned of it is stored."""
        return self.snapshot.caught_up_db_s is not None and self.snapshot.caught_up_db_s >= finding.since_db_s

    def reported_for_s(self, finding: Finding, view: RunnerView) -> float:
        """For how long reports have told of it. Silence tells nothing, and neither does a time without Kafka."""
        if self.snapshot.probes_received_since_s is None:
            return 0.0
        return view.last_seen_s - max(finding.since_s, self.snapshot.probes_received_since_s)

    def build_finding(self, epoch: int, cause: Cause) -> Finding:
        """A finding of this moment."""
        return Finding(epoch, cause, self.snapshot.now_s, self.snapshot.now_db_s)


def apply_report(memory: LeaderState, report: Report, now_s: float) -> LeaderState:
    """Return the memory with one more report, see `apply_reports`."""
    return apply_reports(memory, [(report, now_s)])


def apply_reports(memory: LeaderState, heard: Iterable[tuple[Report, float]]) -> LeaderState:
    """Return the memory with these reports, each with the time of its arrival.

    A report older than the runner's last one changes nothing. A mark goes when the count of taken commands has grown.
    """
    runners = dict(memory.runners)
    for report, heard_s in heard:
        view = runners.get(report.runner)
        if view and view.report and report.number <= view.report.number:
            continue
        mark = view.mark if view and view.mark is not None and report.taken <= view.mark else None
        runners[report.runner] = RunnerView(heard_s, report, mark)
    return msgspec.structs.replace(memory, runners=runners)


def needs_tick(before: Report | None, report: Report) -> bool:
    """Return whether the report says something worth a tick. The progress of a running worker is not, after its first frame."""
    return before is None or _select_tick_fields(before) != _select_tick_fields(report)


def _select_tick_fields(report: Report) -> tuple[object, ...]:
    entries = [(e.scenario_uuid, e.epoch, e.reason, e.next_frame > 0) for e in report.entries]
    return report.draining, report.capacity, entries


def apply_written_plan(
    before: LeaderState, plan: Plan, events: Collection[str], commands: Collection[CommandKey]
) -> LeaderState:
    """Return the memory after a plan of which only a part was written: the events of these scenarios and these commands.

    What was not written is found again in the next tick: its finding keeps its age, and its command is not taken for given.
    """
    unwritten = {known.scenario.scenario_uuid for known, _ in plan.events} - set(events)
    kept = {uuid: finding for uuid, finding in before.findings.items() if uuid in unwritten}
    withheld = {command.key for command in plan.commands} - set(commands)
    given = {key: given_s for key, given_s in plan.memory.last_sent_s.items() if key not in withheld}
    return LeaderState(plan.memory.runners, {**plan.memory.findings, **kept}, given)
