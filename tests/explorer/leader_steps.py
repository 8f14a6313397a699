"""The leader receives a report, or ticks: domain/reconcile.py decides, and the decision is written."""

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
    Snapshot,
    apply_reports,
    apply_written_plan,
)
from vidflow.domain.messages import Command, Deploy, Frame, Report, ResumePoint, StopWork
from vidflow.domain.reconcile import reconcile
from vidflow.domain.scenario import DEPLOYED, Event, Kind, Scenario, Send, State, decide

ZOMBIE_FAULTS = frozenset({"cut off", "frozen", "not receiving", "never receiving", "delay", "restore"})
"""Faults after which a worker may continue with an outdated epoch. Dropping what it sends is correct."""


def receive_report(state: WorldState, report: Report) -> WorldState:
    """The leader receives a report."""
    memory = apply_reports(LeaderState(dict(state.leader.views)), [(report, NOW_S)])
    return state._replace(leader=state.leader.with_view(report.runner, memory.runners[report.runner]))


def receive_current_report(state: WorldState, slot: int) -> WorldState:
    """The leader receives a report of the runner's current state."""
    report = report_of(RUNNER_NAMES[slot], state.runners[slot].state, 2)
    return _normalize_counts(receive_report(state, report), slot)


def has_new_report(state: WorldState, slot: int) -> bool:
    """Return whether a report of the runner would differ from the last one the leader received."""
    view = state.leader.view(RUNNER_NAMES[slot])
    return view is None or view.report != report_of(RUNNER_NAMES[slot], state.runners[slot].state)


def can_report(state: WorldState, slot: int) -> bool:
    return not is_kafka_away(state) and state.runners[slot].mode in {RunnerMode.HEALTHY, RunnerMode.NOT_RECEIVING}


def _normalize_counts(state: WorldState, slot: int) -> WorldState:
    """Reduce the counts of taken commands to the difference from what the leader knows.

    The leader only asks whether the count has grown, so larger numbers would only add states.
    """
    name, runner = RUNNER_NAMES[slot], state.runners[slot]
    view = state.leader.view(name)
    if _has_normal_counts(view, runner):
        return state
    if view is None or view.report is None:
        known = runner.state.taken
    else:
        known = view.report.taken if view.mark is None else view.mark
        mark = None if view.mark is None else 0
        report = replace(view.report, number=1, taken=max(view.report.taken - known, 0))
        state = state._replace(leader=state.leader.with_view(name, RunnerView(view.last_seen_s, report, mark)))
    runner_state = replace(runner.state, taken=min(max(runner.state.taken - known, 0), 1))
    return with_runner(state, slot, runner._replace(state=runner_state))


def _has_normal_counts(view: RunnerView | None, runner: RunnerProcessState) -> bool:
    if view is None or view.report is None:
        return runner.state.taken == 0
    return runner.state.taken <= 1 and view.report.taken == 0 and view.report.number == 1 and not view.mark


def tick_leader(state: WorldState, world: WorldConfig) -> WorldState:
    """The leader decides and writes its plan."""
    return write_plan(state, world, make_plan(state, world))


def make_plan(
    state: WorldState, world: WorldConfig, max_events: int | None = None, max_commands: int | None = None
) -> PendingPlan:
    """Return the leader's plan, cut to `max_events` events and `max_commands` commands if these are given."""
    # The clock yields the next epoch: next_epoch() takes it in milliseconds. Findings without results left are dated 0.0,
    # which is caught up. Findings with results left, and those of this tick, are dated later, which is not.
    clock_s = (max(state.highest_epochs) + 1.5) / 1000
    memory = LeaderState(
        dict(state.leader.views),
        {
            uuid_of(i): replace(tracked.finding, since_db_s=clock_s / 2 if any(tracked.results_left) else 0.0)
            for i, tracked in enumerate(state.leader.findings)
            if tracked
        },
        dict(state.leader.commands_sent),
    )
    scenarios = [_read_scenario(state, row) for row in state.rows if row.scenario.state is not State.INACTIVE]
    snapshot = Snapshot(scenarios, NOW_S, clock_s, 0.0, state.probes_received_since_s)
    plan = reconcile(memory, snapshot, world.limits, TIMING)
    events, commands = plan.events[:max_events], plan.commands[:max_commands]
    after = apply_written_plan(
        memory, plan, {view.scenario.scenario_uuid for view, _ in events}, {command.key for command in commands}
    )
    findings: list[TrackedFinding | None] = [None] * len(state.rows)
    for uuid, finding in after.findings.items():
        index = index_of(uuid)
        findings[index] = _track_finding(
            state, finding, state.leader.findings[index], is_new=finding.since_db_s == clock_s
        )
    views = tuple(sorted(after.runners.items()))
    return PendingPlan(
        tuple((view.scenario, event) for view, event in events),
        tuple(commands),
        LeaderProcessState(views, tuple(findings), frozenset(after.last_sent_s.items())),
    )


def _track_finding(
    state: WorldState, finding: Finding, before: TrackedFinding | None, *, is_new: bool
) -> TrackedFinding:
    lags = tuple(len(log) for log in state.logs) if is_new or before is None else before.results_left
    # The leader compares only these with its own clock; for the others it uses the database's time.
    is_timed = finding.cause in {Cause.UNLISTED, Cause.RUNS_ON}
    since_s = finding.since_s if is_timed else NOW_S
    return TrackedFinding(replace(finding, since_s=since_s, since_db_s=0.0), lags)


def write_plan(state: WorldState, world: WorldConfig, plan: PendingPlan) -> WorldState:
    """Write the leader's plan. An event of a scenario that has changed since it was read has no effect."""
    for read, event in plan.events:
        state = apply_event(state, world, index_of(read.scenario_uuid), event, read)
    for command in plan.commands:
        state = _send_command(state, world, command)
    state = state._replace(leader=plan.leader, pending_plan=None)
    for slot in range(len(state.runners)):
        state = _normalize_counts(state, slot)
    return state


def _read_scenario(state: WorldState, row: ScenarioRow) -> ScenarioView:
    scenario = row.scenario
    deploy_waits = scenario.state is State.IN_STARTUP_PROCESSING and any(
        isinstance(command, Deploy)
        and (command.scenario_uuid, command.epoch) == (scenario.scenario_uuid, scenario.epoch)
        for _, command in state.outbox
    )
    return ScenarioView(scenario, row.progress, due=row.due, deploy_waits=deploy_waits)


def apply_event(
    state: WorldState, world: WorldConfig, index: int, event: Event, read: Scenario | None = None
) -> WorldState:
    """Apply an event to a scenario, with the command that is written in the same transaction.

    `read` is the scenario that the event was decided on (None: the current row). If the row has changed since, nothing happens.
    """
    row = state.rows[index]
    read = read or row.scenario
    decision = decide(read, event)
    if decision.after is None or (row.scenario.state, row.scenario.epoch) != (read.state, read.epoch):
        return state
    after, progress = decision.after, row.progress
    if row.scenario.state is State.INACTIVE:
        raise violation(3, f"event {event.kind} applied to an inactive scenario")
    if after.epoch != row.scenario.epoch:
        _check_epoch(state, world, index, after.epoch)
        after = replace(after, resume_frame=progress.next_frame)
        progress = replace(progress, epoch=after.epoch)
        state = state._replace(
            highest_epochs=replace_at(state.highest_epochs, index, max(state.highest_epochs[index], after.epoch))
        )
    if after.state is State.INACTIVE:
        _check_results_stored(state, world, index, "inactive while results wait in Kafka")
        progress = replace(progress, closed=True)
    if event.kind in {Kind.LOST, Kind.SKIPPED, Kind.FAILED} and event.error != FATAL:
        state = _note_loss(state, world, index, event)
        row = state.rows[index]
    is_due = decision.delay_s == 0
    state = with_row(state, index, row._replace(scenario=after, progress=progress, due=is_due))
    if decision.send is Send.DEPLOY:
        state = enqueue_command(state, world, after.runner or "", make_deploy(state.rows[index]))
    if decision.send is Send.STOP:
        state = enqueue_command(state, world, after.runner or "", StopWork(after.scenario_uuid, after.epoch))
    return state


def _check_epoch(state: WorldState, world: WorldConfig, index: int, epoch: int) -> None:
    if epoch <= state.highest_epochs[index]:
        raise violation(4, f"epoch {epoch} assigned after epoch {state.highest_epochs[index]}")
    if epoch > world.max_deployments:
        raise violation(7, "redeployed endlessly")
    if world.source.live:
        _check_results_stored(state, world, index, "new epoch while results of the old one wait in Kafka")


def _check_results_stored(state: WorldState, world: WorldConfig, index: int, text: str) -> None:
    """Raise if a frame of the current epoch still waits in Kafka: no acknowledged result may be lost."""
    progress = state.rows[index].progress
    if ZOMBIE_FAULTS & set(world.faults):
        return
    if progress.hole_epoch == progress.epoch:
        return  # results after a hole are never stored
    frame_waits = any(
        isinstance(message, Frame) and message.epoch == progress.epoch and message.frame_number >= progress.next_frame
        for message in state.logs[index]
    )
    if frame_waits:
        raise violation(8, text)


def _note_loss(state: WorldState, world: WorldConfig, index: int, event: Event) -> WorldState:
    """Count a loss. Raise if no fault explains it, or if the scenario failed with fewer losses in a row than attempts."""
    row = state.rows[index]
    losses = row.losses_in_a_row + 1
    if event.kind is not Kind.LOST and losses < world.attempts:
        raise violation(8, f"gave up after {losses} losses in a row: {event.reason}")
    state = with_row(state, index, row._replace(losses_in_a_row=0 if event.kind is Kind.SKIPPED else losses))
    if world.source.poison:
        return state
    if state.losses_allowed[index] == 0:
        raise violation(8, f"loss not explained by a fault: {event.reason}")
    backup = state.backup
    if backup and backup.rows:
        backup = backup._replace(losses_since=replace_at(backup.losses_since, index, backup.losses_since[index] + 1))
    losses_allowed = replace_at(state.losses_allowed, index, state.losses_allowed[index] - 1)
    return state._replace(losses_allowed=losses_allowed, backup=backup)


def _send_command(state: WorldState, world: WorldConfig, outgoing: OutgoingCommand) -> WorldState:
    if outgoing.command is not None:
        return enqueue_command(state, world, outgoing.runner, outgoing.command)
    row = state.rows[index_of(outgoing.scenario_uuid)]
    if row.scenario.state not in DEPLOYED:
        return state
    return enqueue_command(state, world, row.scenario.runner or "", make_deploy(row))


def make_deploy(row: ScenarioRow) -> Deploy:
    """Return the deploy command built from the scenario's rows."""
    scenario, progress = row.scenario, row.progress
    gap_until_s = None if scenario.skips or not row.covered else float(row.covered)
    resume = ResumePoint(progress.next_frame, last_pts=progress.last_pts, gap_until_s=gap_until_s)
    return Deploy(scenario.scenario_uuid, scenario.epoch, "clip", "motion", resume=resume, skips=scenario.skips)


def enqueue_command(state: WorldState, world: WorldConfig, runner: str, command: Command) -> WorldState:
    """Put the command into the outbox unless a copy waits there. If the relay cannot lag, deliver it to the topic at once."""
    if (runner, command) in state.outbox:
        return state
    if not (world.relay_can_lag or is_kafka_away(state)):
        return deliver_command(state, runner, command)
    return state._replace(outbox=(*state.outbox, (runner, command)))


def deliver_command(state: WorldState, runner: str, command: Command) -> WorldState:
    """Put the command into the topic, unless its runner no longer exists or a copy waits there already."""
    if runner not in RUNNER_NAMES[: len(state.runners)]:
        return state
    slot = RUNNER_NAMES.index(runner)
    commands = state.runners[slot].commands
    if command in commands:
        return state
    return with_runner(state, slot, state.runners[slot]._replace(commands=(*commands, command)))
