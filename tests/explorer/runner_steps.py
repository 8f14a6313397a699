"""The moves of runners and their workers: domain/runner.py says what becomes of a charge, and that is done."""

from __future__ import annotations

from functools import partial

from tests.explorer.leader_steps import hear_runner
from tests.explorer.state import (
    NOW_S,
    RUNNER_NAMES,
    Backup,
    DelayedCopy,
    LeaderProcessState,
    RunnerProcessState,
    WorkerState,
    WorldConfig,
    WorldState,
    end,
    frame,
    gap,
    index_of,
    replace,
    replace_at,
    uuid_of,
    with_leader,
    with_runner,
)
from tests.invariants.simulation_checks import violation
from tests.invariants.simulation_state import FATAL, PTS_STEP, RunnerMode

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.leader import RunnerView
from vidflow.domain.messages import Command, EndReason, Report, Result, WorkerWait
from vidflow.domain.runner import (
    Action,
    Finish,
    Kill,
    Launch,
    RunnerState,
    apply_command,
    drain,
    record_worker_end,
    record_worker_progress,
)
from vidflow.domain.scenario import Event, Scenario


def read_command(state: WorldState, slot: int, place: int) -> WorldState:
    """A runner takes the command at `place` of those that lie in the topic for it."""
    runner = state.runners[slot]
    charge, action = apply_command(runner.charge, runner.commands[place], NOW_S)
    runner = runner._replace(charge=charge, commands=runner.commands[:place] + runner.commands[place + 1 :])
    return with_runner(state, slot, _apply_action(runner, action))


def readable(commands: tuple[Command, ...]) -> list[int]:
    """The places of the commands that may be read next: a key's messages keep their order, others overtake them."""
    keys = [getattr(command, "scenario_uuid", "") for command in commands]
    return [place for place, key in enumerate(keys) if keys.index(key) == place]


def _apply_action(runner: RunnerProcessState, action: Action) -> RunnerProcessState:
    match action:
        case Launch(deploy=deploy, replaces_epoch=replaces):
            older = runner.workers[index_of(deploy.scenario_uuid)]
            if older is not None and older.epoch != replaces:
                raise violation(4, f"a worker of epoch {older.epoch} beside one of {deploy.epoch}")
            at = 0 if deploy.resume.last_pts is None else deploy.resume.last_pts // PTS_STEP + 1
            worker = WorkerState(deploy.epoch, deploy.resume.next_frame, at, deploy.skips)
            return runner._replace(workers=replace_at(runner.workers, index_of(deploy.scenario_uuid), worker))
        case Finish(scenario_uuid=uuid, epoch=epoch, reason=reason):
            worker_of = runner.workers[index_of(uuid)]
            if worker_of is None or worker_of.epoch != epoch or worker_of.finishing:
                return runner
            return runner._replace(
                workers=replace_at(runner.workers, index_of(uuid), worker_of._replace(finishing=reason))
            )
        case Kill(scenario_uuid=uuid):
            return runner._replace(workers=replace_at(runner.workers, index_of(uuid), None))
        case _:
            return runner


def step_worker(state: WorldState, world: WorldConfig, slot: int, index: int) -> WorldState:
    """The worker's next step: a frame, its end marker, its end; or nothing, where a live stream shows nothing new."""
    runner, source = state.runners[slot], world.source
    worker = runner.workers[index]
    assert worker is not None
    uuid = uuid_of(index)
    if worker.end_sent:
        return with_runner(state, slot, end_worker(runner, index, worker.finishing or EndReason.FINISHED))
    if worker.finishing or (worker.source_index >= source.frames and not source.live):
        reason = worker.finishing or EndReason.FINISHED
        state = _send_result(state, index, end(uuid, worker.epoch, worker.next_frame - 1, reason))
        return _with_worker(state, slot, index, worker._replace(end_sent=True))
    if skipped := _count_skipped(worker):
        state = _send_result(state, index, gap(uuid, worker.epoch, worker.next_frame - 1, worker.source_index, skipped))
        return _with_worker(state, slot, index, worker._replace(source_index=worker.source_index + skipped))
    if worker.source_index in source.poison:
        return with_runner(state, slot, end_worker(runner, index, EndReason.CRASHED, waits_for=WorkerWait.INFERENCE))
    if worker.source_index == source.fatal:
        return with_runner(state, slot, end_worker(runner, index, EndReason.ERROR, error=FATAL))
    if worker.source_index >= source.frames:
        return _send_extra_frame(state, index, worker)
    return _send_frame(state, slot, index, worker)


def _count_skipped(worker: WorkerState) -> int:
    last_pts = worker.source_index * PTS_STEP - PTS_STEP if worker.source_index else None
    return sum(skip.frames for skip in worker.skips if skip.after_pts == last_pts)


def _send_frame(state: WorldState, slot: int, index: int, worker: WorkerState) -> WorldState:
    uuid = uuid_of(index)
    state = _send_result(state, index, frame(uuid, worker.epoch, worker.next_frame, worker.source_index))
    state = _with_worker(
        state, slot, index, worker._replace(source_index=worker.source_index + 1, next_frame=worker.next_frame + 1)
    )
    runner = state.runners[slot]
    entry = runner.charge.entry(uuid)
    if entry is None or entry.waits_for is not WorkerWait.START:
        return state  # of later frames the reports need not tell
    charge = record_worker_progress(runner.charge, uuid, worker.epoch, worker.next_frame + 1, WorkerWait.SOURCE)
    return with_runner(state, slot, runner._replace(charge=charge))


def _send_extra_frame(state: WorldState, index: int, worker: WorkerState) -> WorldState:
    """A stream goes on behind the frames that the world counts; that matters only where some of those are missing."""
    if state.logs[index] or state.rows[index].progress.next_frame >= worker.next_frame:
        return state
    return _send_result(state, index, frame(uuid_of(index), worker.epoch, worker.next_frame, worker.source_index))


def _with_worker(state: WorldState, slot: int, index: int, worker: WorkerState) -> WorldState:
    runner = state.runners[slot]
    return with_runner(state, slot, runner._replace(workers=replace_at(runner.workers, index, worker)))


def _send_result(state: WorldState, index: int, message: Result) -> WorldState:
    return state._replace(logs=replace_at(state.logs, index, (*state.logs[index], message)))


def end_worker(
    runner: RunnerProcessState,
    index: int,
    reason: EndReason,
    *,
    error: ErrorInfo | None = None,
    waits_for: WorkerWait = WorkerWait.SOURCE,
) -> RunnerProcessState:
    """The runner whose worker of that scenario has ended."""
    worker, uuid = runner.workers[index], uuid_of(index)
    assert worker is not None
    charge = record_worker_progress(runner.charge, uuid, worker.epoch, worker.next_frame, waits_for)
    charge = record_worker_end(charge, uuid, worker.epoch, reason, error, fatal=error is not None)
    return runner._replace(charge=charge, workers=replace_at(runner.workers, index, None))


def drain_runner(state: WorldState, slot: int) -> WorldState:
    """The runner is told to leave: it takes no more work and lets its workers hand over."""
    runner = state.runners[slot]
    charge, finishes = drain(runner.charge)
    runner = runner._replace(charge=charge)
    for finish in finishes:
        runner = _apply_action(runner, finish)
    return with_runner(state, slot, runner)


def exit_runner(state: WorldState, world: WorldConfig, slot: int) -> WorldState:
    """A draining runner says its last word and exits; another is started in its place."""
    return replace_runner(hear_runner(state, slot), world, slot)


def replace_runner(state: WorldState, world: WorldConfig, slot: int) -> WorldState:
    """A runner ends, its workers with it, and another stands in its place, of which nobody has heard."""
    state = _rename_runner(state, RUNNER_NAMES[slot], _free_name(state))
    return with_runner(state, slot, RunnerProcessState(RunnerState(world.capacity), (None,) * len(state.rows)))


def _free_name(state: WorldState) -> str:
    taken = {row.scenario.runner for row in (*state.rows, *(state.backup.rows if state.backup else ()))}
    taken |= {name for name, _ in state.leader.views} | {state.delayed_copy.runner if state.delayed_copy else None}
    return next(name for name in (f"z{n}" for n in range(1, 99)) if name not in taken)


def _rename_runner(state: WorldState, name: str, gone: str) -> WorldState:
    """Everything that names the runner names it as gone. What was said to it nobody reads."""

    def rows(before: tuple) -> tuple:  # type: ignore[type-arg]
        return tuple(row._replace(scenario=_rename_in_scenario(row.scenario, name, gone)) for row in before)

    late, backup, looked = state.delayed_copy, state.backup, state.pending_plan
    if looked:
        looked = looked._replace(
            events=tuple(
                (_rename_in_scenario(read, name, gone), _rename_in_event(event, name, gone))
                for read, event in looked.events
            ),
            commands=tuple(one for one in looked.commands if one.runner != name),
        )
    if late and late.runner == name:
        late = DelayedCopy(gone, replace(late.copy, runner=gone)) if isinstance(late.copy, Report) else None
    if backup:
        backup = Backup(rows(backup.rows), tuple(one for one in backup.outbox if one[0] != name), backup.stored_since)
    state = state._replace(
        rows=rows(state.rows),
        outbox=tuple(one for one in state.outbox if one[0] != name),
        delayed_copy=late,
        backup=backup,
        pending_plan=looked,
    )
    return with_leader(state, partial(_rename_in_leader, name=name, gone=gone))


def _rename_in_leader(leader: LeaderProcessState, name: str, gone: str) -> LeaderProcessState:
    views = tuple(
        sorted((gone if one == name else one, _rename_in_view(view, name, gone)) for one, view in leader.views)
    )
    return leader._replace(
        views=views, commands_sent=frozenset(one for one in leader.commands_sent if one[0][0] != name)
    )


def _rename_in_scenario(scenario: Scenario, name: str, gone: str) -> Scenario:
    return replace(scenario, runner=gone) if scenario.runner == name else scenario


def _rename_in_event(event: Event, name: str, gone: str) -> Event:
    return replace(event, runner=gone) if event.runner == name else event


def _rename_in_view(view: RunnerView, name: str, gone: str) -> RunnerView:
    if view.report is None or view.report.runner != name:
        return view
    return RunnerView(view.last_seen_s, replace(view.report, runner=gone, taken=0), None if view.mark is None else 0)


def end_cut_off_workers(state: WorldState, slot: int) -> WorldState:
    """A runner that nobody hears loses its patience and ends its workers."""
    runner = state.runners[slot]
    for index, worker in enumerate(runner.workers):
        if worker is not None:
            runner = end_worker(runner, index, EndReason.CUT_OFF)
    return with_runner(state, slot, runner)


def heal_runner(state: WorldState, slot: int, *, commands_lost: bool = False) -> WorldState:
    """A runner's trouble is over; what lay in the topic for it is there still, or it listens from the topic's end."""
    runner = state.runners[slot]
    return with_runner(
        state, slot, runner._replace(mode=RunnerMode.HEALTHY, commands=() if commands_lost else runner.commands)
    )
