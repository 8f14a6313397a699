"""Schedules of faults: a scenario runs in small steps, and faults are injected between them."""

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
"""A live stream has no end, so its client requests a shutdown after this many small steps."""


def busy_runner(simulation: Simulation) -> SimulatedRunner:
    """Return a runner with workers, or any runner if there is none."""
    return next(
        (runner for runner in simulation.runners.values() if runner.workers), next(iter(simulation.runners.values()))
    )


def crash(simulation: Simulation) -> None:
    if busy_runner(simulation).workers:
        simulation.crash_worker(busy_runner(simulation), next(iter(busy_runner(simulation).workers)))


def lose_all_commands(simulation: Simulation) -> None:
    for runner in simulation.runners.values():
        runner.commands = []


def duplicate_all_commands(simulation: Simulation) -> None:
    for runner in list(simulation.runners.values()):
        for key, command in list(runner.commands):
            simulation.late_commands.append((runner.name, key, command))


def reread_all_results(simulation: Simulation) -> None:
    for uuid in simulation.sources:
        simulation.read_again(uuid, 100)


def mode_setter(mode: RunnerMode) -> FaultAction:
    return lambda simulation: simulation.set_mode(busy_runner(simulation), mode)


COSTLY: Final[Mapping[str, FaultAction]] = {
    "its runner is killed": lambda simulation: simulation.kill_runner(busy_runner(simulation)),
    "its worker crashes": crash,
    "its runner is cut off": mode_setter(RunnerMode.CUT_OFF),
    "its runner is frozen": mode_setter(RunnerMode.FROZEN),
    "its runner receives nothing": mode_setter(RunnerMode.NOT_RECEIVING),
    "Kafka is emptied": Simulation.empty_kafka,
}
"""Faults that may cost an attempt."""

FREE: Final[Mapping[str, FaultAction]] = {
    "another leader takes over": Simulation.take_over,
    "its runner drains": lambda simulation: simulation.drain(busy_runner(simulation)),
    "Kafka is unavailable": Simulation.kafka_away,
    "commands are lost": lose_all_commands,
    "commands arrive twice": duplicate_all_commands,
    "the inbox reads everything again": reread_all_results,
}
"""Faults that must not cost an attempt."""

ALL_FAULTS: Final[Mapping[str, FaultAction]] = {**COSTLY, **FREE}


def run_in_small_steps(simulation: Simulation, uuid: str) -> Iterator[int]:
    """Run without faults until the scenario is inactive. Yield the number of each small step after it."""
    step = 0
    while simulation.tables.scenarios[uuid].state is not State.INACTIVE:
        for _ in simulation.run_round():
            step += 1
            if simulation.sources[uuid].live and step == LIVE_STEPS:
                simulation.shutdown(uuid)
            yield step


def run_with_faults(
    faults: Mapping[int, FaultAction], source: SimulatedSource, runners: int = 2
) -> tuple[Simulation, str, int]:
    """Run a scenario with a fault at each of these steps, and end all faults after the last.

    Return the simulation, the uuid of the scenario and the number of steps.
    """
    simulation = Simulation(runners)
    uuid = simulation.init(source)
    length = 0
    for step in run_in_small_steps(simulation, uuid):
        length = step
        if step in faults:
            faults[step](simulation)
        simulation.check()
        if step >= max(faults, default=10**9):
            break
    for _ in range(7):  # the fault lasts longer than a lease
        simulation.run_rounds()
        simulation.check()
    while simulation.late_commands:
        simulation.release_copy(0)
    simulation.settle()
    return simulation, uuid, length
