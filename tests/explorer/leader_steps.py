"""The leader's moves: it hears a report, and it ticks: domain/reconcile.py says what follows, and that is written."""

from __future__ import annotations

from tests.explorer.state import (
    NOW_S,
    RUNNER_NAMES,
    TIMING,
    LeaderProcessState,
    PendingPlan,
    RunnerProcessState,
    ScenarioRow,
    TrackedFinding,
    WorldConfig,
    WorldState,
    index_of,
    is_kafka_away,
    replace,
    replace_at,
    report_of,
    uuid_of,
    with_row,
    with_runner,
)
from tests.invariants.simulation_checks import violation
from tests.invariants.simulation_state import FATAL, RunnerMode

from vidflow.domain.leader import (
    Cause,
    Finding,
    LeaderState,
    OutgoingCommand,
    RunnerView,
    ScenarioView,
    apply_report,
    apply_written_plan,
)
from vidflow.domain.leader import Snapshot as Before
from vidflow.domain.messages import Command, Deploy, Frame, Report, ResumePoint, StopWork
from vidflow.domain.reconcile import reconcile
from vidflow.domain.scenario import DEPLOYED, Event, Kind, Scenario, Send, decide
from vidflow.domain.scenario import State as Stage

ZOMBIE_FAULTS = frozenset({"cut off", "frozen", "deaf", "deaf for ever", "slip", "restore"})
"""Faults behind which a worker may go on that nobody counts on any more: what it sends may rightly be dropped."""


def hear_report(state: WorldState, report: Report) -> WorldState:
    """The leader hears a report. Of its number and of counts of commands no more is kept than what will be compared."""
    memory = apply_report(LeaderState(dict(state.leader.views)), report, NOW_S)
    return state._replace(leader=state.leader.with_view(report.runner, memory.runners[report.runner]))


def hear_runner(state: WorldState, slot: int) -> WorldState:
    """The leader hears of a runner what is so now."""
    return _normalize_counts(hear_report(state, report_of(RUNNER_NAMES[slot], state.runners[slot].charge, 2)), slot)


def has_new_report(state: WorldState, slot: int) -> bool:
    """Whether a report would tell the leader something."""
    view = state.leader.view(RUNNER_NAMES[slot])
    return view is None or view.report != report_of(RUNNER_NAMES[slot], state.runners[slot].charge)


def can_report(state: WorldState, slot: int) -> bool:
    return not is_kafka_away(state) and state.runners[slot].mode in {RunnerMode.HEALTHY, RunnerMode.NOT_RECEIVING}


def _normalize_counts(state: WorldState, slot: int) -> WorldState:
    """Counts of taken commands, from what the leader knows on: it asks only whether there were any since."""
    name, runner = RUNNER_NAMES[slot], state.runners[slot]
    view = state.leader.view(name)
    if _has_normal_counts(view, runner):
        return state
    if view is None or view.report is None:
        known = runner.charge.taken
    else:
        known = view.report.taken if view.mark is None else view.mark
        mark = None if view.mark is None else 0
        report = replace(view.report, number=1, taken=max(view.report.taken - known, 0))
        state = state._replace(leader=state.leader.with_view(name, RunnerView(view.last_seen_s, report, mark)))
    charge = replace(runner.charge, taken=min(max(runner.charge.taken - known, 0), 1))
    return with_runner(state, slot, runner._replace(charge=charge))


def _has_normal_counts(view: RunnerView | None, runner: RunnerProcessState) -> bool:
    if view is None or view.report is None:
        return runner.charge.taken == 0
    return runner.charge.taken <= 1 and view.report.taken == 0 and view.report.number == 1 and not view.mark


def tick_leader(state: WorldState, world: WorldConfig) -> WorldState:
    """The leader looks, decides and writes."""
    return write_plan(state, world, make_plan(state, world))


def make_plan(
    state: WorldState, world: WorldConfig, max_events: int | None = None, max_commands: int | None = None
) -> PendingPlan:
    """What the leader makes of the world; less than all where it will write only so many of its events and commands."""
    # The database's clock gives the next epoch; all is caught up whose count is 0; what is found now has not been.
    clock_s = (max(state.highest_epochs) + 1.5) / 1000
    memory = LeaderState(
        dict(state.leader.views),
        {
            uuid_of(i): replace(found.finding, since_db_s=clock_s / 2 if any(found.results_left) else 0.0)
            for i, found in enumerate(state.leader.findings)
            if found
        },
        dict(state.leader.commands_sent),
    )
    known = [_read_scenario(state, row) for row in state.rows if row.scenario.state is not Stage.INACTIVE]
    plan = reconcile(memory, Before(known, NOW_S, clock_s, 0.0, state.probes_heard_since_s), world.limits, TIMING)
    written, given = plan.events[:max_events], plan.commands[:max_commands]
    after = apply_written_plan(
        memory, plan, {one.scenario.scenario_uuid for one, _ in written}, {one.key for one in given}
    )
    found: list[TrackedFinding | None] = [None] * len(state.rows)
    for uuid, finding in after.findings.items():
        index = index_of(uuid)
        found[index] = _track_finding(
            state, finding, state.leader.findings[index], is_new=finding.since_db_s == clock_s
        )
    views = tuple(sorted(after.runners.items()))
    return PendingPlan(
        tuple((one.scenario, event) for one, event in written),
        tuple(given),
        LeaderProcessState(views, tuple(found), frozenset(after.last_sent_s.items())),
    )


def _track_finding(
    state: WorldState, finding: Finding, before: TrackedFinding | None, *, is_new: bool
) -> TrackedFinding:
    behind = tuple(len(log) for log in state.logs) if is_new or before is None else before.results_left
    told_of = finding.cause in {Cause.UNLISTED, Cause.RUNS_ON}
    since_s = finding.since_s if told_of else NOW_S  # of the others only the database's time is asked
    return TrackedFinding(replace(finding, since_s=since_s, since_db_s=0.0), behind)


def write_plan(state: WorldState, world: WorldConfig, looked: PendingPlan) -> WorldState:
    """What the leader has decided is written, where the scenarios are still as they were read."""
    for read, event in looked.events:
        state = apply_event(state, world, index_of(read.scenario_uuid), event, read)
    for given in looked.commands:
        state = _send_command(state, world, given)
    state = state._replace(leader=looked.leader, pending_plan=None)
    for slot in range(len(state.runners)):
        state = _normalize_counts(state, slot)
    return state


def _read_scenario(state: WorldState, row: ScenarioRow) -> ScenarioView:
    scenario = row.scenario
    waits = scenario.state is Stage.IN_STARTUP_PROCESSING and any(
        isinstance(command, Deploy)
        and (command.scenario_uuid, command.epoch) == (scenario.scenario_uuid, scenario.epoch)
        for _, command in state.outbox
    )
    return ScenarioView(scenario, row.progress, due=row.due, deploy_waits=waits)


def apply_event(
    state: WorldState, world: WorldConfig, index: int, event: Event, read: Scenario | None = None
) -> WorldState:
    """The statement that moves a scenario, where it is as it was `read` (None: just now), and what stands in its transaction."""
    row = state.rows[index]
    read = read or row.scenario
    decision = decide(read, event)
    if decision.after is None or (row.scenario.state, row.scenario.epoch) != (read.state, read.epoch):
        return state
    after, progress = decision.after, row.progress
    if row.scenario.state is Stage.INACTIVE:
        raise violation(3, f"inactive is for ever, and {event.kind} came")
    if after.epoch != row.scenario.epoch:
        _check_epoch(state, world, index, after.epoch)
        after = replace(after, resume_frame=progress.next_frame)
        progress = replace(progress, epoch=after.epoch)
        state = state._replace(
            highest_epochs=replace_at(state.highest_epochs, index, max(state.highest_epochs[index], after.epoch))
        )
    if after.state is Stage.INACTIVE:
        _check_results_stored(state, world, index, "inactive while its rows wait in Kafka")
        progress = replace(progress, closed=True)
    if event.kind in {Kind.LOST, Kind.SKIPPED, Kind.FAILED} and event.error != FATAL:
        state = _note_loss(state, world, index, event)
        row = state.rows[index]
    state = with_row(state, index, ScenarioRow(after, progress, decision.delay_s == 0, row.losses_in_a_row))
    if decision.send is Send.DEPLOY:
        state = enqueue_command(state, world, after.runner or "", make_deploy(state.rows[index]))
    if decision.send is Send.STOP:
        state = enqueue_command(state, world, after.runner or "", StopWork(after.scenario_uuid, after.epoch))
    return state


def _check_epoch(state: WorldState, world: WorldConfig, index: int, epoch: int) -> None:
    if epoch <= state.highest_epochs[index]:
        raise violation(4, f"epoch {epoch} is given out behind {state.highest_epochs[index]}")
    if epoch > world.max_deployments:
        raise violation(7, "redeployed without end")
    if world.source.live:
        _check_results_stored(state, world, index, "a new epoch while rows of the old one wait in Kafka")


def _check_results_stored(state: WorldState, world: WorldConfig, index: int, text: str) -> None:
    """Nothing acknowledged is lost: what the counting epoch has sent is stored first."""
    progress = state.rows[index].progress
    if ZOMBIE_FAULTS & set(world.faults):
        return
    if progress.hole_epoch == progress.epoch:
        return  # what stands behind a hole is never stored
    waits = any(
        isinstance(message, Frame) and message.epoch == progress.epoch and message.frame_number >= progress.next_frame
        for message in state.logs[index]
    )
    if waits:
        raise violation(8, text)


def _note_loss(state: WorldState, world: WorldConfig, index: int, event: Event) -> WorldState:
    """A healthy scenario is lost no more often than faults befell it; none is given up with fewer losses than attempts."""
    row = state.rows[index]
    in_a_row = row.losses_in_a_row + 1
    if event.kind is not Kind.LOST and in_a_row < world.attempts:
        raise violation(8, f"given up after {in_a_row} losses in a row: {event.reason}")
    state = with_row(state, index, row._replace(losses_in_a_row=0 if event.kind is Kind.SKIPPED else in_a_row))
    if world.source.poison:
        return state
    if state.losses_allowed[index] == 0:
        raise violation(8, f"a loss that no fault explains: {event.reason}")
    return state._replace(losses_allowed=replace_at(state.losses_allowed, index, state.losses_allowed[index] - 1))


def _send_command(state: WorldState, world: WorldConfig, given: OutgoingCommand) -> WorldState:
    if given.command is not None:
        return enqueue_command(state, world, given.runner, given.command)
    row = state.rows[index_of(given.scenario_uuid)]
    if row.scenario.state not in DEPLOYED:
        return state
    return enqueue_command(state, world, row.scenario.runner or "", make_deploy(row))


def make_deploy(row: ScenarioRow) -> Deploy:
    """A deploy as the tables have it."""
    scenario, progress = row.scenario, row.progress
    resume = ResumePoint(progress.next_frame, last_pts=progress.last_pts)
    return Deploy(scenario.scenario_uuid, scenario.epoch, "clip", "motion", resume=resume, skips=scenario.skips)


def enqueue_command(state: WorldState, world: WorldConfig, runner: str, command: Command) -> WorldState:
    """The command in the outbox, where no copy of it waits; without a relay that may be late it is in its topic at once."""
    if (runner, command) in state.outbox:
        return state
    if not (world.relay_can_lag or is_kafka_away(state)):
        return deliver_command(state, runner, command)
    return state._replace(outbox=(*state.outbox, (runner, command)))


def deliver_command(state: WorldState, runner: str, command: Command) -> WorldState:
    """The command in the topic; nobody reads it there whose runner is gone. Copies that wait there already are one."""
    if runner not in RUNNER_NAMES[: len(state.runners)]:
        return state
    slot = RUNNER_NAMES.index(runner)
    commands = state.runners[slot].commands
    if command in commands:
        return state
    return with_runner(state, slot, state.runners[slot]._replace(commands=(*commands, command)))
