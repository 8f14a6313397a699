"""One fault at every moment: a scenario's whole way in small steps, and what is done to the world between two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from tests.invariants.simulation import Simulation
from tests.invariants.simulation_state import RunnerMode, SimulatedRunner, SimulatedSource

from vidflow.domain.scenario import State

FaultAction = Callable[[Simulation], None]
FILE: Final = SimulatedSource(frames=3)
LIVE: Final = SimulatedSource(live=True)
LIVE_STEPS: Final = 60
"""A live stream has no end: after so many small steps its client asks for the shutdown."""


def busy_runner(world: Simulation) -> SimulatedRunner:
    """The runner that has work, if any has."""
    return next((runner for runner in world.runners.values() if runner.workers), next(iter(world.runners.values())))


def crash(world: Simulation) -> None:
    if busy_runner(world).workers:
        world.crash_worker(busy_runner(world), next(iter(busy_runner(world).workers)))


def lose_all_commands(world: Simulation) -> None:
    for runner in world.runners.values():
        runner.commands = []


def duplicate_all_commands(world: Simulation) -> None:
    for runner in list(world.runners.values()):
        for key, command in list(runner.commands):
            world.late_commands.append((runner.name, key, command))


def reread_all_results(world: Simulation) -> None:
    for uuid in world.sources:
        world.read_again(uuid, 100)


def mode_setter(mode: RunnerMode) -> FaultAction:
    return lambda world: world.set_mode(busy_runner(world), mode)


COSTLY: Final[Mapping[str, FaultAction]] = {
    "its runner is killed": lambda world: world.kill_runner(busy_runner(world)),
    "its worker crashes": crash,
    "its runner is cut off": mode_setter(RunnerMode.CUT_OFF),
    "its runner is frozen": mode_setter(RunnerMode.FROZEN),
    "its runner is deaf": mode_setter(RunnerMode.NOT_RECEIVING),
    "Kafka is emptied": Simulation.empty_kafka,
}
"""Faults that may cost an attempt."""

FREE: Final[Mapping[str, FaultAction]] = {
    "another leads": Simulation.take_over,
    "its runner drains": lambda world: world.drain(busy_runner(world)),
    "Kafka is away": Simulation.kafka_away,
    "commands are lost": lose_all_commands,
    "commands come twice": duplicate_all_commands,
    "the inbox reads all again": reread_all_results,
}
"""Faults that may not."""

ALL_FAULTS: Final[Mapping[str, FaultAction]] = {**COSTLY, **FREE}


def run_in_small_steps(world: Simulation, uuid: str) -> Iterator[int]:
    """All goes well, a small step at a time, until the scenario is inactive; numbers the moments behind the steps."""
    moment = 0
    while world.tables.scenarios[uuid].state is not State.INACTIVE:
        for _ in world.run_round():
            moment += 1
            if world.sources[uuid].live and moment == LIVE_STEPS:
                world.shutdown(uuid)
            yield moment


def run_with_faults(
    faults: Mapping[int, FaultAction], source: SimulatedSource, runners: int = 2
) -> tuple[Simulation, str, int]:
    """The world after a scenario's way with a fault at each of these moments, all mended behind the last; and its length."""
    world = Simulation(runners)
    uuid = world.init(source)
    length = 0
    for moment in run_in_small_steps(world, uuid):
        length = moment
        if moment in faults:
            faults[moment](world)
        world.check()
        if moment >= max(faults, default=10**9):
            break
    for _ in range(7):  # the trouble lasts for longer than a lease before it is mended
        world.run_rounds()
        world.check()
    while world.late_commands:
        world.release_copy(0)
    world.settle()
    return world, uuid, length
