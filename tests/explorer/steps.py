"""Every move that a state allows: what each part may do next, and what may befall it. One move is one step of a trace."""

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
    hear_report,
    hear_runner,
    tick_leader,
    write_plan,
)
from tests.explorer.runner_steps import (
    drain_runner,
    end_cut_off_workers,
    exit_runner,
    heal_runner,
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
from vidflow.domain.scenario import Event, Kind
from vidflow.domain.scenario import State as Stage

LEADER_TICKS: Final = "the leader ticks"
LEADER_WRITES: Final = "the leader writes"
CLIENT_SHUTS_DOWN: Final = "a shutdown is requested"


class WorldStep(NamedTuple):
    """A move: what it is called, whether it comes by itself where nothing goes wrong any more, and what it makes."""

    label: str
    fair: bool
    next_state: Callable[[], WorldState]


def generate_steps(state: WorldState, world: WorldConfig) -> Iterator[WorldStep]:
    """All moves from a state. A step's `next_state` raises Broken where an invariant does not hold."""
    yield from _client(state, world)
    yield from _leader(state, world)
    yield from _backoff_steps(state)
    if not is_kafka_away(state):
        yield from _kafka(state)
        yield from _runners(state, world)
    else:
        yield WorldStep("Kafka is back", True, lambda: state._replace(probes_heard_since_s=NOW_S))
    yield from _recovery_steps(state)
    yield from _workers(state, world)


def _client(state: WorldState, world: WorldConfig) -> Iterator[WorldStep]:
    for index, row in enumerate(state.rows if world.shutdown or world.source.live else ()):
        if row.scenario.state in {Stage.INIT_STARTUP, Stage.IN_STARTUP_PROCESSING, Stage.ACTIVE}:
            event = Event(kind=Kind.SHUTDOWN_REQUESTED, reason="shutdown requested")
            yield WorldStep(CLIENT_SHUTS_DOWN, world.source.live, partial(apply_event, state, world, index, event))


def _leader(state: WorldState, world: WorldConfig) -> Iterator[WorldStep]:
    if state.pending_plan:
        yield WorldStep(LEADER_WRITES, True, partial(write_plan, state, world, state.pending_plan))
        return
    yield WorldStep(LEADER_TICKS, True, partial(tick_leader, state, world))
    for slot in range(len(state.runners)):
        if can_report(state, slot) and has_new_report(state, slot):
            yield WorldStep(f"the leader hears runner {RUNNER_NAMES[slot]}", True, partial(hear_runner, state, slot))


def _backoff_steps(state: WorldState) -> Iterator[WorldStep]:
    for index, row in enumerate(state.rows):
        if not row.due and row.scenario.state is Stage.INIT_STARTUP:
            after = state._replace(rows=replace_at(state.rows, index, row._replace(due=True)))
            yield WorldStep("a backoff is over", True, lambda after=after: after)


def generate_time_steps(state: WorldState, ticked: WorldState) -> Iterator[WorldStep]:
    """The passing of time, which needs to know what one more tick of the leader would make."""
    if can_time_pass(state, ticked):
        yield WorldStep("time passes", True, partial(advance_time, state))


def _kafka(state: WorldState) -> Iterator[WorldStep]:
    for index, log in enumerate(state.logs):
        if log:
            yield WorldStep("the inbox takes a message", True, partial(store_next, state, index))
    if state.outbox:
        (runner, command), *rest = state.outbox
        yield WorldStep(
            "the relay publishes", True, lambda: deliver_command(state._replace(outbox=tuple(rest)), runner, command)
        )
    late = state.delayed_copy
    if late is not None:
        without = state._replace(delayed_copy=None)
        if isinstance(late.copy, Report):
            yield WorldStep("the leader hears an old report again", True, partial(hear_report, without, late.copy))
        else:
            yield WorldStep("a late copy comes", True, partial(deliver_command, without, late.runner, late.copy))


def _runners(state: WorldState, world: WorldConfig) -> Iterator[WorldStep]:
    for slot, runner in enumerate(state.runners):
        if runner.charge.draining and can_report(state, slot) and _may_leave(runner):
            yield WorldStep(
                f"runner {RUNNER_NAMES[slot]} leaves, another starts", True, partial(exit_runner, state, world, slot)
            )
        if runner.mode is not RunnerMode.HEALTHY:
            continue
        for place in readable(runner.commands):
            yield WorldStep(f"runner {RUNNER_NAMES[slot]} reads", True, partial(read_command, state, slot, place))


def _may_leave(runner: RunnerProcessState) -> bool:
    """It leaves with an empty list; a deaf one, which nobody can tell to forget, once no worker is left."""
    return is_empty(runner.charge) or (runner.mode is RunnerMode.NOT_RECEIVING and not any(runner.workers))


def _recovery_steps(state: WorldState) -> Iterator[WorldStep]:
    for slot, runner in enumerate(state.runners):
        name = RUNNER_NAMES[slot]
        if runner.mode is not RunnerMode.HEALTHY and not runner.never_recovers:
            yield WorldStep(f"runner {name} is well again", True, partial(heal_runner, state, slot))
        if runner.mode is RunnerMode.NOT_RECEIVING and not runner.never_recovers and not runner.charge.draining:
            if runner.commands:
                label = f"runner {name} is well again and listens from the end"
                yield WorldStep(label, True, partial(heal_runner, state, slot, commands_lost=True))
            yield WorldStep(
                f"runner {name} finds that it is deaf, and will leave", True, partial(drain_runner, state, slot)
            )
        if (runner.mode is RunnerMode.CUT_OFF or is_kafka_away(state)) and any(runner.workers):
            yield WorldStep(f"runner {name} ends its workers: cut off", True, partial(end_cut_off_workers, state, slot))


def _workers(state: WorldState, world: WorldConfig) -> Iterator[WorldStep]:
    if is_kafka_away(state):
        return
    for slot, runner in enumerate(state.runners):
        if runner.mode is RunnerMode.CUT_OFF:
            continue
        for index, worker in enumerate(runner.workers):
            if worker is not None:
                yield WorldStep(
                    f"a worker of {RUNNER_NAMES[slot]} goes on", True, partial(step_worker, state, world, slot, index)
                )


def generate_all_steps(state: WorldState, world: WorldConfig) -> Iterator[WorldStep]:
    """`generate_steps`, and what befalls."""
    yield from generate_steps(state, world)
    for label, after in generate_fault_steps(state, world):
        yield WorldStep(label, False, lambda after=after: after)
