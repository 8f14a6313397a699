"""One fault at every moment: a scenario's whole way in small steps, and what is done to the world between two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from tests.invariants.parts import Mode, Runner, Source
from tests.invariants.world import Simulation

from vidflow.domain.scenario import State

Fault = Callable[[Simulation], None]
FILE: Final = Source(frames=3)
LIVE: Final = Source(live=True)
LIVE_STEPS: Final = 60
"""A live stream has no end: after so many small steps its client asks for the shutdown."""


def busy(world: Simulation) -> Runner:
    """The runner that has work, if any has."""
    return next((runner for runner in world.runners.values() if runner.workers), next(iter(world.runners.values())))


def crash(world: Simulation) -> None:
    if busy(world).workers:
        world.crash_worker(busy(world), next(iter(busy(world).workers)))


def all_commands_lost(world: Simulation) -> None:
    for runner in world.runners.values():
        runner.commands = []


def all_commands_twice(world: Simulation) -> None:
    for runner in list(world.runners.values()):
        for key, command in list(runner.commands):
            world.late_commands.append((runner.name, key, command))


def rereads(world: Simulation) -> None:
    for uuid in world.sources:
        world.read_again(uuid, 100)


def trouble(mode: Mode) -> Fault:
    return lambda world: world.trouble(busy(world), mode)


COSTLY: Final[Mapping[str, Fault]] = {
    "its runner is killed": lambda world: world.kill_runner(busy(world)),
    "its worker crashes": crash,
    "its runner is cut off": trouble(Mode.CUT),
    "its runner is frozen": trouble(Mode.FROZEN),
    "its runner is deaf": trouble(Mode.DEAF),
    "Kafka is emptied": Simulation.empty_kafka,
}
"""Faults that may cost an attempt."""

FREE: Final[Mapping[str, Fault]] = {
    "another leads": Simulation.take_over,
    "its runner drains": lambda world: world.drain(busy(world)),
    "Kafka is away": Simulation.kafka_away,
    "commands are lost": all_commands_lost,
    "commands come twice": all_commands_twice,
    "the inbox reads all again": rereads,
}
"""Faults that may not."""

FAULTS: Final[Mapping[str, Fault]] = {**COSTLY, **FREE}


def small_steps(world: Simulation, uuid: str) -> Iterator[int]:
    """All goes well, a small step at a time, until the scenario is inactive; numbers the moments behind the steps."""
    moment = 0
    while world.tables.scenarios[uuid].state is not State.INACTIVE:
        for _ in world.round():
            moment += 1
            if world.sources[uuid].live and moment == LIVE_STEPS:
                world.shutdown(uuid)
            yield moment


def run_with(faults: Mapping[int, Fault], source: Source, runners: int = 2) -> tuple[Simulation, str, int]:
    """The world after a scenario's way with a fault at each of these moments, all mended behind the last; and its length."""
    world = Simulation(runners)
    uuid = world.init(source)
    length = 0
    for moment in small_steps(world, uuid):
        length = moment
        if moment in faults:
            faults[moment](world)
        world.check()
        if moment >= max(faults, default=10**9):
            break
    for _ in range(7):  # the trouble lasts for longer than a lease before it is mended
        world.flow()
        world.check()
    while world.late_commands:
        world.release_copy(0)
    world.settle()
    return world, uuid, length
