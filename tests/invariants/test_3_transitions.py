"""Invariant 3: a state changes only along the table, in any race, and inactive is final."""

from __future__ import annotations

import pytest
from tests.invariants.fault_schedules import FILE, LIVE, run_in_small_steps
from tests.invariants.simulation import Simulation
from tests.invariants.simulation_state import FATAL, SimulatedSource

from vidflow.domain.scenario import Kind, Outcome, State


def kinds(simulation: Simulation, uuid: str) -> list[Kind]:
    return [row.kind for row in simulation.tables.history[uuid]]


def test_the_transitions_of_a_file_without_faults() -> None:
    simulation = Simulation()
    uuid = simulation.init(FILE)
    simulation.settle()
    assert kinds(simulation, uuid) == [Kind.ASSIGNED, Kind.FIRST_FRAME, Kind.COMPLETED, Kind.TAKEN, Kind.DRAINED]


@pytest.mark.parametrize(
    "source",
    [
        FILE,
        LIVE,
        SimulatedSource(frames=0),
        SimulatedSource(frames=3, poison=frozenset({1})),
        SimulatedSource(frames=3, fatal=1),
    ],
)
def test_a_shutdown_at_any_moment_leads_to_inactive_along_the_table(source: SimulatedSource) -> None:
    for shutdown_step in range(1, 60):
        simulation = Simulation()
        uuid = simulation.init(source)
        for step in run_in_small_steps(simulation, uuid):
            if step == shutdown_step:
                simulation.shutdown(uuid)
                simulation.shutdown(uuid)  # a second request is no error
            simulation.check()
        simulation.settle()
        assert simulation.state(uuid) is State.INACTIVE
        assert kinds(simulation, uuid).count(Kind.SHUTDOWN_REQUESTED) <= 1


def test_a_shutdown_before_the_leaders_plan_is_written_wins() -> None:
    simulation = Simulation()
    uuid = simulation.init(FILE)
    plan = simulation.make_plan()
    simulation.shutdown(uuid)
    simulation.write_plan(plan)
    assert kinds(simulation, uuid) == [Kind.SHUTDOWN_REQUESTED]
    assert simulation.tables.outbox == ()
    simulation.settle()
    assert kinds(simulation, uuid) == [Kind.SHUTDOWN_REQUESTED, Kind.TAKEN, Kind.DRAINED]


def test_two_leaders_with_the_same_plan_apply_it_once() -> None:
    simulation = Simulation()
    uuid = simulation.init(FILE)
    first, second = simulation.make_plan(), simulation.make_plan()
    simulation.write_plan(first)
    simulation.write_plan(second)
    assert kinds(simulation, uuid) == [Kind.ASSIGNED]
    assert len(simulation.tables.outbox) == 1


def test_an_inactive_scenario_never_changes() -> None:
    simulation = Simulation()
    uuid = simulation.init(FILE)
    simulation.run_until(lambda: any(runner.commands or runner.workers for runner in simulation.runners.values()))
    for runner in simulation.runners.values():
        simulation.keep_report(runner)
    simulation.shutdown(uuid)
    simulation.settle()
    history = simulation.tables.history[uuid]
    simulation.take_over()
    simulation.release_report(0)
    simulation.shutdown(uuid)
    simulation.read_again(uuid, 100)
    simulation.settle()
    assert simulation.tables.history[uuid] == history


def test_a_fatal_error_fails_at_once_and_keeps_the_stored_rows() -> None:
    simulation = Simulation()
    uuid = simulation.init(SimulatedSource(frames=5, fatal=2))
    simulation.settle()
    scenario = simulation.tables.scenarios[uuid]
    assert (scenario.outcome, scenario.error, len(simulation.tables.rows[uuid])) == (Outcome.FAILED, FATAL, 2)
    assert kinds(simulation, uuid).count(Kind.ASSIGNED) == 1
