"""What may befall the world: a kind of fault is a function from a state to the states that it makes of it. And the backup."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
                yield f"a worker of {RUNNER_NAMES[slot]} crashes", _allow_loss(after)


def _set_mode(mode: RunnerMode) -> FaultGenerator:
    def befalls(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
        for slot, runner in enumerate(state.runners):
            if runner.mode is RunnerMode.HEALTHY:
                yield (
                    f"runner {RUNNER_NAMES[slot]} is {mode}",
                    _allow_loss(with_runner(state, slot, runner._replace(mode=mode))),
                )

    return befalls


def _stop_receiving(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """A runner hears no command any more. It costs no attempt: what runs on it runs on, or is handed over."""
    for slot, runner in enumerate(state.runners):
        if runner.mode is RunnerMode.HEALTHY:
            yield (
                f"runner {RUNNER_NAMES[slot]} is deaf",
                with_runner(state, slot, runner._replace(mode=RunnerMode.NOT_RECEIVING)),
            )


def _stop_receiving_forever(state: WorldState, world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    for slot in range(len(state.runners)):
        for label, after in _stop_receiving(state, world):
            if after.runners[slot].mode is RunnerMode.NOT_RECEIVING and not after.runners[slot].never_recovers:
                yield f"{label} for ever", with_runner(after, slot, after.runners[slot]._replace(never_recovers=True))


def _drain_runner(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    for slot, runner in enumerate(state.runners):
        if not runner.charge.draining:
            yield f"runner {RUNNER_NAMES[slot]} is told to leave", drain_runner(state, slot)


def _end_grace_period(state: WorldState, world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """A draining runner has no more time: it ends its workers, says so, and leaves with what it lists."""
    for slot, runner in enumerate(state.runners):
        if runner.charge.draining and can_report(state, slot):
            for index, worker in enumerate(runner.workers):
                runner = end_worker(runner, index, EndReason.HANDED_OVER) if worker else runner  # noqa: PLW2901
            yield (
                f"the grace of {RUNNER_NAMES[slot]} is over",
                exit_runner(with_runner(state, slot, runner), world, slot),
            )


def _replace_leader(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """It remembers nothing; so a runner that has drained and left looks to it like one that died."""
    after = state._replace(leader=LeaderProcessState((), (None,) * len(state.rows)), pending_plan=None)
    yield "another leads", _allow_loss(after) if _has_lost_runner(after) else after


def _disconnect_kafka(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    if not is_kafka_away(state):
        yield "Kafka is away", state._replace(probes_heard_since_s=None)


def _empty_kafka(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """All topics are gone and are made anew: what was not stored or read is lost, and nothing is left to catch up with."""
    if not any(state.logs) and not any(runner.commands for runner in state.runners):
        return
    none = (0,) * len(state.rows)
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
            findings=tuple(one and one._replace(results_left=none) for one in leader.findings)
        ),
    )
    yield "Kafka is emptied", _allow_loss(after)


def _recreate_topics(state: WorldState, world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """The same, and each runner notices that the topic is another one: it hears no more, hands over and leaves."""
    for _, after in _empty_kafka(state, world):
        for slot, runner in enumerate(after.runners):
            if runner.mode is RunnerMode.HEALTHY and not runner.charge.draining:
                after = with_runner(after, slot, runner._replace(mode=RunnerMode.NOT_RECEIVING))  # noqa: PLW2901
                after = drain_runner(after, slot)  # noqa: PLW2901
        yield "the topics are made anew", after


def _dead_letter_result(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """The inbox cannot store a message, puts it aside and goes on behind it."""
    for index, log in enumerate(state.logs):
        if log:
            yield "the next result becomes a dead letter", _allow_loss(skip_next(state, index))


def _lose_command(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    for slot, runner in enumerate(state.runners):
        for place in range(len(runner.commands)):
            rest = runner.commands[:place] + runner.commands[place + 1 :]
            yield (
                f"a command for {RUNNER_NAMES[slot]} is lost",
                with_runner(state, slot, runner._replace(commands=rest)),
            )


def _copy_command(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """A relay was frozen in the midst of publishing: what is in the topic comes once more, later."""
    if state.delayed_copy is None:
        for slot, runner in enumerate(state.runners):
            for command in runner.commands:
                yield (
                    f"a copy of a command for {RUNNER_NAMES[slot]} is kept",
                    state._replace(delayed_copy=DelayedCopy(RUNNER_NAMES[slot], command)),
                )


def _copy_report(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    if state.delayed_copy is None:
        for slot, runner in enumerate(state.runners):
            if runner.mode in {RunnerMode.HEALTHY, RunnerMode.NOT_RECEIVING} and runner.charge.entries:
                copy = report_of(RUNNER_NAMES[slot], runner.charge, 0)
                yield (
                    f"a copy of a report of {RUNNER_NAMES[slot]} is kept",
                    state._replace(delayed_copy=DelayedCopy(RUNNER_NAMES[slot], copy)),
                )


def _reread_results(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """The inbox stores some of what waits, and begins again at the position before it."""
    for index, log in enumerate(state.logs):
        after = state
        for count, message in enumerate(log, 1):
            after = store_message(after, index, message)
            if after is not state:
                yield f"the inbox reads {count} of its messages and will read them again", after


def _delay_steps(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """Relay, runner, leader or a worker that finishes is slower than it should be: a unit of time passes without it."""
    if not state.pending_plan:
        yield "time passes, and something is slow", advance_time(state)


def _write_late(state: WorldState, world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """The leader has looked and decided; before it writes, others do. It hears nothing meanwhile, and no time passes."""
    if not state.pending_plan:
        looked = make_plan(state, world)
        if looked.events:
            yield "the leader looks, and will write later", state._replace(pending_plan=looked)


def _write_partially(state: WorldState, world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """The leader's plan takes several transactions, and not all of them commit."""
    if state.pending_plan:
        return
    whole = make_plan(state, world)
    for events in range(len(whole.events) + 1):
        for commands in range(len(whole.commands) + 1):
            if (events, commands) != (len(whole.events), len(whole.commands)):
                part = make_plan(state, world, events, commands)
                label = f"the leader writes {events} of {len(whole.events)} events, {commands} of {len(whole.commands)} commands"
                yield label, write_plan(state, world, part)


def _restore_database(state: WorldState, _world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """The tables are as they were at the backup. The inbox reads again what Kafka still holds; nothing is caught up."""
    backup = state.backup
    if not backup or not backup.rows:
        return
    logs = tuple(stored + log for stored, log in zip(backup.stored_since, state.logs, strict=True))
    behind = tuple(len(log) for log in logs)
    found = tuple(one and TrackedFinding(one.finding, behind) for one in state.leader.findings)
    after = state._replace(
        rows=backup.rows,
        outbox=backup.outbox,
        logs=logs,
        backup=Backup(),
        pending_plan=None,
        leader=state.leader._replace(findings=found),
    )
    yield "the database is restored", _allow_loss(after) if _has_lost_runner(after) else after


def _has_lost_runner(state: WorldState) -> bool:
    """Whether the tables name a runner that is gone."""
    return any(row.scenario.runner not in {None, *RUNNER_NAMES} for row in state.rows)


def _allow_loss(state: WorldState) -> WorldState:
    """The state after a fault that may cost each scenario an attempt."""
    return state._replace(losses_allowed=tuple(one + 1 for one in state.losses_allowed))


FAULT_GENERATORS: Final[dict[str, FaultGenerator]] = {
    "kill": _kill_runner,
    "crash": _crash_worker,
    "cut off": _set_mode(RunnerMode.CUT_OFF),
    "frozen": _set_mode(RunnerMode.FROZEN),
    "deaf": _stop_receiving,
    "deaf for ever": _stop_receiving_forever,
    "drain": _drain_runner,
    "grace over": _end_grace_period,
    "take-over": _replace_leader,
    "away": _disconnect_kafka,
    "emptied": _empty_kafka,
    "anew": _recreate_topics,
    "dead letter": _dead_letter_result,
    "lost": _lose_command,
    "copy": _copy_command,
    "stale": _copy_report,
    "re-read": _reread_results,
    "slip": _delay_steps,
    "late write": _write_late,
    "short write": _write_partially,
    "restore": _restore_database,
}
"""The kinds of faults, by the names that worlds give them."""


def generate_fault_steps(state: WorldState, world: WorldConfig) -> Iterator[tuple[str, WorldState]]:
    """All faults that may befall this state."""
    if "restore" in world.faults and state.backup is None:
        yield "(a backup is made)", state._replace(backup=Backup(state.rows, state.outbox, ((),) * len(state.rows)))
    if state.faults_left:
        left = state._replace(faults_left=state.faults_left - 1)
        for kind in world.faults:
            for label, after in FAULT_GENERATORS[kind](left, world):
                yield f"FAULT {label}", after
