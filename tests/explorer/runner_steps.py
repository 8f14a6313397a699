"""The steps of runners and their workers: domain/runner.py decides, and its action is carried out."""

from __future__ import annotations

from functools import partial

from tests.explorer.leader_steps import receive_current_report
from tests.explorer.state import (
    NOW_S,
    RUNNER_NAMES,
    DelayedCopy,
    LeaderProcessState,
    RunnerProcessState,
    WorkerState,
    WorldConfig,
    WorldState,
    end,
    frame,
    index_of,
    missed_gaps,
    replace,
    replace_at,
    uuid_of,
    with_leader,
    with_runner,
)
from tests.invariants.simulation_checks import violation
from tests.invariants.simulation_state import FATAL, PTS_STEP, RunnerMode, SimulatedSource

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.leader import RunnerView
from vidflow.domain.messages import Command, EndReason, GapReason, Report, Result, WorkerWait
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


def read_command(state: WorldState, slot: int, position: int) -> WorldState:
    """The runner takes the command at `position` among those in its topic."""
    runner = state.runners[slot]
    runner_state, action = apply_command(runner.state, runner.commands[position], NOW_S)
    remaining = runner.commands[:position] + runner.commands[position + 1 :]
    runner = runner._replace(state=runner_state, commands=remaining)
    return with_runner(state, slot, _apply_action(runner, action))


def readable(commands: tuple[Command, ...]) -> list[int]:
    """Return the positions of the commands that may be read next: only messages with the same key keep their order."""
    keys = [getattr(command, "scenario_uuid", "") for command in commands]
    return [position for position, key in enumerate(keys) if keys.index(key) == position]


def _apply_action(runner: RunnerProcessState, action: Action) -> RunnerProcessState:
    match action:
        case Launch(deploy=deploy, replaces_epoch=replaces):
            older = runner.workers[index_of(deploy.scenario_uuid)]
            if older is not None and older.epoch != replaces:
                raise violation(4, f"worker of epoch {older.epoch} runs beside one of epoch {deploy.epoch}")
            source_index = 0 if deploy.resume.last_pts is None else deploy.resume.last_pts // PTS_STEP + 1
            source_index = max(source_index, int(deploy.resume.gap_until_s or 0))
            worker = WorkerState(deploy.epoch, deploy.resume.next_frame, source_index, deploy.skips)
            return runner._replace(workers=replace_at(runner.workers, index_of(deploy.scenario_uuid), worker))
        case Finish(scenario_uuid=uuid, epoch=epoch, reason=reason):
            current = runner.workers[index_of(uuid)]
            if current is None or current.epoch != epoch or current.finishing:
                return runner
            finishing = current._replace(finishing=reason)
            return runner._replace(workers=replace_at(runner.workers, index_of(uuid), finishing))
        case Kill(scenario_uuid=uuid):
            return runner._replace(workers=replace_at(runner.workers, index_of(uuid), None))
        case _:
            return runner


def step_worker(state: WorldState, world: WorldConfig, slot: int, index: int) -> WorldState:
    """The worker sends its next frame or end marker, or ends. It does nothing if a live stream has nothing new."""
    runner, source = state.runners[slot], world.source
    worker = runner.workers[index]
    assert worker is not None
    uuid = uuid_of(index)
    if worker.end_sent:
        return with_runner(state, slot, end_worker(runner, index, worker.finishing or EndReason.FINISHED))
    if not worker.finishing and (skipped := _count_skipped(worker)):
        worker = worker._replace(
            source_index=worker.source_index + skipped, missed=skipped, missed_as=GapReason.SKIPPED
        )
    if worker.finishing or (worker.source_index >= source.frames and not source.live):
        reason = worker.finishing or EndReason.FINISHED
        gaps = missed_gaps(worker) if reason is not EndReason.HANDED_OVER else ()
        state = _send_result(state, index, end(uuid, worker.epoch, worker.next_frame - 1, reason, gaps))
        return _with_worker(state, slot, index, worker._replace(end_sent=True, missed=0))
    if worker.source_index in source.poison:
        return with_runner(state, slot, end_worker(runner, index, EndReason.CRASHED, waits_for=WorkerWait.INFERENCE))
    if worker.source_index == source.fatal:
        return with_runner(state, slot, end_worker(runner, index, EndReason.ERROR, error=FATAL))
    if worker.source_index >= source.frames:
        return _send_extra_frame(state, index, worker)
    return _send_frame(state, slot, index, worker)


def can_pass_over(worker: WorkerState, source: SimulatedSource) -> bool:
    """Return whether the worker may miss the next frame of its source."""
    is_reading = not worker.finishing and not worker.end_sent and worker.source_index < source.frames
    return source.passes_over and is_reading


def pass_over(state: WorldState, slot: int, index: int) -> WorldState:
    """The worker misses the next frame: it is busy, or its source is away."""
    worker = state.runners[slot].workers[index]
    assert worker is not None
    missed = worker._replace(source_index=worker.source_index + 1, missed=worker.missed + 1)
    return _with_worker(state, slot, index, missed)


def _count_skipped(worker: WorkerState) -> int:
    last_pts = worker.source_index * PTS_STEP - PTS_STEP if worker.source_index else None
    return sum(skip.frames for skip in worker.skips if skip.after_pts == last_pts)


def _send_frame(state: WorldState, slot: int, index: int, worker: WorkerState) -> WorldState:
    uuid = uuid_of(index)
    sent = frame(uuid, worker.epoch, worker.next_frame, worker.source_index, missed_gaps(worker))
    after = worker._replace(source_index=worker.source_index + 1, next_frame=worker.next_frame + 1, missed=0)
    state = _with_worker(_send_result(state, index, sent), slot, index, after)
    runner = state.runners[slot]
    entry = runner.state.entry(uuid)
    if entry is None or entry.waits_for is not WorkerWait.START:
        return state  # frames after the first change nothing that the leader looks at
    runner_state = record_worker_progress(runner.state, uuid, worker.epoch, worker.next_frame + 1, WorkerWait.SOURCE)
    return with_runner(state, slot, runner._replace(state=runner_state))


def _send_extra_frame(state: WorldState, index: int, worker: WorkerState) -> WorldState:
    """A live stream continues past the frames that the world counts. This matters only if one of those is missing."""
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
    """Return the runner after its worker of that scenario has ended."""
    worker, uuid = runner.workers[index], uuid_of(index)
    assert worker is not None
    runner_state = record_worker_progress(runner.state, uuid, worker.epoch, worker.next_frame, waits_for)
    runner_state = record_worker_end(runner_state, uuid, worker.epoch, reason, error, fatal=error is not None)
    return runner._replace(state=runner_state, workers=replace_at(runner.workers, index, None))


def drain_runner(state: WorldState, slot: int) -> WorldState:
    """The runner starts to drain: it takes no more work and lets its workers hand over."""
    runner = state.runners[slot]
    runner_state, finishes = drain(runner.state)
    runner = runner._replace(state=runner_state)
    for finish in finishes:
        runner = _apply_action(runner, finish)
    return with_runner(state, slot, runner)


def exit_runner(state: WorldState, world: WorldConfig, slot: int) -> WorldState:
    """A draining runner sends its last report and exits. Another is started in its place."""
    return replace_runner(receive_current_report(state, slot), world, slot)


def replace_runner(state: WorldState, world: WorldConfig, slot: int) -> WorldState:
    """A runner ends with its workers. Its replacement has not sent a report yet."""
    state = _rename_runner(state, RUNNER_NAMES[slot], _free_name(state))
    return with_runner(state, slot, RunnerProcessState(RunnerState(world.capacity), (None,) * len(state.rows)))


def _free_name(state: WorldState) -> str:
    taken = {row.scenario.runner for row in (*state.rows, *(state.backup.rows if state.backup else ()))}
    taken |= {name for name, _ in state.leader.views} | {state.delayed_copy.runner if state.delayed_copy else None}
    return next(name for name in (f"z{n}" for n in range(1, 99)) if name not in taken)


def _rename_runner(state: WorldState, name: str, gone: str) -> WorldState:
    """Rename the runner to `gone` everywhere, and drop the commands for it, which nobody will read."""

    def rename_in_rows(rows: tuple) -> tuple:  # type: ignore[type-arg]
        return tuple(row._replace(scenario=_rename_in_scenario(row.scenario, name, gone)) for row in rows)

    delayed, backup, plan = state.delayed_copy, state.backup, state.pending_plan
    if plan:
        plan = plan._replace(
            events=tuple(
                (_rename_in_scenario(read, name, gone), _rename_in_event(event, name, gone))
                for read, event in plan.events
            ),
            commands=tuple(command for command in plan.commands if command.runner != name),
        )
    if delayed and delayed.runner == name:
        is_report = isinstance(delayed.copy, Report)
        delayed = DelayedCopy(gone, replace(delayed.copy, runner=gone)) if is_report else None
    if backup:
        outbox = tuple(row for row in backup.outbox if row[0] != name)
        backup = backup._replace(rows=rename_in_rows(backup.rows), outbox=outbox)
    state = state._replace(
        rows=rename_in_rows(state.rows),
        outbox=tuple(row for row in state.outbox if row[0] != name),
        delayed_copy=delayed,
        backup=backup,
        pending_plan=plan,
    )
    return with_leader(state, partial(_rename_in_leader, name=name, gone=gone))


def _rename_in_leader(leader: LeaderProcessState, name: str, gone: str) -> LeaderProcessState:
    views = tuple(
        sorted((gone if runner == name else runner, _rename_in_view(view, name, gone)) for runner, view in leader.views)
    )
    commands_sent = frozenset(sent for sent in leader.commands_sent if sent[0][0] != name)
    return leader._replace(views=views, commands_sent=commands_sent)


def _rename_in_scenario(scenario: Scenario, name: str, gone: str) -> Scenario:
    return replace(scenario, runner=gone) if scenario.runner == name else scenario


def _rename_in_event(event: Event, name: str, gone: str) -> Event:
    return replace(event, runner=gone) if event.runner == name else event


def _rename_in_view(view: RunnerView, name: str, gone: str) -> RunnerView:
    if view.report is None or view.report.runner != name:
        return view
    return RunnerView(view.last_seen_s, replace(view.report, runner=gone, taken=0), None if view.mark is None else 0)


def end_cut_off_workers(state: WorldState, slot: int) -> WorldState:
    """A runner that has been cut off for too long ends its workers."""
    runner = state.runners[slot]
    for index, worker in enumerate(runner.workers):
        if worker is not None:
            runner = end_worker(runner, index, EndReason.CUT_OFF)
    return with_runner(state, slot, runner)


def heal_runner(state: WorldState, slot: int, *, commands_lost: bool = False) -> WorldState:
    """The runner recovers. With `commands_lost` it reads from the end of its topic, otherwise its commands are still there."""
    runner = state.runners[slot]
    return with_runner(
        state, slot, runner._replace(mode=RunnerMode.HEALTHY, commands=() if commands_lost else runner.commands)
    )
