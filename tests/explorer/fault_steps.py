"""The faults: each kind is a function from a state to the states that the fault may lead to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import add
from typing import Final

from tests.explorer.inbox_steps import skip_next, store_message
from tests.explorer.leader_steps import can_report, make_plan, write_plan
from tests.explorer.runner_steps import drain_runner, end_worker, exit_runner, replace_runner
from tests.explorer.state import (
    RUNNER_NAMES,
    Backup,
    DelayedCopy,
    LeaderProcessState,
    TrackedFinding,
    WorldConfig,
    WorldState,
    is_kafka_away,
    report_of,
    with_leader,
    with_runner,
)
from tests.explorer.time_steps import advance_time
from tests.invariants.simulation_state import RunnerMode

from vidflow.domain.messages import EndReason

FaultGenerator = Callable[[WorldState, WorldConfig], Iterator[tuple[str, WorldState]]]


def _kill_runner(state: WorldState, world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    for slot in range(len(state.runners)):
        yield f"runner {RUNNER_NAMES[slot]} is killed, another starts", _allow_loss(replace_runner(state, world, slot))


def _crash_worker(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    for slot, runner in enumerate(state.runners):
        for index, worker in enumerate(runner.workers):
            if worker is not None:
                after = with_runner(state, slot, end_worker(runner, index, EndReason.CRASHED))
                yield f"a worker of runner {RUNNER_NAMES[slot]} crashes", _allow_loss(after)


def _set_mode(mode: RunnerMode, name: str) -> FaultGenerator:
    def set_mode(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
        for slot, runner in enumerate(state.runners):
            if runner.mode is RunnerMode.HEALTHY:
                after = with_runner(state, slot, runner._replace(mode=mode))
                yield f"runner {RUNNER_NAMES[slot]} is {name}", _allow_loss(after)

    return set_mode


def _stop_receiving(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """A runner receives no commands any more. This costs no attempt: its work continues or is handed over."""
    for slot, runner in enumerate(state.runners):
        if runner.mode is RunnerMode.HEALTHY:
            after = with_runner(state, slot, runner._replace(mode=RunnerMode.NOT_RECEIVING))
            yield f"runner {RUNNER_NAMES[slot]} receives no commands", after


def _stop_receiving_forever(state: WorldState, world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    for slot in range(len(state.runners)):
        for label, after in _stop_receiving(state, world):
            if after.runners[slot].mode is RunnerMode.NOT_RECEIVING and not after.runners[slot].never_recovers:
                yield (
                    f"{label}, permanently",
                    with_runner(after, slot, after.runners[slot]._replace(never_recovers=True)),
                )


def _drain_runner(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    for slot, runner in enumerate(state.runners):
        if not runner.state.draining:
            yield f"runner {RUNNER_NAMES[slot]} drains", drain_runner(state, slot)


def _end_grace_period(state: WorldState, world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """The grace period of a draining runner ends: it ends its workers, reports that, and exits with entries left."""
    for slot, runner in enumerate(state.runners):
        if runner.state.draining and can_report(state, slot):
            for index, worker in enumerate(runner.workers):
                runner = end_worker(runner, index, EndReason.HANDED_OVER) if worker else runner  # noqa: PLW2901
            yield (
                f"the grace period of runner {RUNNER_NAMES[slot]} ends",
                exit_runner(with_runner(state, slot, runner), world, slot),
            )


def _replace_leader(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """The new leader remembers nothing, so it takes a runner that drained and exited for one that died."""
    after = state._replace(leader=LeaderProcessState((), (None,) * len(state.rows)), pending_plan=None)
    yield "another leader takes over", _allow_loss(after) if _has_lost_runner(after) else after


def _disconnect_kafka(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    if not is_kafka_away(state):
        yield "Kafka is unreachable", state._replace(probes_received_since_s=None)


def _empty_kafka(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """All topics lose their messages. What was not stored or read is lost, and the inbox has nothing left to catch up with."""
    if not any(state.logs) and not any(runner.commands for runner in state.runners):
        return
    no_results = (0,) * len(state.rows)
    backup = state.backup
    if backup and backup.rows:
        backup = backup._replace(stored_since=((),) * len(state.rows))
    after = state._replace(
        logs=((),) * len(state.rows),
        runners=tuple(runner._replace(commands=()) for runner in state.runners),
        delayed_copy=None,
        backup=backup,
    )
    after = with_leader(
        after,
        lambda leader: leader._replace(
            findings=tuple(finding and finding._replace(results_left=no_results) for finding in leader.findings)
        ),
    )
    yield "Kafka is emptied", _allow_loss(after)


def _recreate_topics(state: WorldState, world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """As `_empty_kafka`, and each runner notices the new topic: it receives no more commands and drains."""
    for _, after in _empty_kafka(state, world):
        for slot, runner in enumerate(after.runners):
            if runner.mode is RunnerMode.HEALTHY and not runner.state.draining:
                after = with_runner(after, slot, runner._replace(mode=RunnerMode.NOT_RECEIVING))  # noqa: PLW2901
                after = drain_runner(after, slot)  # noqa: PLW2901
        yield "the topics are recreated", after


def _dead_letter_result(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """The inbox cannot store a message, sets it aside as a dead letter and continues with the next one."""
    for index, log in enumerate(state.logs):
        if log:
            yield "the next result becomes a dead letter", _allow_loss(skip_next(state, index))


def _lose_command(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    for slot, runner in enumerate(state.runners):
        for position in range(len(runner.commands)):
            rest = runner.commands[:position] + runner.commands[position + 1 :]
            after = with_runner(state, slot, runner._replace(commands=rest))
            yield f"a command for runner {RUNNER_NAMES[slot]} is lost", after


def _copy_command(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """A relay was frozen while publishing: a command in the topic is delivered once more, later."""
    if state.delayed_copy is None:
        for slot, runner in enumerate(state.runners):
            for command in runner.commands:
                yield (
                    f"a copy of a command for runner {RUNNER_NAMES[slot]} is kept",
                    state._replace(delayed_copy=DelayedCopy(RUNNER_NAMES[slot], command)),
                )


def _copy_report(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    if state.delayed_copy is None:
        for slot, runner in enumerate(state.runners):
            if runner.mode in {RunnerMode.HEALTHY, RunnerMode.NOT_RECEIVING} and runner.state.entries:
                copy = report_of(RUNNER_NAMES[slot], runner.state, 0)
                yield (
                    f"a copy of a report of runner {RUNNER_NAMES[slot]} is kept",
                    state._replace(delayed_copy=DelayedCopy(RUNNER_NAMES[slot], copy)),
                )


def _reread_results(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """The inbox stores some waiting messages, then restarts from the position before them."""
    for index, log in enumerate(state.logs):
        after = state
        for count, message in enumerate(log, 1):
            after = store_message(after, index, message)
            if after is not state:
                yield f"the inbox stores {count} of its messages and will read them again", after


def _delay_steps(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """The relay, a runner, the leader or a finishing worker is slow: a unit of time passes before it acts."""
    if not state.pending_plan:
        yield "time passes while something is slow", advance_time(state)


def _write_late(state: WorldState, world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """The leader has decided; others write before it does. It receives nothing meanwhile, and no time passes."""
    if not state.pending_plan:
        plan = make_plan(state, world)
        if plan.events:
            yield "the leader decides and will write later", state._replace(pending_plan=plan)


def _write_partially(state: WorldState, world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """The leader writes its plan in several transactions, and not all of them commit."""
    if state.pending_plan:
        return
    plan = make_plan(state, world)
    for events in range(len(plan.events) + 1):
        for commands in range(len(plan.commands) + 1):
            if (events, commands) != (len(plan.events), len(plan.commands)):
                part = make_plan(state, world, events, commands)
                label = f"the leader writes {events} of {len(plan.events)} events, {commands} of {len(plan.commands)} commands"
                yield label, write_plan(state, world, part)


def _restore_database(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """Restore the tables from the backup. The inbox reads again what Kafka still holds, so no finding is caught up.

    A loss that was counted since the backup was made is undone, so the same fault may explain it again.
    """
    backup = state.backup
    if not backup or not backup.rows:
        return
    logs = tuple(stored + log for stored, log in zip(backup.stored_since, state.logs, strict=True))
    lags = tuple(len(log) for log in logs)
    findings = tuple(tracked and TrackedFinding(tracked.finding, lags) for tracked in state.leader.findings)
    after = state._replace(
        rows=backup.rows,
        outbox=backup.outbox,
        logs=logs,
        backup=Backup(),
        losses_allowed=tuple(map(add, state.losses_allowed, backup.losses_since)),
        pending_plan=None,
        leader=state.leader._replace(findings=findings),
    )
    yield "the database is restored", _allow_loss(after) if _has_lost_runner(after) else after


def _make_backup(state: WorldState) -> Backup:
    count = len(state.rows)
    return Backup(state.rows, state.outbox, ((),) * count, (0,) * count)


def _has_lost_runner(state: WorldState) -> bool:
    """Return whether the tables name a runner that no longer exists."""
    return any(row.scenario.runner not in {None, *RUNNER_NAMES} for row in state.rows)


def _allow_loss(state: WorldState) -> WorldState:
    """Return the state after a fault that may cost each scenario an attempt."""
    return state._replace(losses_allowed=tuple(losses + 1 for losses in state.losses_allowed))


FAULT_GENERATORS: Final[dict[str, FaultGenerator]] = {
    "kill": _kill_runner,
    "crash": _crash_worker,
    "cut off": _set_mode(RunnerMode.CUT_OFF, "cut off"),
    "frozen": _set_mode(RunnerMode.FROZEN, "frozen"),
    "not receiving": _stop_receiving,
    "never receiving": _stop_receiving_forever,
    "drain": _drain_runner,
    "grace period over": _end_grace_period,
    "takeover": _replace_leader,
    "Kafka unreachable": _disconnect_kafka,
    "Kafka emptied": _empty_kafka,
    "topics recreated": _recreate_topics,
    "dead letter": _dead_letter_result,
    "lost command": _lose_command,
    "copied command": _copy_command,
    "stale report": _copy_report,
    "re-read": _reread_results,
    "delay": _delay_steps,
    "late write": _write_late,
    "partial write": _write_partially,
    "restore": _restore_database,
}
"""The kinds of faults, by the names used in `WorldConfig.faults`."""


def generate_fault_steps(state: WorldState, world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """Yield all faults that may happen in this state, and the making of a backup for a later restore."""
    if "restore" in world.faults and state.backup is None:
        yield "(a backup is made)", state._replace(backup=_make_backup(state))
    if state.faults_left:
        before = state._replace(faults_left=state.faults_left - 1)
        for kind in world.faults:
            for label, after in FAULT_GENERATORS[kind](before, world):
                yield f"FAULT {label}", after
