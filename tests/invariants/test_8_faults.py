"""Invariant 8: whatever dies, freezes or is cut off at any moment, nothing is lost and a healthy scenario does not fail."""

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
def test_a_file_is_completed_with_any_one_fault_at_any_moment(fault: str, runners: int) -> None:
    for moment in range(1, length_of(FILE, runners) + 1):
        world, uuid, _ = run_with_faults({moment: ALL_FAULTS[fault]}, FILE, runners)
        assert world.tables.scenarios[uuid].outcome is Outcome.COMPLETED, moment
        assert world.losses[uuid] <= (fault in COSTLY), moment


@pytest.mark.parametrize("fault", ALL_FAULTS)
def test_a_live_stream_keeps_what_it_has_with_any_one_fault_at_any_moment(fault: str) -> None:
    for moment in range(1, length_of(LIVE, 2) + 1, 2):
        world, uuid, _ = run_with_faults({moment: ALL_FAULTS[fault]}, LIVE)
        assert world.tables.scenarios[uuid].outcome is Outcome.STOPPED, moment
        assert world.losses[uuid] <= (fault in COSTLY), moment


@pytest.mark.parametrize("second", ALL_FAULTS)
@pytest.mark.parametrize("first", ALL_FAULTS)
def test_a_file_is_completed_with_any_two_faults(first: str, second: str) -> None:
    for moment in range(1, length_of(FILE, 2), 3):
        for later in (1, 4, 9, 17):
            faults: dict[int, FaultAction] = {moment: ALL_FAULTS[first], moment + later: ALL_FAULTS[second]}
            world, uuid, _ = run_with_faults(faults, FILE)
            assert world.tables.scenarios[uuid].outcome is Outcome.COMPLETED, (moment, later)


def start_active(source: SimulatedSource = FILE, runners: int = 2) -> tuple[Simulation, str]:
    """A scenario that is active and has stored a frame."""
    world = Simulation(runners)
    uuid = world.init(source)
    world.run_until(lambda: world.state(uuid) is State.ACTIVE and bool(world.tables.rows[uuid]))
    return world, uuid


def test_as_many_losses_in_a_row_as_there_are_attempts_fail() -> None:
    world, uuid = start_active(SimulatedSource(frames=3, poison=frozenset({1})))
    world.settle()
    scenario = world.tables.scenarios[uuid]
    assert (scenario.outcome, world.losses[uuid], len(world.tables.rows[uuid])) == (Outcome.FAILED, 3, 1)
    assert scenario.error is not None
    assert scenario.error.frame_number == 1


def test_poisonous_frames_are_skipped_on_request_and_all_others_are_there() -> None:
    world, uuid = start_active(SimulatedSource(frames=5, poison=frozenset({1, 2, 4}), skips=True))
    world.settle()
    assert world.tables.scenarios[uuid].outcome is Outcome.COMPLETED
    assert [row.pts for row in world.tables.rows[uuid]] == [0, 30]
    assert world.tables.gaps[uuid] == {(0, 1.0), (1, 4.0)}


def has_more_rows(world: Simulation, uuid: str, than: int) -> bool:
    return len(world.tables.rows[uuid]) > than


def test_a_stream_that_goes_on_between_its_losses_is_redeployed_for_ever() -> None:
    world, uuid = start_active(LIVE)
    for _ in range(10):
        rows = len(world.tables.rows[uuid])
        world.kill_runner(next(runner for runner, _ in world.workers()))
        world.run_until(partial(has_more_rows, world, uuid, rows + 1))
    assert world.losses[uuid] == 10
    assert world.tables.scenarios[uuid].outcome is None


def test_a_frame_that_comes_after_the_loss_starts_the_count_again_too() -> None:
    world, uuid = start_active(SimulatedSource(frames=20))
    for _ in range(5):  # more often than there are attempts
        runner = runner_of(world, uuid)
        assert runner is not None
        world.run_inbox()
        world.set_mode(runner, RunnerMode.FROZEN)
        while world.state(uuid) is not State.INIT_STARTUP:
            world.pass_time(0.5)
            world.run_inbox()
            world.tick()
        rows = len(world.tables.rows[uuid])
        world.work(runner, uuid)  # the worker of the frozen runner lives on
        world.run_inbox()
        assert len(world.tables.rows[uuid]) == rows + 1
        world.set_mode(runner, RunnerMode.HEALTHY)
        redeploy(world, uuid)
    world.settle()
    assert world.tables.scenarios[uuid].outcome is Outcome.COMPLETED


def runner_of(world: Simulation, uuid: str) -> SimulatedRunner | None:
    """The runner that works for the epoch that counts."""
    epoch = world.tables.scenarios[uuid].epoch
    return next((runner for runner, other in world.workers() if runner.workers[other].deploy.epoch == epoch), None)


def redeploy(world: Simulation, uuid: str) -> None:
    """Until a worker of a new epoch has started; none does a frame meanwhile."""
    for _ in range(100):
        world.pass_time(0.5)
        world.tick()
        while world.tables.outbox:
            world.publish()
        for runner in list(world.runners.values()):
            while runner.commands:
                world.take_command(runner)
        if world.state(uuid) is State.IN_STARTUP_PROCESSING and runner_of(world, uuid):
            return
    raise AssertionError(world.tables.scenarios[uuid])


def test_a_new_epoch_waits_until_the_rows_of_the_old_one_are_stored() -> None:
    world, uuid = start_active(LIVE)
    runner, _ = next(world.workers())
    for _ in range(3):
        world.work(runner, uuid)
    sent = len(world.results[uuid])
    world.kill_runner(runner)
    for _ in range(40):
        world.pass_time(0.5)
        world.tick()
    assert world.state(uuid) is State.ACTIVE  # the inbox is behind
    world.run_until(lambda: world.state(uuid) is State.INIT_STARTUP)
    assert world.tables.positions[uuid] == (world.topic_id, sent)


def test_an_outage_of_kafka_for_minutes_costs_no_attempt() -> None:
    world, uuid = start_active(SimulatedSource(frames=20))
    world.kafka_away()
    world.run_rounds(600)
    world.kafka_back()
    world.run_inbox()
    world.tick()  # before any runner has reported again
    assert world.losses[uuid] == 0
    world.settle()
    assert world.losses[uuid] == 0
    assert world.tables.scenarios[uuid].outcome is Outcome.COMPLETED


def test_a_deaf_runner_costs_no_attempt_and_gets_nothing_more() -> None:
    world = Simulation(2)
    deaf = next(iter(world.runners.values()))
    deaf.mode, deaf.mode_since_s = RunnerMode.NOT_RECEIVING, world.now_s + 1000
    uuid = world.init(FILE)
    world.run_until(lambda: world.state(uuid) is State.INACTIVE)
    moves = [move.kind for move in world.tables.history[uuid]]
    assert moves.count(Kind.ASSIGNED) <= 2
    assert (world.losses[uuid], world.tables.scenarios[uuid].outcome) == (0, Outcome.COMPLETED)


def test_a_runner_that_hears_nothing_is_given_nothing_until_it_hears() -> None:
    world = Simulation(1)
    deaf = next(iter(world.runners.values()))
    deaf.mode, deaf.mode_since_s = RunnerMode.NOT_RECEIVING, world.now_s + 1000
    uuid = world.init(FILE)
    world.run_rounds(120)
    assert [move.kind for move in world.tables.history[uuid]] == [Kind.ASSIGNED, Kind.RETURNED]
    world.settle()
    assert (world.losses[uuid], world.tables.scenarios[uuid].outcome) == (0, Outcome.COMPLETED)
