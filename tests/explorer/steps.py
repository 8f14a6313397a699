"""All steps that a state allows: what each part may do next, and the faults. Each is one step of a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

from tests.explorer.fault_steps import generate_fault_steps
from tests.explorer.inbox_steps import store_next
from tests.explorer.leader_steps import (
    apply_event,
    can_report,
    deliver_command,
    has_new_report,
    receive_current_report,
    receive_report,
    tick_leader,
    write_plan,
)
from tests.explorer.runner_steps import (
    can_pass_over,
    drain_runner,
    end_cut_off_workers,
    exit_runner,
    heal_runner,
    pass_over,
    read_command,
    readable,
    step_worker,
)
from tests.explorer.state import (
    NOW_S,
    RUNNER_NAMES,
    RunnerProcessState,
    WorldConfig,
    WorldState,
    is_kafka_away,
    replace_at,
)
from tests.explorer.time_steps import advance_time, can_time_pass
from tests.invariants.simulation_state import RunnerMode

from vidflow.domain.messages import Report
from vidflow.domain.runner import is_empty
from vidflow.domain.scenario import State, build_shutdown_request

LEADER_TICKS: Final = "the leader ticks"
LEADER_WRITES: Final = "the leader writes"
CLIENT_SHUTS_DOWN: Final = "a shutdown is requested"


class WorldStep(NamedTuple):
    """A step: its label, whether it eventually happens without further faults (`fair`), and the state it leads to."""

    label: str
    fair: bool
    next_state: Callable[[], WorldState]


def generate_steps(state: WorldState, world: WorldConfig) -> Iterator[WorldStep]:
    """Yield all steps except faults and the passing of time.

    A step's `next_state` raises InvariantViolation if an invariant does not hold.
    """
    yield from _client(state, world)
    yield from _leader(state, world)
    yield from _backoff_steps(state)
    if not is_kafka_away(state):
        yield from _kafka(state)
        yield from _runners(state, world)
    else:
        yield WorldStep("Kafka is reachable again", True, lambda: state._replace(probes_received_since_s=NOW_S))
    yield from _recovery_steps(state)
    yield from _workers(state, world)


def _client(state: WorldState, world: WorldConfig) -> Iterator[WorldStep]:
    for index, row in enumerate(state.rows if world.shutdown or world.source.live else ()):
        if row.scenario.state in {State.INIT_STARTUP, State.IN_STARTUP_PROCESSING, State.ACTIVE}:
            event = build_shutdown_request()
            yield WorldStep(CLIENT_SHUTS_DOWN, world.source.live, partial(apply_event, state, world, index, event))


def _leader(state: WorldState, world: WorldConfig) -> Iterator[WorldStep]:
    if state.pending_plan:
        yield WorldStep(LEADER_WRITES, True, partial(write_plan, state, world, state.pending_plan))
        return
    yield WorldStep(LEADER_TICKS, True, partial(tick_leader, state, world))
    for slot in range(len(state.runners)):
        if can_report(state, slot) and has_new_report(state, slot):
            label = f"the leader receives a report of runner {RUNNER_NAMES[slot]}"
            yield WorldStep(label, True, partial(receive_current_report, state, slot))


def _backoff_steps(state: WorldState) -> Iterator[WorldStep]:
    for index, row in enumerate(state.rows):
        if not row.due and row.scenario.state is State.INIT_STARTUP:
            after = state._replace(rows=replace_at(state.rows, index, row._replace(due=True)))
            yield WorldStep("a backoff is over", True, lambda after=after: after)


def generate_time_steps(state: WorldState, ticked: WorldState) -> Iterator[WorldStep]:
    """Yield the step that lets time pass, if it may. `ticked` is the state after one more tick of the leader."""
    if can_time_pass(state, ticked):
        yield WorldStep("time passes", True, partial(advance_time, state))


def _kafka(state: WorldState) -> Iterator[WorldStep]:
    for index, log in enumerate(state.logs):
        if log:
            yield WorldStep("the inbox stores a message", True, partial(store_next, state, index))
    if state.outbox:
        (runner, command), *unpublished = state.outbox
        published = state._replace(outbox=tuple(unpublished))
        yield WorldStep("the relay publishes", True, partial(deliver_command, published, runner, command))
    delayed = state.delayed_copy
    if delayed is not None:
        rest = state._replace(delayed_copy=None)
        if isinstance(delayed.copy, Report):
            yield WorldStep(
                "the leader receives an old report again", True, partial(receive_report, rest, delayed.copy)
            )
        else:
            step = partial(deliver_command, rest, delayed.runner, delayed.copy)
            yield WorldStep("a copy of a command is delivered", True, step)


def _runners(state: WorldState, world: WorldConfig) -> Iterator[WorldStep]:
    for slot, runner in enumerate(state.runners):
        if runner.state.draining and can_report(state, slot) and _may_exit(runner):
            yield WorldStep(
                f"runner {RUNNER_NAMES[slot]} exits, another starts", True, partial(exit_runner, state, world, slot)
            )
        if runner.mode is not RunnerMode.HEALTHY:
            continue
        for position in readable(runner.commands):
            yield WorldStep(f"runner {RUNNER_NAMES[slot]} reads", True, partial(read_command, state, slot, position))


def _may_exit(runner: RunnerProcessState) -> bool:
    """Return whether a draining runner may exit: with no entries, or, if it cannot receive a forget, without workers."""
    return is_empty(runner.state) or (runner.mode is RunnerMode.NOT_RECEIVING and not any(runner.workers))


def _recovery_steps(state: WorldState) -> Iterator[WorldStep]:
    for slot, runner in enumerate(state.runners):
        name = RUNNER_NAMES[slot]
        if runner.mode is not RunnerMode.HEALTHY and not runner.never_recovers:
            yield WorldStep(f"runner {name} recovers", True, partial(heal_runner, state, slot))
        if runner.mode is RunnerMode.NOT_RECEIVING and not runner.never_recovers and not runner.state.draining:
            if runner.commands:
                label = f"runner {name} recovers and reads from the end of its topic"
                yield WorldStep(label, True, partial(heal_runner, state, slot, commands_lost=True))
            label = f"runner {name} notices that it receives no commands, and drains"
            yield WorldStep(label, True, partial(drain_runner, state, slot))
        if (runner.mode is RunnerMode.CUT_OFF or is_kafka_away(state)) and any(runner.workers):
            label = f"runner {name} is cut off and ends its workers"
            yield WorldStep(label, True, partial(end_cut_off_workers, state, slot))


def _workers(state: WorldState, world: WorldConfig) -> Iterator[WorldStep]:
    if is_kafka_away(state):
        return
    for slot, runner in enumerate(state.runners):
        if runner.mode is RunnerMode.CUT_OFF:
            continue
        for index, worker in enumerate(runner.workers):
            if worker is not None:
                label = f"a worker of runner {RUNNER_NAMES[slot]} continues"
                yield WorldStep(label, True, partial(step_worker, state, world, slot, index))
                if can_pass_over(worker, world.source):
                    label = f"a worker of runner {RUNNER_NAMES[slot]} misses a frame"
                    yield WorldStep(label, False, partial(pass_over, state, slot, index))


def generate_all_steps(state: WorldState, world: WorldConfig) -> Iterator[WorldStep]:
    """Yield the steps of `generate_steps`, then the faults."""
    yield from generate_steps(state, world)
    for label, after in generate_fault_steps(state, world):
        yield WorldStep(label, False, lambda after=after: after)
