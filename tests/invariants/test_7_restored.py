"""Invariant 7: unfinished scenarios finish even if Kafka is emptied or the database is restored at any moment."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.invariants.fault_schedules import FILE, LIVE, lose_all_commands, run_with_faults
from tests.invariants.simulation import Simulation
from tests.invariants.simulation_state import SimulatedSource

from vidflow.domain.scenario import Outcome, State


def empty_kafka_and_restart(simulation: Simulation) -> None:
    """Replace the Kafka cluster, with all runners and the leader restarted."""
    simulation.empty_kafka()
    for runner in list(simulation.runners.values()):
        simulation.kill_runner(runner)
    simulation.take_over()


def restore_with_another_leader(simulation: Simulation) -> None:
    simulation.restore()
    simulation.take_over()


def restore_with_kafka_emptied(simulation: Simulation) -> None:
    simulation.restore()
    simulation.empty_kafka()


EMPTIED: dict[str, Callable[[Simulation], None]] = {
    "emptied": Simulation.empty_kafka,
    "emptied, all restarted": empty_kafka_and_restart,
    "only commands lost": lose_all_commands,
}
RESTORED: dict[str, Callable[[Simulation], None]] = {
    "restored": Simulation.restore,
    "restored, another leader": restore_with_another_leader,
    "restored, Kafka emptied": restore_with_kafka_emptied,
}
ENDS = {FILE: Outcome.COMPLETED, LIVE: Outcome.STOPPED}


@pytest.mark.parametrize("source", ENDS)
@pytest.mark.parametrize("fault", EMPTIED)
def test_a_scenario_finishes_even_if_kafka_is_emptied_at_any_moment(fault: str, source: SimulatedSource) -> None:
    for step in range(1, run_with_faults({}, source)[2] + 1):
        simulation, uuid, _ = run_with_faults({step: EMPTIED[fault]}, source)
        assert simulation.tables.scenarios[uuid].outcome is ENDS[source], step


@pytest.mark.parametrize("source", ENDS)
@pytest.mark.parametrize("fault", RESTORED)
def test_a_scenario_finishes_even_if_the_database_is_restored_at_any_moment_to_any_earlier_one(
    fault: str, source: SimulatedSource
) -> None:
    length = run_with_faults({}, source)[2]
    for step in range(1, length, 3):
        for later in range(1, length - step, 4):
            faults = {step: Simulation.back_up, step + later: RESTORED[fault]}
            simulation, uuid, _ = run_with_faults(faults, source)
            assert simulation.tables.scenarios[uuid].outcome is ENDS[source], (step, later)
            assert simulation.losses[uuid] <= 1, (step, later)


def test_a_finished_scenario_that_is_restored_to_an_earlier_state_finishes_again() -> None:
    simulation = Simulation()
    uuid = simulation.init(SimulatedSource(frames=4))
    simulation.run_until(lambda: simulation.state(uuid) is State.ACTIVE)
    simulation.back_up()
    simulation.settle()
    simulation.restore()
    assert simulation.state(uuid) is State.ACTIVE
    simulation.settle()
    assert (simulation.tables.scenarios[uuid].outcome, len(simulation.tables.rows[uuid])) == (Outcome.COMPLETED, 4)


def test_after_a_restore_the_results_in_kafka_are_stored_again_also_of_later_epochs() -> None:
    simulation = Simulation()
    uuid = simulation.init(LIVE)
    simulation.run_until(lambda: bool(simulation.tables.rows[uuid]))
    simulation.back_up()
    first = simulation.tables.scenarios[uuid].epoch
    simulation.kill_runner(next(runner for runner, _ in simulation.workers()))
    simulation.run_until(
        lambda: len({row.epoch for row in simulation.tables.rows[uuid]}) > 1 and simulation.state(uuid) is State.ACTIVE
    )
    rows = simulation.tables.rows[uuid]
    simulation.restore()
    assert {row.epoch for row in simulation.tables.rows[uuid]} == {first}
    simulation.settle()
    assert simulation.tables.rows[uuid][: len(rows)] == rows


def test_a_scenario_created_after_the_backup_is_stopped_after_the_restore_and_leaves_no_row() -> None:
    simulation = Simulation()
    simulation.back_up()
    uuid = simulation.init(LIVE)
    simulation.run_until(lambda: simulation.state(uuid) is State.ACTIVE)
    simulation.restore()
    assert uuid not in simulation.tables.scenarios
    simulation.run_until(simulation.is_quiet)
    assert simulation.tables.rows == {}


def test_a_shutdown_is_completed_even_if_all_its_messages_are_lost() -> None:
    simulation = Simulation()
    uuid = simulation.init(LIVE)
    simulation.run_until(lambda: simulation.state(uuid) is State.ACTIVE)
    simulation.shutdown(uuid)
    for _ in range(5):
        simulation.tick()
        while simulation.tables.outbox:
            simulation.publish()
        lose_all_commands(simulation)
        simulation.pass_time(2.5)
    simulation.run_until(simulation.is_quiet)
    assert simulation.tables.scenarios[uuid].outcome is Outcome.STOPPED
