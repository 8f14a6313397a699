"""The moves of runners and their workers: domain/runner.py says what becomes of a charge, and that is done."""

from __future__ import annotations

from functools import partial

from tests.explorer.leading import hears
from tests.explorer.state import (
    NAMES,
    NOW_S,
    Backup,
    Late,
    Leader,
    Runner,
    State,
    Worker,
    World,
    end,
    frame,
    gap,
    index_of,
    put,
    replace,
    uuid_of,
    with_leader,
    with_runner,
)
from tests.invariants.holds import broken
from tests.invariants.parts import FATAL, PTS, Mode

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.leader import RunnerView
from vidflow.domain.messages import Command, EndReason, Report, Result, Waiting
from vidflow.domain.runner import Action, Charge, Finish, Kill, Launch, drain, obey, worker_ended, worker_progressed
from vidflow.domain.scenario import Event, Scenario


def reads(state: State, slot: int, place: int) -> State:
    """A runner takes the command at `place` of those that lie in the topic for it."""
    runner = state.runners[slot]
    charge, action = obey(runner.charge, runner.commands[place], NOW_S)
    runner = runner._replace(charge=charge, commands=runner.commands[:place] + runner.commands[place + 1 :])
    return with_runner(state, slot, _done(runner, action))


def readable(commands: tuple[Command, ...]) -> list[int]:
    """The places of the commands that may be read next: a key's messages keep their order, others overtake them."""
    keys = [getattr(command, "scenario_uuid", "") for command in commands]
    return [place for place, key in enumerate(keys) if keys.index(key) == place]


def _done(runner: Runner, action: Action) -> Runner:
    match action:
        case Launch(deploy=deploy, replaces_epoch=replaces):
            older = runner.workers[index_of(deploy.scenario_uuid)]
            if older is not None and older.epoch != replaces:
                raise broken(4, f"a worker of epoch {older.epoch} beside one of {deploy.epoch}")
            at = 0 if deploy.resume.last_pts is None else deploy.resume.last_pts // PTS + 1
            worker = Worker(deploy.epoch, deploy.resume.next_frame, at, deploy.skips)
            return runner._replace(workers=put(runner.workers, index_of(deploy.scenario_uuid), worker))
        case Finish(scenario_uuid=uuid, epoch=epoch, reason=reason):
            worker_of = runner.workers[index_of(uuid)]
            if worker_of is None or worker_of.epoch != epoch or worker_of.finishing:
                return runner
            return runner._replace(workers=put(runner.workers, index_of(uuid), worker_of._replace(finishing=reason)))
        case Kill(scenario_uuid=uuid):
            return runner._replace(workers=put(runner.workers, index_of(uuid), None))
        case _:
            return runner


def works(state: State, world: World, slot: int, index: int) -> State:
    """The worker's next step: a frame, its end marker, its end; or nothing, where a live stream shows nothing new."""
    runner, source = state.runners[slot], world.source
    worker = runner.workers[index]
    assert worker is not None
    uuid = uuid_of(index)
    if worker.said_end:
        return with_runner(state, slot, ended(runner, index, worker.finishing or EndReason.FINISHED))
    if worker.finishing or (worker.at >= source.frames and not source.live):
        reason = worker.finishing or EndReason.FINISHED
        state = _sent(state, index, end(uuid, worker.epoch, worker.number - 1, reason))
        return _with_worker(state, slot, index, worker._replace(said_end=True))
    if skipped := _skipped(worker):
        state = _sent(state, index, gap(uuid, worker.epoch, worker.number - 1, worker.at, skipped))
        return _with_worker(state, slot, index, worker._replace(at=worker.at + skipped))
    if worker.at in source.poison:
        return with_runner(state, slot, ended(runner, index, EndReason.CRASHED, waits_for=Waiting.INFERENCE))
    if worker.at == source.fatal:
        return with_runner(state, slot, ended(runner, index, EndReason.ERROR, error=FATAL))
    if worker.at >= source.frames:
        return _one_more(state, index, worker)
    return _frame_sent(state, slot, index, worker)


def _skipped(worker: Worker) -> int:
    last_pts = worker.at * PTS - PTS if worker.at else None
    return sum(skip.frames for skip in worker.skips if skip.after_pts == last_pts)


def _frame_sent(state: State, slot: int, index: int, worker: Worker) -> State:
    uuid = uuid_of(index)
    state = _sent(state, index, frame(uuid, worker.epoch, worker.number, worker.at))
    state = _with_worker(state, slot, index, worker._replace(at=worker.at + 1, number=worker.number + 1))
    runner = state.runners[slot]
    entry = runner.charge.entry(uuid)
    if entry is None or entry.waits_for is not Waiting.START:
        return state  # of later frames the reports need not tell
    charge = worker_progressed(runner.charge, uuid, worker.epoch, worker.number + 1, Waiting.SOURCE)
    return with_runner(state, slot, runner._replace(charge=charge))


def _one_more(state: State, index: int, worker: Worker) -> State:
    """A stream goes on behind the frames that the world counts; that matters only where some of those are missing."""
    if state.logs[index] or state.rows[index].progress.next_frame >= worker.number:
        return state
    return _sent(state, index, frame(uuid_of(index), worker.epoch, worker.number, worker.at))


def _with_worker(state: State, slot: int, index: int, worker: Worker) -> State:
    runner = state.runners[slot]
    return with_runner(state, slot, runner._replace(workers=put(runner.workers, index, worker)))


def _sent(state: State, index: int, message: Result) -> State:
    return state._replace(logs=put(state.logs, index, (*state.logs[index], message)))


def ended(
    runner: Runner,
    index: int,
    reason: EndReason,
    *,
    error: ErrorInfo | None = None,
    waits_for: Waiting = Waiting.SOURCE,
) -> Runner:
    """The runner whose worker of that scenario has ended."""
    worker, uuid = runner.workers[index], uuid_of(index)
    assert worker is not None
    charge = worker_progressed(runner.charge, uuid, worker.epoch, worker.number, waits_for)
    charge = worker_ended(charge, uuid, worker.epoch, reason, error, fatal=error is not None)
    return runner._replace(charge=charge, workers=put(runner.workers, index, None))


def drains(state: State, slot: int) -> State:
    """The runner is told to leave: it takes no more work and lets its workers hand over."""
    runner = state.runners[slot]
    charge, finishes = drain(runner.charge)
    runner = runner._replace(charge=charge)
    for finish in finishes:
        runner = _done(runner, finish)
    return with_runner(state, slot, runner)


def leaves(state: State, world: World, slot: int) -> State:
    """A draining runner says its last word and exits; another is started in its place."""
    return starts_anew(hears(state, slot), world, slot)


def starts_anew(state: State, world: World, slot: int) -> State:
    """A runner ends, its workers with it, and another stands in its place, of which nobody has heard."""
    state = _renamed(state, NAMES[slot], _free_name(state))
    return with_runner(state, slot, Runner(Charge(world.capacity), (None,) * len(state.rows)))


def _free_name(state: State) -> str:
    taken = {row.scenario.runner for row in (*state.rows, *(state.backup.rows if state.backup else ()))}
    taken |= {name for name, _ in state.leader.views} | {state.late.runner if state.late else None}
    return next(name for name in (f"z{n}" for n in range(1, 99)) if name not in taken)


def _renamed(state: State, name: str, gone: str) -> State:
    """Everything that names the runner names it as gone. What was said to it nobody reads."""

    def rows(before: tuple) -> tuple:  # type: ignore[type-arg]
        return tuple(row._replace(scenario=_scenario_of(row.scenario, name, gone)) for row in before)

    late, backup, looked = state.late, state.backup, state.looked
    if looked:
        looked = looked._replace(
            events=tuple(
                (_scenario_of(read, name, gone), _event_of(event, name, gone)) for read, event in looked.events
            ),
            commands=tuple(one for one in looked.commands if one.runner != name),
        )
    if late and late.runner == name:
        late = Late(gone, replace(late.copy, runner=gone)) if isinstance(late.copy, Report) else None
    if backup:
        backup = Backup(rows(backup.rows), tuple(one for one in backup.outbox if one[0] != name), backup.stored)
    state = state._replace(
        rows=rows(state.rows),
        outbox=tuple(one for one in state.outbox if one[0] != name),
        late=late,
        backup=backup,
        looked=looked,
    )
    return with_leader(state, partial(_leader_of, name=name, gone=gone))


def _leader_of(leader: Leader, name: str, gone: str) -> Leader:
    views = tuple(sorted((gone if one == name else one, _of(view, name, gone)) for one, view in leader.views))
    return leader._replace(views=views, given=frozenset(one for one in leader.given if one[0][0] != name))


def _scenario_of(scenario: Scenario, name: str, gone: str) -> Scenario:
    return replace(scenario, runner=gone) if scenario.runner == name else scenario


def _event_of(event: Event, name: str, gone: str) -> Event:
    return replace(event, runner=gone) if event.runner == name else event


def _of(view: RunnerView, name: str, gone: str) -> RunnerView:
    if view.report is None or view.report.runner != name:
        return view
    return RunnerView(view.heard_s, replace(view.report, runner=gone, taken=0), None if view.mark is None else 0)


def cut_off_for_long(state: State, slot: int) -> State:
    """A runner that nobody hears loses its patience and ends its workers."""
    runner = state.runners[slot]
    for index, worker in enumerate(runner.workers):
        if worker is not None:
            runner = ended(runner, index, EndReason.CUT_OFF)
    return with_runner(state, slot, runner)


def well_again(state: State, slot: int, *, commands_lost: bool = False) -> State:
    """A runner's trouble is over; what lay in the topic for it is there still, or it listens from the topic's end."""
    runner = state.runners[slot]
    return with_runner(state, slot, runner._replace(mode=Mode.WELL, commands=() if commands_lost else runner.commands))
