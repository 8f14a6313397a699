"""Invariant 8: no crash, freeze or outage at any moment loses results or makes a healthy scenario fail."""

from __future__ import annotations

from functools import partial

import pytest
from tests.invariants.fault_schedules import ALL_FAULTS, COSTLY, FILE, LIVE, FaultAction, run_with_faults
from tests.invariants.simulation import Simulation
from tests.invariants.simulation_state import RunnerMode, SimulatedRunner, SimulatedSource

from vidflow.domain.scenario import Kind, Outcome, State


def length_of(source: SimulatedSource, runners: int) -> int:
    return run_with_faults({}, source, runners)[2]


@pytest.mark.parametrize("runners", [1, 2])
@pytest.mark.parametrize("fault", ALL_FAULTS)
def test_a_file_is_completed_despite_any_fault_at_any_moment(fault: str, runners: int) -> None:
    for step in range(1, length_of(FILE, runners) + 1):
        simulation, uuid, _ = run_with_faults({step: ALL_FAULTS[fault]}, FILE, runners)
        assert simulation.tables.scenarios[uuid].outcome is Outcome.COMPLETED, step
        assert simulation.losses[uuid] <= (fault in COSTLY), step


@pytest.mark.parametrize("fault", ALL_FAULTS)
def test_a_live_stream_can_be_stopped_despite_any_fault_at_any_moment(fault: str) -> None:
    for step in range(1, length_of(LIVE, 2) + 1, 2):
        simulation, uuid, _ = run_with_faults({step: ALL_FAULTS[fault]}, LIVE)
        assert simulation.tables.scenarios[uuid].outcome is Outcome.STOPPED, step
        assert simulation.losses[uuid] <= (fault in COSTLY), step


@pytest.mark.parametrize("second", ALL_FAULTS)
@pytest.mark.parametrize("first", ALL_FAULTS)
def test_a_file_is_completed_despite_any_two_faults(first: str, second: str) -> None:
    for step in range(1, length_of(FILE, 2), 3):
        for later in (1, 4, 9, 17):
            faults: dict[int, FaultAction] = {step: ALL_FAULTS[first], step + later: ALL_FAULTS[second]}
            simulation, uuid, _ = run_with_faults(faults, FILE)
            assert simulation.tables.scenarios[uuid].outcome is Outcome.COMPLETED, (step, later)


def start_active(source: SimulatedSource = FILE, runners: int = 2) -> tuple[Simulation, str]:
    """Return an active scenario with a stored frame."""
    simulation = Simulation(runners)
    uuid = simulation.init(source)
    simulation.run_until(lambda: simulation.state(uuid) is State.ACTIVE and bool(simulation.tables.rows[uuid]))
    return simulation, uuid


def test_a_scenario_fails_once_all_attempts_in_a_row_are_lost() -> None:
    simulation, uuid = start_active(SimulatedSource(frames=3, poison=frozenset({1})))
    simulation.settle()
    scenario = simulation.tables.scenarios[uuid]
    assert (scenario.outcome, simulation.losses[uuid], len(simulation.tables.rows[uuid])) == (Outcome.FAILED, 3, 1)
    assert scenario.error is not None
    assert scenario.error.frame_number == 1


def test_poisonous_frames_are_skipped_on_request_and_all_others_are_stored() -> None:
    simulation, uuid = start_active(SimulatedSource(frames=5, poison=frozenset({1, 2, 4}), skips=True))
    simulation.settle()
    assert simulation.tables.scenarios[uuid].outcome is Outcome.COMPLETED
    assert [row.pts for row in simulation.tables.rows[uuid]] == [0, 30]
    assert simulation.tables.gaps[uuid] == {(0, 1.0), (1, 4.0)}


def has_more_rows(simulation: Simulation, uuid: str, than: int) -> bool:
    return len(simulation.tables.rows[uuid]) > than


def test_a_stream_that_stores_frames_between_its_losses_is_redeployed_without_limit() -> None:
    simulation, uuid = start_active(LIVE)
    for _ in range(10):
        rows = len(simulation.tables.rows[uuid])
        simulation.kill_runner(next(runner for runner, _ in simulation.workers()))
        simulation.run_until(partial(has_more_rows, simulation, uuid, rows + 1))
    assert simulation.losses[uuid] == 10
    assert simulation.tables.scenarios[uuid].outcome is None


def test_a_frame_stored_after_the_loss_also_restarts_the_count() -> None:
    simulation, uuid = start_active(SimulatedSource(frames=20))
    for _ in range(5):  # more often than max_attempts
        runner = runner_of(simulation, uuid)
        assert runner is not None
        simulation.run_inbox()
        simulation.set_mode(runner, RunnerMode.FROZEN)
        while simulation.state(uuid) is not State.INIT_STARTUP:
            simulation.pass_time(0.5)
            simulation.run_inbox()
            simulation.tick()
        rows = len(simulation.tables.rows[uuid])
        simulation.work(runner, uuid)  # the worker of the frozen runner continues
        simulation.run_inbox()
        assert len(simulation.tables.rows[uuid]) == rows + 1
        simulation.set_mode(runner, RunnerMode.HEALTHY)
        redeploy(simulation, uuid)
    simulation.settle()
    assert simulation.tables.scenarios[uuid].outcome is Outcome.COMPLETED


def runner_of(simulation: Simulation, uuid: str) -> SimulatedRunner | None:
    """Return the runner that works on the current epoch."""
    epoch = simulation.tables.scenarios[uuid].epoch
    return next((runner for runner, other in simulation.workers() if runner.workers[other].deploy.epoch == epoch), None)


def redeploy(simulation: Simulation, uuid: str) -> None:
    """Run until a worker of a new epoch has started. No worker processes a frame meanwhile."""
    for _ in range(100):
        simulation.pass_time(0.5)
        simulation.tick()
        while simulation.tables.outbox:
            simulation.publish()
        for runner in list(simulation.runners.values()):
            while runner.commands:
                simulation.take_command(runner)
        if simulation.state(uuid) is State.IN_STARTUP_PROCESSING and runner_of(simulation, uuid):
            return
    raise AssertionError(simulation.tables.scenarios[uuid])


def test_a_new_epoch_waits_until_the_results_of_the_old_one_are_stored() -> None:
    simulation, uuid = start_active(LIVE)
    runner, _ = next(simulation.workers())
    for _ in range(3):
        simulation.work(runner, uuid)
    sent = len(simulation.results[uuid])
    simulation.kill_runner(runner)
    for _ in range(40):
        simulation.pass_time(0.5)
        simulation.tick()
    assert simulation.state(uuid) is State.ACTIVE  # the inbox lags
    simulation.run_until(lambda: simulation.state(uuid) is State.INIT_STARTUP)
    assert simulation.tables.positions[uuid] == (simulation.topic_id, sent)


def test_an_outage_of_kafka_costs_no_attempt() -> None:
    simulation, uuid = start_active(SimulatedSource(frames=20))
    simulation.kafka_away()
    simulation.run_rounds(600)
    simulation.kafka_back()
    simulation.run_inbox()
    simulation.tick()  # before any runner has reported again
    assert simulation.losses[uuid] == 0
    simulation.settle()
    assert simulation.losses[uuid] == 0
    assert simulation.tables.scenarios[uuid].outcome is Outcome.COMPLETED


def test_a_runner_that_receives_nothing_costs_no_attempt_and_gets_no_more_work() -> None:
    simulation = Simulation(2)
    runner = next(iter(simulation.runners.values()))
    runner.mode, runner.mode_since_s = RunnerMode.NOT_RECEIVING, simulation.now_s + 1000
    uuid = simulation.init(FILE)
    simulation.run_until(lambda: simulation.state(uuid) is State.INACTIVE)
    kinds = [row.kind for row in simulation.tables.history[uuid]]
    assert kinds.count(Kind.ASSIGNED) <= 2
    assert (simulation.losses[uuid], simulation.tables.scenarios[uuid].outcome) == (0, Outcome.COMPLETED)


def test_a_runner_that_receives_nothing_gets_no_work_until_it_does() -> None:
    simulation = Simulation(1)
    runner = next(iter(simulation.runners.values()))
    runner.mode, runner.mode_since_s = RunnerMode.NOT_RECEIVING, simulation.now_s + 1000
    uuid = simulation.init(FILE)
    simulation.run_rounds(120)
    assert [row.kind for row in simulation.tables.history[uuid]] == [Kind.ASSIGNED, Kind.RETURNED]
    simulation.settle()
    assert (simulation.losses[uuid], simulation.tables.scenarios[uuid].outcome) == (0, Outcome.COMPLETED)
