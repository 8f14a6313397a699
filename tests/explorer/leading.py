"""The leader's moves: it hears a report, and it ticks: domain/reconcile.py says what follows, and that is written."""

from __future__ import annotations

from tests.explorer.state import (
    NAMES,
    NOW_S,
    TIMING,
    Found,
    Leader,
    Looked,
    Row,
    Runner,
    State,
    World,
    index_of,
    is_away,
    put,
    replace,
    told,
    uuid_of,
    with_row,
    with_runner,
)
from tests.invariants.holds import broken
from tests.invariants.parts import FATAL, Mode

from vidflow.domain.leader import Cause, Finding, Given, Known, Memory, RunnerView, hear, remember
from vidflow.domain.leader import World as Before
from vidflow.domain.messages import Command, Deploy, Frame, Report, Resume, StopWork
from vidflow.domain.reconcile import reconcile
from vidflow.domain.scenario import DEPLOYED, Event, Kind, Scenario, Send, decide
from vidflow.domain.scenario import State as Stage

ZOMBIES = frozenset({"cut off", "frozen", "deaf", "deaf for ever", "slip", "restore"})
"""Faults behind which a worker may go on that nobody counts on any more: what it sends may rightly be dropped."""


def heard(state: State, report: Report) -> State:
    """The leader hears a report. Of its number and of counts of commands no more is kept than what will be compared."""
    memory = hear(Memory(dict(state.leader.views)), report, NOW_S)
    return state._replace(leader=state.leader.with_view(report.runner, memory.runners[report.runner]))


def hears(state: State, slot: int) -> State:
    """The leader hears of a runner what is so now."""
    return _counted(heard(state, told(NAMES[slot], state.runners[slot].charge, 2)), slot)


def has_news(state: State, slot: int) -> bool:
    """Whether a report would tell the leader something."""
    view = state.leader.view(NAMES[slot])
    return view is None or view.report != told(NAMES[slot], state.runners[slot].charge)


def can_report(state: State, slot: int) -> bool:
    return not is_away(state) and state.runners[slot].mode in {Mode.WELL, Mode.DEAF}


def _counted(state: State, slot: int) -> State:
    """Counts of taken commands, from what the leader knows on: it asks only whether there were any since."""
    name, runner = NAMES[slot], state.runners[slot]
    view = state.leader.view(name)
    if _is_counted(view, runner):
        return state
    if view is None or view.report is None:
        known = runner.charge.taken
    else:
        known = view.report.taken if view.mark is None else view.mark
        mark = None if view.mark is None else 0
        report = replace(view.report, number=1, taken=max(view.report.taken - known, 0))
        state = state._replace(leader=state.leader.with_view(name, RunnerView(view.heard_s, report, mark)))
    charge = replace(runner.charge, taken=min(max(runner.charge.taken - known, 0), 1))
    return with_runner(state, slot, runner._replace(charge=charge))


def _is_counted(view: RunnerView | None, runner: Runner) -> bool:
    if view is None or view.report is None:
        return runner.charge.taken == 0
    return runner.charge.taken <= 1 and view.report.taken == 0 and view.report.number == 1 and not view.mark


def ticks(state: State, world: World) -> State:
    """The leader looks, decides and writes."""
    return writes(state, world, looks(state, world))


def looks(state: State, world: World, events: int | None = None, commands: int | None = None) -> Looked:
    """What the leader makes of the world; less than all where it will write only so many of its events and commands."""
    # The database's clock gives the next epoch; all is caught up whose count is 0; what is found now has not been.
    clock_s = (max(state.highest) + 1.5) / 1000
    memory = Memory(
        dict(state.leader.views),
        {
            uuid_of(i): replace(found.finding, since_db_s=clock_s / 2 if any(found.behind) else 0.0)
            for i, found in enumerate(state.leader.found)
            if found
        },
        dict(state.leader.given),
    )
    known = [_known(state, row) for row in state.rows if row.scenario.state is not Stage.INACTIVE]
    plan = reconcile(memory, Before(known, NOW_S, clock_s, 0.0, state.hearing_s), world.limits, TIMING)
    written, given = plan.events[:events], plan.commands[:commands]
    after = remember(memory, plan, {one.scenario.scenario_uuid for one, _ in written}, {one.key for one in given})
    found: list[Found | None] = [None] * len(state.rows)
    for uuid, finding in after.findings.items():
        index = index_of(uuid)
        found[index] = _found(state, finding, state.leader.found[index], is_new=finding.since_db_s == clock_s)
    views = tuple(sorted(after.runners.items()))
    return Looked(
        tuple((one.scenario, event) for one, event in written),
        tuple(given),
        Leader(views, tuple(found), frozenset(after.given.items())),
    )


def _found(state: State, finding: Finding, before: Found | None, *, is_new: bool) -> Found:
    behind = tuple(len(log) for log in state.logs) if is_new or before is None else before.behind
    told_of = finding.cause in {Cause.UNLISTED, Cause.RUNS_ON}
    since_s = finding.since_s if told_of else NOW_S  # of the others only the database's time is asked
    return Found(replace(finding, since_s=since_s, since_db_s=0.0), behind)


def writes(state: State, world: World, looked: Looked) -> State:
    """What the leader has decided is written, where the scenarios are still as they were read."""
    for read, event in looked.events:
        state = moved(state, world, index_of(read.scenario_uuid), event, read)
    for given in looked.commands:
        state = _give(state, world, given)
    state = state._replace(leader=looked.leader, looked=None)
    for slot in range(len(state.runners)):
        state = _counted(state, slot)
    return state


def _known(state: State, row: Row) -> Known:
    scenario = row.scenario
    waits = scenario.state is Stage.IN_STARTUP_PROCESSING and any(
        isinstance(command, Deploy)
        and (command.scenario_uuid, command.epoch) == (scenario.scenario_uuid, scenario.epoch)
        for _, command in state.outbox
    )
    return Known(scenario, row.progress, due=row.due, deploy_waits=waits)


def moved(state: State, world: World, index: int, event: Event, read: Scenario | None = None) -> State:
    """The statement that moves a scenario, where it is as it was `read` (None: just now), and what stands in its transaction."""
    row = state.rows[index]
    read = read or row.scenario
    decision = decide(read, event)
    if decision.after is None or (row.scenario.state, row.scenario.epoch) != (read.state, read.epoch):
        return state
    after, progress = decision.after, row.progress
    if row.scenario.state is Stage.INACTIVE:
        raise broken(3, f"inactive is for ever, and {event.kind} came")
    if after.epoch != row.scenario.epoch:
        _check_epoch(state, world, index, after.epoch)
        after = replace(after, resume_frame=progress.next_frame)
        progress = replace(progress, epoch=after.epoch)
        state = state._replace(highest=put(state.highest, index, max(state.highest[index], after.epoch)))
    if after.state is Stage.INACTIVE:
        _check_nothing_waits(state, world, index, "inactive while its rows wait in Kafka")
        progress = replace(progress, closed=True)
    if event.kind in {Kind.LOST, Kind.SKIPPED, Kind.FAILED} and event.error != FATAL:
        state = _lost(state, world, index, event)
        row = state.rows[index]
    state = with_row(state, index, Row(after, progress, decision.delay_s == 0, row.in_a_row))
    if decision.send is Send.DEPLOY:
        state = sent(state, world, after.runner or "", deploy_of(state.rows[index]))
    if decision.send is Send.STOP:
        state = sent(state, world, after.runner or "", StopWork(after.scenario_uuid, after.epoch))
    return state


def _check_epoch(state: State, world: World, index: int, epoch: int) -> None:
    if epoch <= state.highest[index]:
        raise broken(4, f"epoch {epoch} is given out behind {state.highest[index]}")
    if epoch > world.deployments:
        raise broken(7, "redeployed without end")
    if world.source.live:
        _check_nothing_waits(state, world, index, "a new epoch while rows of the old one wait in Kafka")


def _check_nothing_waits(state: State, world: World, index: int, text: str) -> None:
    """Nothing acknowledged is lost: what the counting epoch has sent is stored first."""
    progress = state.rows[index].progress
    if ZOMBIES & set(world.faults):
        return
    if progress.hole_epoch == progress.epoch:
        return  # what stands behind a hole is never stored
    waits = any(
        isinstance(message, Frame) and message.epoch == progress.epoch and message.frame_number >= progress.next_frame
        for message in state.logs[index]
    )
    if waits:
        raise broken(8, text)


def _lost(state: State, world: World, index: int, event: Event) -> State:
    """A healthy scenario is lost no more often than faults befell it; none is given up with fewer losses than attempts."""
    row = state.rows[index]
    in_a_row = row.in_a_row + 1
    if event.kind is not Kind.LOST and in_a_row < world.attempts:
        raise broken(8, f"given up after {in_a_row} losses in a row: {event.reason}")
    state = with_row(state, index, row._replace(in_a_row=0 if event.kind is Kind.SKIPPED else in_a_row))
    if world.source.poison:
        return state
    if state.credit[index] == 0:
        raise broken(8, f"a loss that no fault explains: {event.reason}")
    return state._replace(credit=put(state.credit, index, state.credit[index] - 1))


def _give(state: State, world: World, given: Given) -> State:
    if given.command is not None:
        return sent(state, world, given.runner, given.command)
    row = state.rows[index_of(given.scenario_uuid)]
    if row.scenario.state not in DEPLOYED:
        return state
    return sent(state, world, row.scenario.runner or "", deploy_of(row))


def deploy_of(row: Row) -> Deploy:
    """A deploy as the tables have it."""
    scenario, progress = row.scenario, row.progress
    resume = Resume(progress.next_frame, last_pts=progress.last_pts)
    return Deploy(scenario.scenario_uuid, scenario.epoch, "clip", "motion", resume=resume, skips=scenario.skips)


def sent(state: State, world: World, runner: str, command: Command) -> State:
    """The command in the outbox, where no copy of it waits; without a relay that may be late it is in its topic at once."""
    if (runner, command) in state.outbox:
        return state
    if not (world.relay or is_away(state)):
        return arrived(state, runner, command)
    return state._replace(outbox=(*state.outbox, (runner, command)))


def arrived(state: State, runner: str, command: Command) -> State:
    """The command in the topic; nobody reads it there whose runner is gone. Copies that wait there already are one."""
    if runner not in NAMES[: len(state.runners)]:
        return state
    slot = NAMES.index(runner)
    commands = state.runners[slot].commands
    if command in commands:
        return state
    return with_runner(state, slot, state.runners[slot]._replace(commands=(*commands, command)))
