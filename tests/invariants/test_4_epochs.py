"""Invariant 4: a scenario has one current epoch, messages of older ones have no effect, and none is assigned twice."""

from __future__ import annotations

from tests.invariants.fault_schedules import LIVE, duplicate_all_commands
from tests.invariants.simulation import Simulation
from tests.invariants.simulation_state import RunnerMode, SimulatedRunner, SimulatedSource

from vidflow.domain.messages import End, EndReason, Frame, encode
from vidflow.domain.scenario import State


def two_epochs() -> tuple[Simulation, str, SimulatedRunner]:
    """Return a live scenario whose first runner is frozen with a running worker while another runner has the second epoch."""
    simulation = Simulation()
    uuid = simulation.init(LIVE)
    simulation.run_until(lambda: bool(simulation.tables.rows[uuid]))
    frozen, _ = next(simulation.workers())
    simulation.set_mode(frozen, RunnerMode.FROZEN)
    first = simulation.tables.scenarios[uuid].epoch
    simulation.run_until(
        lambda: simulation.state(uuid) is State.ACTIVE and simulation.tables.scenarios[uuid].epoch > first
    )
    return simulation, uuid, frozen


def test_the_worker_of_an_older_epoch_stores_nothing_more() -> None:
    simulation, uuid, frozen = two_epochs()
    simulation.run_inbox()
    rows, epoch = simulation.tables.rows[uuid], simulation.tables.scenarios[uuid].epoch
    simulation.work(frozen, uuid)
    simulation.run_inbox()
    assert simulation.tables.rows[uuid] == rows
    assert simulation.tables.scenarios[uuid].epoch == epoch


def test_the_worker_of_an_older_epoch_is_stopped_when_its_runner_is_back() -> None:
    simulation, uuid, frozen = two_epochs()
    simulation.set_mode(frozen, RunnerMode.HEALTHY)
    simulation.run_until(lambda: not frozen.workers and frozen.state.entry(uuid) is None)
    assert simulation.state(uuid) is State.ACTIVE


def test_the_end_marker_of_an_older_epoch_has_no_effect() -> None:
    simulation, uuid, frozen = two_epochs()
    older = frozen.workers[uuid].deploy.epoch
    progress = simulation.tables.progress[uuid]
    simulation.results[uuid].append(encode(End(uuid, older, progress.next_frame - 1, EndReason.FINISHED)))
    simulation.run_inbox()
    assert simulation.tables.progress[uuid].end_epoch is None
    simulation.run_rounds(20)
    assert simulation.state(uuid) is State.ACTIVE


def test_a_hole_in_an_older_epoch_costs_no_attempt() -> None:
    simulation, uuid, frozen = two_epochs()
    older = frozen.workers[uuid].deploy.epoch
    simulation.results[uuid].append(encode(Frame(uuid, older, 999, 1, "1/10", 0, 0.1, "", 640, 480)))
    simulation.run_rounds(20)
    assert simulation.losses[uuid] == 1  # the frozen runner


def test_a_late_copy_of_a_deploy_starts_no_second_worker() -> None:
    simulation = Simulation(1)
    simulation.init(SimulatedSource(frames=2))
    simulation.tick()
    simulation.publish()
    duplicate_all_commands(simulation)
    simulation.run_until(simulation.is_quiet)
    simulation.release_copy(0)
    runner = next(iter(simulation.runners.values()))
    simulation.take_command(runner)
    assert runner.workers == {}
    assert runner.state.entries == ()


def test_no_epoch_is_assigned_twice_across_a_restore_at_any_moment() -> None:
    for rounds in range(12):
        simulation = Simulation()
        uuid = simulation.init(LIVE)
        simulation.run_rounds(rounds)
        simulation.back_up()
        simulation.kill_runner(next(iter(simulation.runners.values())))
        simulation.run_rounds(20)
        simulation.restore()  # Simulation raises if an epoch is assigned again
        simulation.run_rounds(20)
        simulation.check()
        assert simulation.tables.scenarios[uuid].epoch == simulation.last_epoch[uuid]
        simulation.settle()
