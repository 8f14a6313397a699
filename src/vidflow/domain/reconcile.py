"""What the leader makes of the tables and the runners' reports: the events to apply and the commands to give again.

The leader compares levels, it does not follow edges: each tick it takes all that it last heard and all that the tables know,
and says what should follow. Nothing that it remembers is the only trace of anything; a new leader starts with an empty Memory.

Three clocks meet here. Times in `_s` are the leader's monotonic seconds. Times in `_db_s` are the database's, since they are
compared with the inbox's caught-up time. Whatever takes a scenario away from its runner is acted on only once the inbox has
caught up past the moment at which the leader learned of it: what the worker had sent is then stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from vidflow.domain.lease import runner_lease_over
from vidflow.domain.messages import UNCOUNTED, Command, EndReason, Entry, Forget, Ping, Report, StopWork, Waiting
from vidflow.domain.placement import Slots, place
from vidflow.domain.placement import Waiting as WaitingScenario
from vidflow.domain.progress import Progress, ended, has_hole, whole
from vidflow.domain.scenario import (
    DEPLOYED,
    Event,
    Kind,
    Limits,
    Loss,
    Scenario,
    State,
    after_fatal,
    after_loss,
    after_return,
    next_epoch,
)  # fmt: skip


class Timing(msgspec.Struct, frozen=True):
    """The leader's numbers, in seconds. `assignments` is the most that one tick places."""

    deploy_again_s: float = 1.0
    repeat_s: float = 2.0
    not_taken_s: float = 5.0
    stops_s: float = 30.0
    runner_lease_s: float = 3.0
    forget_runner_s: float = 60.0
    assignments: int = 100


class Known(msgspec.Struct, frozen=True):
    """An unfinished scenario as the tables have it. `deploy_waits`: its deploy is still unpublished in the outbox."""

    scenario: Scenario
    progress: Progress
    priority: int = 0
    since_s: float = 0.0
    due: bool = True
    deploy_waits: bool = False


class RunnerView(msgspec.Struct, frozen=True):
    """What the leader holds of a runner: its last report (None: only the tables name it), when that came, and its mark.

    `mark` is the count of taken commands at which the runner was marked as one that reports but hears nothing.
    """

    heard_s: float
    report: Report | None = None
    mark: int | None = None

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The entries of the last report, by scenario_uuid."""
        return {entry.scenario_uuid: entry for entry in self.report.entries} if self.report else {}


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


class Memory(msgspec.Struct, frozen=True):
    """All that a leader remembers from tick to tick: the runners, its findings, and when it last gave which command."""

    runners: Mapping[str, RunnerView] = {}
    findings: Mapping[str, Finding] = {}
    given: Mapping[tuple[str, str, str, int], float] = {}


class World(msgspec.Struct, frozen=True):
    """What the leader looks at in a tick.

    `caught_up_db_s`: what was in the results' partitions before that time is stored (None: not known). `hearing_since_s`:
    since when the leader has heard its own probes without a break (None: it does not now).
    """

    known: Sequence[Known]
    now_s: float
    now_db_s: float
    caught_up_db_s: float | None
    hearing_since_s: float | None
    pool: str = "default"


class Given(msgspec.Struct, frozen=True):
    """A command for a runner. A deploy is named only; its body is made from the tables when it is written."""

    runner: str
    command: Command | None
    kind: str
    scenario_uuid: str
    epoch: int


class Plan(msgspec.Struct, frozen=True):
    """What follows from a tick: the memory for the next one, the events to apply, the commands to give."""

    memory: Memory
    events: Sequence[tuple[Known, Event]]
    commands: Sequence[Given]


class Judgement(msgspec.Struct, frozen=True):
    """What is made of one scenario: at most one event, what was found, and whether its runner is to be marked."""

    event: Event | None = None
    finding: Finding | None = None
    marks: bool = False
    deploy_again: bool = False


NOTHING: Final = Judgement()


def hear(memory: Memory, report: Report, now_s: float) -> Memory:
    """The memory with one more report. One that was overtaken by a newer changes nothing; a mark goes when commands are taken."""
    view = memory.runners.get(report.runner)
    if view and view.report and report.number <= view.report.number:
        return memory
    mark = view.mark if view and view.mark is not None and report.taken <= view.mark else None
    return _with_runner(memory, report.runner, RunnerView(now_s, report, mark))


def _with_runner(memory: Memory, runner: str, view: RunnerView) -> Memory:
    return msgspec.structs.replace(memory, runners={**memory.runners, runner: view})


def reconcile(memory: Memory, world: World, limits: Limits, timing: Timing) -> Plan:
    """One tick: each unfinished scenario is judged, each report answered, and what waits is placed."""
    runners = _runners(memory, world, timing)
    events: list[tuple[Known, Event]] = []
    findings: dict[str, Finding] = {}
    again: list[Known] = []
    for known in world.known:
        before = memory.findings.get(known.scenario.scenario_uuid)
        judgement = judge(known, runners, before, world, limits, timing)
        if judgement.finding:
            findings[known.scenario.scenario_uuid] = judgement.finding
        if judgement.marks:
            runners = _marked(runners, known.scenario.runner)
        if judgement.event:
            events.append((known, judgement.event))
        if judgement.deploy_again:
            again.append(known)
    events += assignments(world, runners, timing)
    wanted = [*(_deploy(known) for known in again), *answers(world, runners, timing), *pings(runners, world, timing)]
    commands, given = _due(wanted, memory.given, world.now_s, timing)
    return Plan(Memory(runners, findings, given), events, commands)


# --- judging one scenario


def judge(
    known: Known,
    runners: Mapping[str, RunnerView],
    before: Finding | None,
    world: World,
    limits: Limits,
    timing: Timing,
) -> Judgement:
    """What is made of one scenario, in the order: whole, error without retry, hole, lost, ways back, not taken."""
    state = known.scenario.state
    if state is State.INIT_SHUTDOWN:
        return Judgement(Event(kind=Kind.TAKEN, reason="taken", epoch=known.scenario.epoch))
    if state is State.IN_SHUTDOWN_PROCESSING:
        return _judge_shutdown(known, runners, before, world, timing)
    if state in DEPLOYED:
        return _judge_deployed(known, runners, before, world, limits, timing)
    return NOTHING


def _judge_deployed(
    known: Known,
    runners: Mapping[str, RunnerView],
    before: Finding | None,
    world: World,
    limits: Limits,
    timing: Timing,
) -> Judgement:
    scenario, progress = known.scenario, known.progress
    if whole(progress):
        return Judgement(Event(kind=Kind.COMPLETED, reason="whole", epoch=scenario.epoch))
    view = runners[scenario.runner or ""]
    entry = _own_entry(view, scenario)
    finding = _find(known, view, entry, before, world, timing)
    settled = finding is not None and _caught_up(world, finding)
    if settled and entry and entry.fatal and entry.error:
        return Judgement(after_fatal(scenario, entry.error, entry.detail))
    if has_hole(progress):
        loss = Loss("hole", progress.next_frame, progress.last_pts, at_frame=progress.next_frame)
        return Judgement(after_loss(scenario, loss, limits, _jitter(scenario)))
    if finding is None:
        return Judgement(_first_frame(scenario, progress, entry))
    if not settled or finding.cause is Cause.UNLISTED:
        return Judgement(finding=finding, deploy_again=_is_again_due(known, finding, view, world, timing))
    event = _taken_away(known, entry, finding, limits)
    return Judgement(event, marks=finding.cause is Cause.NOT_TAKEN)


def _find(
    known: Known, view: RunnerView, entry: Entry | None, before: Finding | None, world: World, timing: Timing
) -> Finding | None:
    """What is found now; known since before where it was found before."""
    cause = _cause(view, entry, world, timing)
    if cause is None:
        return None
    since = before if before and before.epoch == known.scenario.epoch else None
    if since and cause is Cause.UNLISTED:
        if since.cause in {Cause.ENDED, Cause.NOT_TAKEN}:
            return since  # an entry that had ended was forgotten: its epoch never runs again
        if since.cause is Cause.UNLISTED:
            return _still_unlisted(known, since, view, world, timing)
    if since and since.cause is cause:
        return since
    return Finding(known.scenario.epoch, cause, world.now_s, world.now_db_s)


def _still_unlisted(known: Known, since: Finding, view: RunnerView, world: World, timing: Timing) -> Finding:
    """Its time begins once the deploy is published; copies given again later do not start it anew, however long they wait."""
    told_s = _told_s(since, view, world)
    if known.deploy_waits and told_s < timing.deploy_again_s:
        return Finding(since.epoch, Cause.UNLISTED, world.now_s, world.now_db_s)
    if not known.deploy_waits and told_s >= timing.deploy_again_s + timing.not_taken_s:
        return Finding(since.epoch, Cause.NOT_TAKEN, world.now_s, world.now_db_s)
    return since


def _told_s(finding: Finding, view: RunnerView, world: World) -> float:
    """For how long reports have told of it. Silence tells nothing, and neither does a time without Kafka."""
    if world.hearing_since_s is None:
        return 0.0
    return view.heard_s - max(finding.since_s, world.hearing_since_s)


def _cause(view: RunnerView, entry: Entry | None, world: World, timing: Timing) -> Cause | None:
    if entry is not None and not entry.running:
        return Cause.ENDED
    left = view.report is not None and view.report.draining and entry is None
    if left:
        return Cause.LEFT  # a runner that drains leaves with its empty report: its silence afterwards is no death
    if _is_silent(view, world, timing):
        return Cause.LEASE_OVER
    if entry is None and view.report is not None:
        return Cause.UNLISTED
    return None


def _taken_away(known: Known, entry: Entry | None, finding: Finding, limits: Limits) -> Event:
    scenario, progress = known.scenario, known.progress
    if finding.cause is Cause.LEASE_OVER:
        loss = Loss("runner lost", progress.next_frame, progress.last_pts)
        return after_loss(scenario, loss, limits, _jitter(scenario))
    if finding.cause is Cause.LEFT:
        return after_return(scenario, EndReason.HANDED_OVER, progress.next_frame, limits)
    if finding.cause is Cause.NOT_TAKEN or entry is None or entry.reason is None:
        return after_return(scenario, Cause.NOT_TAKEN, progress.next_frame, limits)
    if entry.reason in UNCOUNTED:
        return after_return(scenario, entry.reason, progress.next_frame, limits)
    at_frame = progress.next_frame if entry.waits_for is Waiting.INFERENCE else None
    reason = "ended without being whole" if entry.reason is EndReason.FINISHED else str(entry.reason)
    loss = Loss(reason, progress.next_frame, progress.last_pts, at_frame, entry.error, entry.detail)
    return after_loss(scenario, loss, limits, _jitter(scenario))


def _first_frame(scenario: Scenario, progress: Progress, entry: Entry | None) -> Event | None:
    if scenario.state is not State.IN_STARTUP_PROCESSING:
        return None
    if max(progress.next_frame, entry.next_frame if entry else 0) <= scenario.resume_frame:
        return None
    return Event(kind=Kind.FIRST_FRAME, reason="first frame", epoch=scenario.epoch)


def _judge_shutdown(
    known: Known, runners: Mapping[str, RunnerView], before: Finding | None, world: World, timing: Timing
) -> Judgement:
    """Drained: nothing more of the scenario can come, so it may become inactive."""
    scenario = known.scenario
    if scenario.epoch == 0:
        return _drained(scenario, "never assigned")
    if ended(known.progress):
        return _drained(scenario, "end marker stored")
    view = runners[scenario.runner or ""]
    entry = view.entries.get(scenario.scenario_uuid)
    if entry is not None and entry.epoch == scenario.epoch and entry.running and not _is_silent(view, world, timing):
        return _judge_runs_on(scenario, view, before, world, timing)
    finding = _find(known, view, _own_entry(view, scenario), before, world, timing)
    if finding is None or finding.cause is Cause.UNLISTED or not _caught_up(world, finding):
        return Judgement(finding=finding)
    return _drained(scenario, f"{finding.cause}, inbox caught up")


def _judge_runs_on(
    scenario: Scenario, view: RunnerView, before: Finding | None, world: World, timing: Timing
) -> Judgement:
    same = before is not None and before.epoch == scenario.epoch and before.cause is Cause.RUNS_ON
    finding = before if same and before else Finding(scenario.epoch, Cause.RUNS_ON, world.now_s, world.now_db_s)
    if _told_s(finding, view, world) < timing.stops_s:
        return Judgement(finding=finding)
    return msgspec.structs.replace(
        _drained(scenario, f"still running after {timing.stops_s:.0f} s of stops"), marks=True
    )


def _drained(scenario: Scenario, reason: str) -> Judgement:
    return Judgement(Event(kind=Kind.DRAINED, reason=reason, epoch=scenario.epoch))


def _own_entry(view: RunnerView, scenario: Scenario) -> Entry | None:
    entry = view.entries.get(scenario.scenario_uuid)
    return entry if entry and entry.epoch == scenario.epoch else None


def _is_silent(view: RunnerView, world: World, timing: Timing) -> bool:
    return runner_lease_over(view.heard_s, world.hearing_since_s, world.now_s, timing.runner_lease_s)


def _is_again_due(known: Known, finding: Finding, view: RunnerView, world: World, timing: Timing) -> bool:
    """Whether the deploy is to be given again: never while a copy of it waits unpublished."""
    is_told = _told_s(finding, view, world) >= timing.deploy_again_s
    return finding.cause is Cause.UNLISTED and is_told and not known.deploy_waits


def _caught_up(world: World, finding: Finding) -> bool:
    return world.caught_up_db_s is not None and world.caught_up_db_s >= finding.since_db_s


def _jitter(scenario: Scenario) -> float:
    """A number in [0, 1) from the random end of the uuid: scenarios that fall together do not come back together."""
    return int(scenario.scenario_uuid[-6:], 16) / 0x1000000


# --- the runners


def _runners(memory: Memory, world: World, timing: Timing) -> dict[str, RunnerView]:
    """The runners that are worth remembering, with those that only the tables name: these have a whole lease from now."""
    named = {known.scenario.runner for known in world.known if known.scenario.runner}
    runners = {
        name: view
        for name, view in memory.runners.items()
        if name in named or world.now_s - view.heard_s < timing.forget_runner_s
    }
    for name in named - runners.keys():
        runners[name] = RunnerView(world.now_s)
    return runners


def _marked(runners: dict[str, RunnerView], runner: str | None) -> dict[str, RunnerView]:
    view = runners.get(runner or "")
    if runner is None or view is None or view.report is None:
        return runners
    return {**runners, runner: msgspec.structs.replace(view, mark=view.report.taken)}


def answers(world: World, runners: Mapping[str, RunnerView], timing: Timing) -> Iterable[Given]:
    """What the reports ask for: a stop for what runs and is not wanted there, a forget for what has ended and is not."""
    wanted = {
        (known.scenario.runner, known.scenario.scenario_uuid, known.scenario.epoch)
        for known in world.known
        if known.scenario.state in DEPLOYED
    }
    for runner, view in runners.items():
        if view.report is None or _is_silent(view, world, timing):
            continue
        for entry in view.report.entries:
            if (runner, entry.scenario_uuid, entry.epoch) in wanted:
                continue
            kind = StopWork if entry.running else Forget
            name = "stop" if entry.running else "forget"
            yield Given(runner, kind(entry.scenario_uuid, entry.epoch), name, entry.scenario_uuid, entry.epoch)


def pings(runners: Mapping[str, RunnerView], world: World, timing: Timing) -> Iterable[Given]:
    """A command without effect for each marked runner: its report tells when it has taken it."""
    for runner, view in runners.items():
        if view.mark is not None and not _is_silent(view, world, timing):
            yield Given(runner, Ping(runner), "ping", runner, 0)


def _deploy(known: Known) -> Given:
    scenario = known.scenario
    return Given(scenario.runner or "", None, "deploy", scenario.scenario_uuid, scenario.epoch)


def _due(
    wanted: Sequence[Given], given: Mapping[tuple[str, str, str, int], float], now_s: float, timing: Timing
) -> tuple[list[Given], dict[tuple[str, str, str, int], float]]:
    """Of the commands that are wanted those that were not given just now; and when each was last given."""
    commands: list[Given] = []
    last: dict[tuple[str, str, str, int], float] = {}
    for one in wanted:
        key = (one.runner, one.kind, one.scenario_uuid, one.epoch)
        pause_s = timing.deploy_again_s if one.kind == "deploy" else timing.repeat_s
        if key in given and now_s - given[key] < pause_s:
            last[key] = given[key]
            continue
        last[key] = now_s
        commands.append(one)
    return commands, last


# --- placing what waits


def assignments(world: World, runners: Mapping[str, RunnerView], timing: Timing) -> list[tuple[Known, Event]]:
    """An assignment for each scenario that is due and finds a free slot."""
    due = {k.scenario.scenario_uuid: k for k in world.known if k.scenario.state is State.INIT_STARTUP and k.due}
    waiting = [
        WaitingScenario(
            uuid,
            known.priority,
            known.since_s,
            known.scenario.runner if known.scenario.attempt or known.scenario.returns else None,
        )
        for uuid, known in due.items()
    ]
    placed = place(waiting, free_slots(world, runners, timing), timing.assignments)
    return [(due[uuid], _assignment(due[uuid], runner, world)) for uuid, runner in placed]


def free_slots(world: World, runners: Mapping[str, RunnerView], timing: Timing) -> list[Slots]:
    """The runners that may be given work: heard within their lease, not draining, not marked; and their free slots."""
    slots = []
    for runner, view in runners.items():
        report = view.report
        if report is None or report.draining or view.mark is not None or report.pool != world.pool:
            continue
        if world.hearing_since_s is None or world.now_s - view.heard_s >= timing.runner_lease_s:
            continue
        held = {
            known.scenario.scenario_uuid
            for known in world.known
            if known.scenario.runner == runner and known.scenario.state in DEPLOYED
        }
        held |= {entry.scenario_uuid for entry in report.entries if entry.running}
        slots.append(Slots(runner, report.capacity - len(held)))
    return slots


def _assignment(known: Known, runner: str, world: World) -> Event:
    """`resume_frame` is what was read; the statement that raises the epoch reads it again, under the progress row's lock.

    A frame that was stored since the scenario came back (its worker lived on for a while) starts the count again.
    """
    scenario = known.scenario
    return Event(
        kind=Kind.ASSIGNED,
        reason="assigned",
        epoch=scenario.epoch,
        runner=runner,
        new_epoch=next_epoch(scenario.epoch, int(world.now_db_s * 1000)),
        resume_frame=known.progress.next_frame,
        attempt=0 if known.progress.next_frame > scenario.resume_frame else None,
    )
