"""Invariant 6: completed means that every frame can be read, and nothing comes behind `complete`."""

from __future__ import annotations

import pytest
from tests.invariants.fault_schedules import ALL_FAULTS, FILE, LIVE, run_with_faults
from tests.invariants.simulation import Simulation
from tests.invariants.simulation_state import SimulatedSource

from vidflow.domain.messages import Frame, encode
from vidflow.domain.scenario import Kind, Outcome, State


def test_an_end_marker_with_frames_missing_below_it_completes_nothing() -> None:
    world = Simulation()
    uuid = world.init(FILE)
    world.run_until(lambda: any(True for _ in world.workers()))
    runner, _ = next(world.workers())
    while runner.workers and not runner.workers[uuid].end_sent:
        world.work(runner, uuid)
        if not runner.workers[uuid].end_sent:
            world.empty_kafka()  # all but the end marker is lost
    world.run_inbox()
    world.tick()
    assert Kind.COMPLETED not in [move.kind for move in world.tables.history[uuid]]
    world.settle()
    assert (world.tables.scenarios[uuid].outcome, len(world.tables.rows[uuid])) == (Outcome.COMPLETED, 3)


def test_a_runner_that_has_finished_completes_nothing_before_the_inbox_has() -> None:
    world = Simulation()
    uuid = world.init(FILE)
    world.run_until(lambda: any(True for _ in world.workers()))
    runner, _ = next(world.workers())
    while runner.workers:
        world.work(runner, uuid)
    for _ in range(40):
        world.pass_time(0.5)
        world.tick()
    assert world.tables.scenarios[uuid].outcome is None
    assert world.losses[uuid] == 0
    world.settle()
    assert (world.tables.scenarios[uuid].outcome, world.losses[uuid]) == (Outcome.COMPLETED, 0)


def test_a_shutdown_is_not_over_while_rows_of_it_wait_in_kafka() -> None:
    world = Simulation()
    uuid = world.init(LIVE)
    world.run_until(lambda: bool(world.tables.rows[uuid]))
    runner, _ = next(world.workers())
    for _ in range(5):
        world.work(runner, uuid)
    sent = len(world.results[uuid])
    world.kill_runner(runner)
    world.shutdown(uuid)
    for _ in range(40):
        world.pass_time(0.5)
        world.tick()
    assert world.state(uuid) is State.IN_SHUTDOWN_PROCESSING
    world.settle()
    assert len(world.tables.rows[uuid]) == sent


@pytest.mark.parametrize("source", [FILE, LIVE])
def test_what_comes_behind_inactive_is_not_stored(source: SimulatedSource) -> None:
    world = Simulation()
    uuid = world.init(source)
    world.run_rounds(3)
    world.settle()
    rows, epoch = world.tables.rows[uuid], world.tables.scenarios[uuid].epoch
    for later in (epoch, epoch + 1):
        world.results[uuid].append(encode(Frame(uuid, later, len(rows), 10**9, "1/10", 0, 1.0, "", 640, 480)))
    world.run_inbox()
    world.check()
    assert world.tables.rows[uuid] == rows


def test_a_source_without_a_frame_that_ends_well_is_complete() -> None:
    world = Simulation()
    uuid = world.init(SimulatedSource(frames=0))
    world.settle()
    assert (world.tables.scenarios[uuid].outcome, world.tables.rows[uuid]) == (Outcome.COMPLETED, ())


@pytest.mark.parametrize("fault", ALL_FAULTS)
def test_a_resumed_run_that_finds_nothing_left_completes(fault: str) -> None:
    source = SimulatedSource(frames=1)
    for moment in range(1, run_with_faults({}, source)[2] + 1):
        world, uuid, _ = run_with_faults({moment: ALL_FAULTS[fault]}, source)
        assert world.tables.scenarios[uuid].outcome is Outcome.COMPLETED, moment
