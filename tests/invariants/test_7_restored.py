"""Invariant 7: with Kafka emptied or the database restored, at any moment, what was not finished still finishes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.invariants.fault_schedules import FILE, LIVE, lose_all_commands, run_with_faults
from tests.invariants.simulation import Simulation
from tests.invariants.simulation_state import SimulatedSource

from vidflow.domain.scenario import Outcome, State


def emptied_and_anew(world: Simulation) -> None:
    """A new Kafka cluster: everything that listens starts anew, too."""
    world.empty_kafka()
    for runner in list(world.runners.values()):
        world.kill_runner(runner)
    world.take_over()


def restored_with_another_leader(world: Simulation) -> None:
    world.restore()
    world.take_over()


def restored_with_kafka_emptied(world: Simulation) -> None:
    world.restore()
    world.empty_kafka()


EMPTIED: dict[str, Callable[[Simulation], None]] = {
    "emptied": Simulation.empty_kafka,
    "emptied, all begins anew": emptied_and_anew,
    "commands alone lost": lose_all_commands,
}
RESTORED: dict[str, Callable[[Simulation], None]] = {
    "restored": Simulation.restore,
    "restored, another leads": restored_with_another_leader,
    "restored, Kafka emptied": restored_with_kafka_emptied,
}
ENDS = {FILE: Outcome.COMPLETED, LIVE: Outcome.STOPPED}


@pytest.mark.parametrize("source", ENDS)
@pytest.mark.parametrize("fault", EMPTIED)
def test_with_kafka_emptied_at_any_moment_it_still_finishes(fault: str, source: SimulatedSource) -> None:
    for moment in range(1, run_with_faults({}, source)[2] + 1):
        world, uuid, _ = run_with_faults({moment: EMPTIED[fault]}, source)
        assert world.tables.scenarios[uuid].outcome is ENDS[source], moment


@pytest.mark.parametrize("source", ENDS)
@pytest.mark.parametrize("fault", RESTORED)
def test_with_the_database_restored_at_any_moment_to_any_earlier_one_it_still_finishes(
    fault: str, source: SimulatedSource
) -> None:
    length = run_with_faults({}, source)[2]
    for moment in range(1, length, 3):
        for later in range(1, length - moment, 4):
            faults = {moment: Simulation.back_up, moment + later: RESTORED[fault]}
            world, uuid, _ = run_with_faults(faults, source)
            assert world.tables.scenarios[uuid].outcome is ENDS[source], (moment, later)
            assert world.losses[uuid] <= 1, (moment, later)


def test_a_finished_scenario_that_is_restored_to_its_midst_finishes_again() -> None:
    world = Simulation()
    uuid = world.init(SimulatedSource(frames=4))
    world.run_until(lambda: world.state(uuid) is State.ACTIVE)
    world.back_up()
    world.settle()
    world.restore()
    assert world.state(uuid) is State.ACTIVE
    world.settle()
    assert (world.tables.scenarios[uuid].outcome, len(world.tables.rows[uuid])) == (Outcome.COMPLETED, 4)


def test_what_kafka_still_holds_is_stored_again_after_a_restore_also_of_later_epochs() -> None:
    world = Simulation()
    uuid = world.init(LIVE)
    world.run_until(lambda: bool(world.tables.rows[uuid]))
    world.back_up()
    first = world.tables.scenarios[uuid].epoch
    world.kill_runner(next(runner for runner, _ in world.workers()))
    world.run_until(
        lambda: len({row.epoch for row in world.tables.rows[uuid]}) > 1 and world.state(uuid) is State.ACTIVE
    )
    rows = world.tables.rows[uuid]
    world.restore()
    assert {row.epoch for row in world.tables.rows[uuid]} == {first}
    world.settle()
    assert world.tables.rows[uuid][: len(rows)] == rows


def test_a_scenario_that_a_restore_forgot_is_stopped_on_its_runner_and_leaves_no_row() -> None:
    world = Simulation()
    world.back_up()
    uuid = world.init(LIVE)
    world.run_until(lambda: world.state(uuid) is State.ACTIVE)
    world.restore()
    assert uuid not in world.tables.scenarios
    world.run_until(world.is_quiet)
    assert world.tables.rows == {}


def test_a_shutdown_asked_for_is_carried_out_though_all_its_messages_are_lost() -> None:
    world = Simulation()
    uuid = world.init(LIVE)
    world.run_until(lambda: world.state(uuid) is State.ACTIVE)
    world.shutdown(uuid)
    for _ in range(5):
        world.tick()
        while world.tables.outbox:
            world.publish()
        lose_all_commands(world)
        world.pass_time(2.5)
    world.run_until(world.is_quiet)
    assert world.tables.scenarios[uuid].outcome is Outcome.STOPPED
