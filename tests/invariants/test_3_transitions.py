"""Invariant 3: a state moves only along the table, whoever is faster, and inactive is for ever."""

from __future__ import annotations

import pytest
from tests.invariants.fault_schedules import FILE, LIVE, run_in_small_steps
from tests.invariants.simulation import Simulation
from tests.invariants.simulation_state import FATAL, SimulatedSource

from vidflow.domain.scenario import Kind, Outcome, State


def kinds(world: Simulation, uuid: str) -> list[Kind]:
    return [move.kind for move in world.tables.history[uuid]]


def test_the_usual_way_of_a_file() -> None:
    world = Simulation()
    uuid = world.init(FILE)
    world.settle()
    assert kinds(world, uuid) == [Kind.ASSIGNED, Kind.FIRST_FRAME, Kind.COMPLETED, Kind.TAKEN, Kind.DRAINED]


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
def test_a_shutdown_at_any_moment_leads_to_inactive_and_no_move_is_off_the_table(source: SimulatedSource) -> None:
    for at in range(1, 60):
        world = Simulation()
        uuid = world.init(source)
        for moment in run_in_small_steps(world, uuid):
            if moment == at:
                world.shutdown(uuid)
                world.shutdown(uuid)  # asking twice is no error
            world.check()
        world.settle()
        assert world.state(uuid) is State.INACTIVE
        assert kinds(world, uuid).count(Kind.SHUTDOWN_REQUESTED) <= 1


def test_a_shutdown_that_overtakes_the_leaders_decision_wins() -> None:
    world = Simulation()
    uuid = world.init(FILE)
    plan = world.make_plan()
    world.shutdown(uuid)
    world.write_plan(plan)
    assert kinds(world, uuid) == [Kind.SHUTDOWN_REQUESTED]
    assert world.tables.outbox == ()
    world.settle()
    assert kinds(world, uuid) == [Kind.SHUTDOWN_REQUESTED, Kind.TAKEN, Kind.DRAINED]


def test_two_leaders_who_decide_the_same_move_it_once() -> None:
    world = Simulation()
    uuid = world.init(FILE)
    first, second = world.make_plan(), world.make_plan()
    world.write_plan(first)
    world.write_plan(second)
    assert kinds(world, uuid) == [Kind.ASSIGNED]
    assert len(world.tables.outbox) == 1


def test_nothing_wakes_what_is_inactive() -> None:
    world = Simulation()
    uuid = world.init(FILE)
    world.run_until(lambda: any(runner.commands or runner.workers for runner in world.runners.values()))
    for runner in world.runners.values():
        world.keep_report(runner)
    world.shutdown(uuid)
    world.settle()
    history = world.tables.history[uuid]
    world.take_over()
    world.release_report(0)
    world.shutdown(uuid)
    world.read_again(uuid, 100)
    world.settle()
    assert world.tables.history[uuid] == history


def test_an_error_that_no_retry_mends_fails_at_once_and_keeps_what_was_stored() -> None:
    world = Simulation()
    uuid = world.init(SimulatedSource(frames=5, fatal=2))
    world.settle()
    scenario = world.tables.scenarios[uuid]
    assert (scenario.outcome, scenario.error, len(world.tables.rows[uuid])) == (Outcome.FAILED, FATAL, 2)
    assert kinds(world, uuid).count(Kind.ASSIGNED) == 1
