"""Invariant 6: all frames of a completed scenario can be read, and no row follows `complete`."""

from __future__ import annotations

import pytest
from tests.invariants.fault_schedules import ALL_FAULTS, FILE, LIVE, run_with_faults
from tests.invariants.simulation import Simulation
from tests.invariants.simulation_state import SimulatedSource

from vidflow.domain.messages import Frame, encode
from vidflow.domain.scenario import Kind, Outcome, State


def test_an_end_marker_after_missing_frames_does_not_complete() -> None:
    simulation = Simulation()
    uuid = simulation.init(FILE)
    simulation.run_until(lambda: any(True for _ in simulation.workers()))
    runner, _ = next(simulation.workers())
    while runner.workers and not runner.workers[uuid].end_sent:
        simulation.work(runner, uuid)
        if not runner.workers[uuid].end_sent:
            simulation.empty_kafka()  # everything but the end marker is lost
    simulation.run_inbox()
    simulation.tick()
    assert Kind.COMPLETED not in [row.kind for row in simulation.tables.history[uuid]]
    simulation.settle()
    assert (simulation.tables.scenarios[uuid].outcome, len(simulation.tables.rows[uuid])) == (Outcome.COMPLETED, 3)


def test_a_finished_worker_does_not_complete_the_scenario_before_the_inbox_has_caught_up() -> None:
    simulation = Simulation()
    uuid = simulation.init(FILE)
    simulation.run_until(lambda: any(True for _ in simulation.workers()))
    runner, _ = next(simulation.workers())
    while runner.workers:
        simulation.work(runner, uuid)
    for _ in range(40):
        simulation.pass_time(0.5)
        simulation.tick()
    assert simulation.tables.scenarios[uuid].outcome is None
    assert simulation.losses[uuid] == 0
    simulation.settle()
    assert (simulation.tables.scenarios[uuid].outcome, simulation.losses[uuid]) == (Outcome.COMPLETED, 0)


def test_a_shutdown_does_not_end_while_results_wait_in_kafka() -> None:
    simulation = Simulation()
    uuid = simulation.init(LIVE)
    simulation.run_until(lambda: bool(simulation.tables.rows[uuid]))
    runner, _ = next(simulation.workers())
    for _ in range(5):
        simulation.work(runner, uuid)
    sent = len(simulation.results[uuid])
    simulation.kill_runner(runner)
    simulation.shutdown(uuid)
    for _ in range(40):
        simulation.pass_time(0.5)
        simulation.tick()
    assert simulation.state(uuid) is State.IN_SHUTDOWN_PROCESSING
    simulation.settle()
    assert len(simulation.tables.rows[uuid]) == sent


@pytest.mark.parametrize("source", [FILE, LIVE])
def test_results_after_inactive_are_not_stored(source: SimulatedSource) -> None:
    simulation = Simulation()
    uuid = simulation.init(source)
    simulation.run_rounds(3)
    simulation.settle()
    rows, epoch = simulation.tables.rows[uuid], simulation.tables.scenarios[uuid].epoch
    for late_epoch in (epoch, epoch + 1):
        simulation.results[uuid].append(encode(Frame(uuid, late_epoch, len(rows), 10**9, "1/10", 0, 1.0, "", 640, 480)))
    simulation.run_inbox()
    simulation.check()
    assert simulation.tables.rows[uuid] == rows


def test_a_source_without_frames_is_completed() -> None:
    simulation = Simulation()
    uuid = simulation.init(SimulatedSource(frames=0))
    simulation.settle()
    assert (simulation.tables.scenarios[uuid].outcome, simulation.tables.rows[uuid]) == (Outcome.COMPLETED, ())


@pytest.mark.parametrize("fault", ALL_FAULTS)
def test_a_resumed_run_without_frames_left_completes(fault: str) -> None:
    source = SimulatedSource(frames=1)
    for step in range(1, run_with_faults({}, source)[2] + 1):
        simulation, uuid, _ = run_with_faults({step: ALL_FAULTS[fault]}, source)
        assert simulation.tables.scenarios[uuid].outcome is Outcome.COMPLETED, step
