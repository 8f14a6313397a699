"""What may befall the world: a kind of fault is a function from a state to the states that it makes of it. And the backup."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from tests.explorer.leading import can_report, looks, writes
from tests.explorer.passing import later
from tests.explorer.state import (
    NAMES,
    Backup,
    Found,
    Late,
    Leader,
    State,
    World,
    is_away,
    told,
    with_leader,
    with_runner,
)
from tests.explorer.storing import passed_over, taken
from tests.explorer.working import drains, ended, leaves, starts_anew
from tests.invariants.parts import Mode

from vidflow.domain.messages import EndReason

Fault = Callable[[State, World], Iterator[tuple[str, State]]]


def _killed(state: State, world: World) -> Iterator[tuple[str, State]]:
    for slot in range(len(state.runners)):
        yield f"runner {NAMES[slot]} is killed, another starts", _explains(starts_anew(state, world, slot))


def _crashed(state: State, _world: World) -> Iterator[tuple[str, State]]:
    for slot, runner in enumerate(state.runners):
        for index, worker in enumerate(runner.workers):
            if worker is not None:
                after = with_runner(state, slot, ended(runner, index, EndReason.CRASHED))
                yield f"a worker of {NAMES[slot]} crashes", _explains(after)


def _trouble(mode: Mode) -> Fault:
    def befalls(state: State, _world: World) -> Iterator[tuple[str, State]]:
        for slot, runner in enumerate(state.runners):
            if runner.mode is Mode.WELL:
                yield f"runner {NAMES[slot]} is {mode}", _explains(with_runner(state, slot, runner._replace(mode=mode)))

    return befalls


def _deaf(state: State, _world: World) -> Iterator[tuple[str, State]]:
    """A runner hears no command any more. It costs no attempt: what runs on it runs on, or is handed over."""
    for slot, runner in enumerate(state.runners):
        if runner.mode is Mode.WELL:
            yield f"runner {NAMES[slot]} is deaf", with_runner(state, slot, runner._replace(mode=Mode.DEAF))


def _deaf_for_ever(state: State, world: World) -> Iterator[tuple[str, State]]:
    for slot in range(len(state.runners)):
        for label, after in _deaf(state, world):
            if after.runners[slot].mode is Mode.DEAF and not after.runners[slot].lost:
                yield f"{label} for ever", with_runner(after, slot, after.runners[slot]._replace(lost=True))


def _drained(state: State, _world: World) -> Iterator[tuple[str, State]]:
    for slot, runner in enumerate(state.runners):
        if not runner.charge.draining:
            yield f"runner {NAMES[slot]} is told to leave", drains(state, slot)


def _grace_over(state: State, world: World) -> Iterator[tuple[str, State]]:
    """A draining runner has no more time: it ends its workers, says so, and leaves with what it lists."""
    for slot, runner in enumerate(state.runners):
        if runner.charge.draining and can_report(state, slot):
            for index, worker in enumerate(runner.workers):
                runner = ended(runner, index, EndReason.HANDED_OVER) if worker else runner  # noqa: PLW2901
            yield f"the grace of {NAMES[slot]} is over", leaves(with_runner(state, slot, runner), world, slot)


def _another_leads(state: State, _world: World) -> Iterator[tuple[str, State]]:
    """It remembers nothing; so a runner that has drained and left looks to it like one that died."""
    after = state._replace(leader=Leader((), (None,) * len(state.rows)), looked=None)
    yield "another leads", _explains(after) if _names_gone(after) else after


def _away(state: State, _world: World) -> Iterator[tuple[str, State]]:
    if not is_away(state):
        yield "Kafka is away", state._replace(hearing_s=None)


def _emptied(state: State, _world: World) -> Iterator[tuple[str, State]]:
    """All topics are gone and are made anew: what was not stored or read is lost, and nothing is left to catch up with."""
    if not any(state.logs) and not any(runner.commands for runner in state.runners):
        return
    none = (0,) * len(state.rows)
    backup = state.backup
    if backup and backup.rows:
        backup = backup._replace(stored=((),) * len(state.rows))
    after = state._replace(
        logs=((),) * len(state.rows),
        runners=tuple(runner._replace(commands=()) for runner in state.runners),
        late=None,
        backup=backup,
    )
    after = with_leader(
        after, lambda leader: leader._replace(found=tuple(one and one._replace(behind=none) for one in leader.found))
    )
    yield "Kafka is emptied", _explains(after)


def _made_anew(state: State, world: World) -> Iterator[tuple[str, State]]:
    """The same, and each runner notices that the topic is another one: it hears no more, hands over and leaves."""
    for _, after in _emptied(state, world):
        for slot, runner in enumerate(after.runners):
            if runner.mode is Mode.WELL and not runner.charge.draining:
                after = with_runner(after, slot, runner._replace(mode=Mode.DEAF))  # noqa: PLW2901
                after = drains(after, slot)  # noqa: PLW2901
        yield "the topics are made anew", after


def _dead_letter(state: State, _world: World) -> Iterator[tuple[str, State]]:
    """The inbox cannot store a message, puts it aside and goes on behind it."""
    for index, log in enumerate(state.logs):
        if log:
            yield "the next result becomes a dead letter", _explains(passed_over(state, index))


def _command_lost(state: State, _world: World) -> Iterator[tuple[str, State]]:
    for slot, runner in enumerate(state.runners):
        for place in range(len(runner.commands)):
            rest = runner.commands[:place] + runner.commands[place + 1 :]
            yield f"a command for {NAMES[slot]} is lost", with_runner(state, slot, runner._replace(commands=rest))


def _command_copied(state: State, _world: World) -> Iterator[tuple[str, State]]:
    """A relay was frozen in the midst of publishing: what is in the topic comes once more, later."""
    if state.late is None:
        for slot, runner in enumerate(state.runners):
            for command in runner.commands:
                yield f"a copy of a command for {NAMES[slot]} is kept", state._replace(late=Late(NAMES[slot], command))


def _report_copied(state: State, _world: World) -> Iterator[tuple[str, State]]:
    if state.late is None:
        for slot, runner in enumerate(state.runners):
            if runner.mode in {Mode.WELL, Mode.DEAF} and runner.charge.entries:
                copy = told(NAMES[slot], runner.charge, 0)
                yield f"a copy of a report of {NAMES[slot]} is kept", state._replace(late=Late(NAMES[slot], copy))


def _read_again(state: State, _world: World) -> Iterator[tuple[str, State]]:
    """The inbox stores some of what waits, and begins again at the position before it."""
    for index, log in enumerate(state.logs):
        after = state
        for count, message in enumerate(log, 1):
            after = taken(after, index, message)
            if after is not state:
                yield f"the inbox reads {count} of its messages and will read them again", after


def _slipped(state: State, _world: World) -> Iterator[tuple[str, State]]:
    """Relay, runner, leader or a worker that finishes is slower than it should be: a unit of time passes without it."""
    if not state.looked:
        yield "time passes, and something is slow", later(state)


def _written_late(state: State, world: World) -> Iterator[tuple[str, State]]:
    """The leader has looked and decided; before it writes, others do. It hears nothing meanwhile, and no time passes."""
    if not state.looked:
        looked = looks(state, world)
        if looked.events:
            yield "the leader looks, and will write later", state._replace(looked=looked)


def _written_in_part(state: State, world: World) -> Iterator[tuple[str, State]]:
    """The leader's plan takes several transactions, and not all of them commit."""
    if state.looked:
        return
    whole = looks(state, world)
    for events in range(len(whole.events) + 1):
        for commands in range(len(whole.commands) + 1):
            if (events, commands) != (len(whole.events), len(whole.commands)):
                part = looks(state, world, events, commands)
                label = f"the leader writes {events} of {len(whole.events)} events, {commands} of {len(whole.commands)} commands"
                yield label, writes(state, world, part)


def _restored(state: State, _world: World) -> Iterator[tuple[str, State]]:
    """The tables are as they were at the backup. The inbox reads again what Kafka still holds; nothing is caught up."""
    backup = state.backup
    if not backup or not backup.rows:
        return
    logs = tuple(stored + log for stored, log in zip(backup.stored, state.logs, strict=True))
    behind = tuple(len(log) for log in logs)
    found = tuple(one and Found(one.finding, behind) for one in state.leader.found)
    after = state._replace(
        rows=backup.rows,
        outbox=backup.outbox,
        logs=logs,
        backup=Backup(),
        looked=None,
        leader=state.leader._replace(found=found),
    )
    yield "the database is restored", _explains(after) if _names_gone(after) else after


def _names_gone(state: State) -> bool:
    """Whether the tables name a runner that is gone."""
    return any(row.scenario.runner not in {None, *NAMES} for row in state.rows)


def _explains(state: State) -> State:
    """The state after a fault that may cost each scenario an attempt."""
    return state._replace(credit=tuple(one + 1 for one in state.credit))


FAULTS: Final[dict[str, Fault]] = {
    "kill": _killed,
    "crash": _crashed,
    "cut off": _trouble(Mode.CUT),
    "frozen": _trouble(Mode.FROZEN),
    "deaf": _deaf,
    "deaf for ever": _deaf_for_ever,
    "drain": _drained,
    "grace over": _grace_over,
    "take-over": _another_leads,
    "away": _away,
    "emptied": _emptied,
    "anew": _made_anew,
    "dead letter": _dead_letter,
    "lost": _command_lost,
    "copy": _command_copied,
    "stale": _report_copied,
    "re-read": _read_again,
    "slip": _slipped,
    "late write": _written_late,
    "short write": _written_in_part,
    "restore": _restored,
}
"""The kinds of faults, by the names that worlds give them."""


def befalls(state: State, world: World) -> Iterator[tuple[str, State]]:
    """All faults that may befall this state."""
    if "restore" in world.faults and state.backup is None:
        yield "(a backup is made)", state._replace(backup=Backup(state.rows, state.outbox, ((),) * len(state.rows)))
    if state.faults:
        left = state._replace(faults=state.faults - 1)
        for kind in world.faults:
            for label, after in FAULTS[kind](left, world):
                yield f"FAULT {label}", after
