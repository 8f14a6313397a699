"""Every move that a state allows: what each part may do next, and what may befall it. One move is one step of a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

from tests.explorer.befalling import befalls
from tests.explorer.leading import arrived, can_report, has_news, heard, hears, moved, ticks, writes
from tests.explorer.passing import later, may_pass
from tests.explorer.state import NAMES, NOW_S, Runner, State, World, is_away, put
from tests.explorer.storing import stores
from tests.explorer.working import cut_off_for_long, drains, leaves, readable, reads, well_again, works
from tests.invariants.parts import Mode

from vidflow.domain.messages import Report
from vidflow.domain.runner import is_empty
from vidflow.domain.scenario import Event, Kind
from vidflow.domain.scenario import State as Stage

LEADER: Final = "the leader ticks"
WRITES: Final = "the leader writes"
CLIENT: Final = "a shutdown is requested"


class Step(NamedTuple):
    """A move: what it is called, whether it comes by itself where nothing goes wrong any more, and what it makes."""

    label: str
    fair: bool
    make: Callable[[], State]


def steps(state: State, world: World) -> Iterator[Step]:
    """All moves from a state. A step's `make` raises Broken where an invariant does not hold."""
    yield from _client(state, world)
    yield from _leader(state, world)
    yield from _time(state)
    if not is_away(state):
        yield from _kafka(state)
        yield from _runners(state, world)
    else:
        yield Step("Kafka is back", True, lambda: state._replace(hearing_s=NOW_S))
    yield from _troubled(state)
    yield from _workers(state, world)


def _client(state: State, world: World) -> Iterator[Step]:
    for index, row in enumerate(state.rows if world.shutdown or world.source.live else ()):
        if row.scenario.state in {Stage.INIT_STARTUP, Stage.IN_STARTUP_PROCESSING, Stage.ACTIVE}:
            event = Event(kind=Kind.SHUTDOWN_REQUESTED, reason="shutdown requested")
            yield Step(CLIENT, world.source.live, partial(moved, state, world, index, event))


def _leader(state: State, world: World) -> Iterator[Step]:
    if state.looked:
        yield Step(WRITES, True, partial(writes, state, world, state.looked))
        return
    yield Step(LEADER, True, partial(ticks, state, world))
    for slot in range(len(state.runners)):
        if can_report(state, slot) and has_news(state, slot):
            yield Step(f"the leader hears runner {NAMES[slot]}", True, partial(hears, state, slot))


def _time(state: State) -> Iterator[Step]:
    for index, row in enumerate(state.rows):
        if not row.due and row.scenario.state is Stage.INIT_STARTUP:
            after = state._replace(rows=put(state.rows, index, row._replace(due=True)))
            yield Step("a backoff is over", True, lambda after=after: after)


def passes(state: State, ticked: State) -> Iterator[Step]:
    """The passing of time, which needs to know what one more tick of the leader would make."""
    if may_pass(state, ticked):
        yield Step("time passes", True, partial(later, state))


def _kafka(state: State) -> Iterator[Step]:
    for index, log in enumerate(state.logs):
        if log:
            yield Step("the inbox takes a message", True, partial(stores, state, index))
    if state.outbox:
        (runner, command), *rest = state.outbox
        yield Step("the relay publishes", True, lambda: arrived(state._replace(outbox=tuple(rest)), runner, command))
    late = state.late
    if late is not None:
        without = state._replace(late=None)
        if isinstance(late.copy, Report):
            yield Step("the leader hears an old report again", True, partial(heard, without, late.copy))
        else:
            yield Step("a late copy comes", True, partial(arrived, without, late.runner, late.copy))


def _runners(state: State, world: World) -> Iterator[Step]:
    for slot, runner in enumerate(state.runners):
        if runner.charge.draining and can_report(state, slot) and _may_leave(runner):
            yield Step(f"runner {NAMES[slot]} leaves, another starts", True, partial(leaves, state, world, slot))
        if runner.mode is not Mode.WELL:
            continue
        for place in readable(runner.commands):
            yield Step(f"runner {NAMES[slot]} reads", True, partial(reads, state, slot, place))


def _may_leave(runner: Runner) -> bool:
    """It leaves with an empty list; a deaf one, which nobody can tell to forget, once no worker is left."""
    return is_empty(runner.charge) or (runner.mode is Mode.DEAF and not any(runner.workers))


def _troubled(state: State) -> Iterator[Step]:
    for slot, runner in enumerate(state.runners):
        name = NAMES[slot]
        if runner.mode is not Mode.WELL and not runner.lost:
            yield Step(f"runner {name} is well again", True, partial(well_again, state, slot))
        if runner.mode is Mode.DEAF and not runner.lost and not runner.charge.draining:
            if runner.commands:
                label = f"runner {name} is well again and listens from the end"
                yield Step(label, True, partial(well_again, state, slot, commands_lost=True))
            yield Step(f"runner {name} finds that it is deaf, and will leave", True, partial(drains, state, slot))
        if (runner.mode is Mode.CUT or is_away(state)) and any(runner.workers):
            yield Step(f"runner {name} ends its workers: cut off", True, partial(cut_off_for_long, state, slot))


def _workers(state: State, world: World) -> Iterator[Step]:
    if is_away(state):
        return
    for slot, runner in enumerate(state.runners):
        if runner.mode is Mode.CUT:
            continue
        for index, worker in enumerate(runner.workers):
            if worker is not None:
                yield Step(f"a worker of {NAMES[slot]} goes on", True, partial(works, state, world, slot, index))


def all_steps(state: State, world: World) -> Iterator[Step]:
    """`steps`, and what befalls."""
    yield from steps(state, world)
    for label, after in befalls(state, world):
        yield Step(label, False, lambda after=after: after)
