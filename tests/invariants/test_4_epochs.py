"""Invariant 4: one epoch of a scenario counts; what an older one says is late, and none is given out twice."""

from __future__ import annotations

from tests.invariants.fault_schedules import LIVE, duplicate_all_commands
from tests.invariants.simulation import Simulation
from tests.invariants.simulation_state import RunnerMode, SimulatedRunner, SimulatedSource

from vidflow.domain.messages import End, EndReason, Frame, encode
from vidflow.domain.scenario import State


def two_epochs() -> tuple[Simulation, str, SimulatedRunner]:
    """A live scenario whose first runner was frozen; its worker lives on while another runner has the second epoch."""
    world = Simulation()
    uuid = world.init(LIVE)
    world.run_until(lambda: bool(world.tables.rows[uuid]))
    frozen, _ = next(world.workers())
    world.set_mode(frozen, RunnerMode.FROZEN)
    first = world.tables.scenarios[uuid].epoch
    world.run_until(lambda: world.state(uuid) is State.ACTIVE and world.tables.scenarios[uuid].epoch > first)
    return world, uuid, frozen


def test_a_worker_that_was_given_up_stores_nothing_more() -> None:
    world, uuid, frozen = two_epochs()
    world.run_inbox()
    rows, epoch = world.tables.rows[uuid], world.tables.scenarios[uuid].epoch
    world.work(frozen, uuid)
    world.run_inbox()
    assert world.tables.rows[uuid] == rows
    assert world.tables.scenarios[uuid].epoch == epoch


def test_a_worker_that_was_given_up_is_stopped_when_its_runner_is_back() -> None:
    world, uuid, frozen = two_epochs()
    world.set_mode(frozen, RunnerMode.HEALTHY)
    world.run_until(lambda: not frozen.workers and frozen.charge.entry(uuid) is None)
    assert world.state(uuid) is State.ACTIVE


def test_the_end_of_an_older_epoch_ends_nothing() -> None:
    world, uuid, frozen = two_epochs()
    older = frozen.workers[uuid].deploy.epoch
    progress = world.tables.progress[uuid]
    world.results[uuid].append(encode(End(uuid, older, progress.next_frame - 1, EndReason.FINISHED)))
    world.run_inbox()
    assert world.tables.progress[uuid].end_epoch is None
    world.run_rounds(20)
    assert world.state(uuid) is State.ACTIVE


def test_a_hole_in_an_older_epoch_costs_nothing() -> None:
    world, uuid, frozen = two_epochs()
    older = frozen.workers[uuid].deploy.epoch
    world.results[uuid].append(encode(Frame(uuid, older, 999, 1, "1/10", 0, 0.1, "", 640, 480)))
    world.run_rounds(20)
    assert world.losses[uuid] == 1  # the frozen runner


def test_a_late_copy_of_a_deploy_starts_nothing_a_second_time() -> None:
    world = Simulation(1)
    world.init(SimulatedSource(frames=2))
    world.tick()
    world.publish()
    duplicate_all_commands(world)
    world.run_until(world.is_quiet)
    world.release_copy(0)
    runner = next(iter(world.runners.values()))
    world.take_command(runner)
    assert runner.workers == {}
    assert runner.charge.entries == ()


def test_no_epoch_is_given_out_twice_across_a_restore_at_any_moment() -> None:
    for at in range(12):
        world = Simulation()
        uuid = world.init(LIVE)
        world.run_rounds(at)
        world.back_up()
        world.kill_runner(next(iter(world.runners.values())))
        world.run_rounds(20)
        world.restore()  # Simulation refuses an epoch that was given out before
        world.run_rounds(20)
        world.check()
        assert world.tables.scenarios[uuid].epoch == world.last_epoch[uuid]
        world.settle()
