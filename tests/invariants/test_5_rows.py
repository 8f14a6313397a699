"""Invariant 5: the rows of a scenario are 0 … next_frame - 1, each stored once, in whatever order and number results arrive."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.invariants.fault_schedules import FILE, LIVE
from tests.invariants.simulation import Simulation
from tests.invariants.simulation_state import SimulatedSource

from vidflow.domain.messages import Frame
from vidflow.domain.progress import Progress, Verdict, advance
from vidflow.domain.scenario import Outcome, State

UUID = "01930000-0000-7000-8000-000000000001"
ARRIVALS = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 6)), max_size=60)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(ARRIVALS)
def test_frames_of_any_epochs_in_any_order_are_stored_once_without_holes(arrivals: list[tuple[int, int]]) -> None:
    progress, stored = Progress(epoch=2), []
    for epoch, number in arrivals:
        message = Frame(UUID, epoch, number, number * 10, "1/10", 0, float(number), "", 640, 480)
        progress, verdict = advance(progress, message)
        if verdict is Verdict.STORED:
            assert epoch >= 2
            stored.append(number)
        assert stored == list(range(progress.next_frame))


@pytest.mark.parametrize("source", [FILE, LIVE])
def test_rereading_all_results_at_any_moment_stores_nothing_twice(source: SimulatedSource) -> None:
    for rounds in range(1, 14):
        simulation = Simulation()
        uuid = simulation.init(source)
        simulation.run_rounds(rounds)
        rows = simulation.tables.rows[uuid]
        simulation.read_again(uuid, 1000)
        simulation.run_inbox()
        assert simulation.tables.rows[uuid][: len(rows)] == rows
        simulation.check()
        simulation.settle()


@pytest.mark.parametrize("source", [SimulatedSource(frames=8), LIVE])
def test_results_lost_by_kafka_are_a_hole_and_no_row_follows_it(source: SimulatedSource) -> None:
    simulation = Simulation()
    uuid = simulation.init(source)
    simulation.run_until(lambda: bool(simulation.tables.rows[uuid]))
    runner, _ = next(simulation.workers())
    rows = simulation.tables.rows[uuid]
    for _ in range(3):
        simulation.work(runner, uuid)
    simulation.empty_kafka()
    simulation.work(runner, uuid)
    simulation.run_inbox()
    assert simulation.tables.rows[uuid] == rows
    assert simulation.tables.progress[uuid].hole_epoch == simulation.tables.scenarios[uuid].epoch
    simulation.run_until(lambda: len(simulation.tables.rows[uuid]) > len(rows) + 3)
    assert simulation.losses[uuid] == 1
    simulation.settle()


def has_moved(simulation: Simulation, uuid: str, runner: str) -> bool:
    return simulation.state(uuid) is State.ACTIVE and simulation.tables.scenarios[uuid].runner != runner


def test_in_a_rolling_upgrade_no_frame_of_a_live_stream_takes_the_place_of_another() -> None:
    simulation = Simulation()
    uuid = simulation.init(LIVE)
    simulation.run_until(lambda: bool(simulation.tables.rows[uuid]))
    for _ in range(3):
        runner, _ = next(simulation.workers())
        for _ in range(4):
            simulation.work(runner, uuid)  # sent, but not stored yet
        simulation.drain(runner)
        for _ in range(10):  # the inbox lags
            simulation.work(runner, uuid)
            simulation.pass_time(0.5)
            simulation.tick()
        assert simulation.tables.scenarios[uuid].runner == runner.name
        simulation.run_until(partial(has_moved, simulation, uuid, runner.name))
    assert simulation.losses[uuid] == 0
    simulation.settle()


def test_skipped_poisonous_frames_leave_no_hole_in_the_numbers() -> None:
    simulation = Simulation()
    uuid = simulation.init(SimulatedSource(frames=6, poison=frozenset({0, 1, 4}), skips=True))
    simulation.settle()
    assert simulation.tables.scenarios[uuid].outcome is Outcome.COMPLETED
    assert [row.pts for row in simulation.tables.rows[uuid]] == [20, 30, 50]
