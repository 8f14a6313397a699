"""Invariant 5: the rows of a scenario are 0 … next_frame - 1, each stored once, however often and in whatever order results come."""

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
def test_frames_of_any_epochs_in_any_order_are_dense_and_stored_once(arrivals: list[tuple[int, int]]) -> None:
    progress, stored = Progress(epoch=2), []
    for epoch, number in arrivals:
        message = Frame(UUID, epoch, number, number * 10, "1/10", 0, float(number), "", 640, 480)
        progress, verdict = advance(progress, message)
        if verdict is Verdict.STORED:
            assert epoch >= 2
            stored.append(number)
        assert stored == list(range(progress.next_frame))


@pytest.mark.parametrize("source", [FILE, LIVE])
def test_reading_all_again_at_any_moment_stores_nothing_twice(source: SimulatedSource) -> None:
    for at in range(1, 14):
        world = Simulation()
        uuid = world.init(source)
        world.run_rounds(at)
        rows = world.tables.rows[uuid]
        world.read_again(uuid, 1000)
        world.run_inbox()
        assert world.tables.rows[uuid][: len(rows)] == rows
        world.check()
        world.settle()


@pytest.mark.parametrize("source", [SimulatedSource(frames=8), LIVE])
def test_what_kafka_lost_is_a_hole_and_no_row_stands_behind_it(source: SimulatedSource) -> None:
    world = Simulation()
    uuid = world.init(source)
    world.run_until(lambda: bool(world.tables.rows[uuid]))
    runner, _ = next(world.workers())
    rows = world.tables.rows[uuid]
    for _ in range(3):
        world.work(runner, uuid)
    world.empty_kafka()
    world.work(runner, uuid)
    world.run_inbox()
    assert world.tables.rows[uuid] == rows
    assert world.tables.progress[uuid].hole_epoch == world.tables.scenarios[uuid].epoch
    world.run_until(lambda: len(world.tables.rows[uuid]) > len(rows) + 3)
    assert world.losses[uuid] == 1
    world.settle()


def has_moved(world: Simulation, uuid: str, runner: str) -> bool:
    return world.state(uuid) is State.ACTIVE and world.tables.scenarios[uuid].runner != runner


def test_of_a_live_stream_no_frame_takes_another_moments_place_in_a_rolling_upgrade() -> None:
    world = Simulation()
    uuid = world.init(LIVE)
    world.run_until(lambda: bool(world.tables.rows[uuid]))
    for _ in range(3):
        runner, _ = next(world.workers())
        for _ in range(4):
            world.work(runner, uuid)  # sent, and not stored yet
        world.drain(runner)
        for _ in range(10):  # the inbox is behind
            world.work(runner, uuid)
            world.pass_time(0.5)
            world.tick()
        assert world.tables.scenarios[uuid].runner == runner.name
        world.run_until(partial(has_moved, world, uuid, runner.name))
    assert world.losses[uuid] == 0
    world.settle()


def test_poisonous_frames_leave_no_hole_in_the_numbers() -> None:
    world = Simulation()
    uuid = world.init(SimulatedSource(frames=6, poison=frozenset({0, 1, 4}), skips=True))
    world.settle()
    assert world.tables.scenarios[uuid].outcome is Outcome.COMPLETED
    assert [row.pts for row in world.tables.rows[uuid]] == [20, 30, 50]
