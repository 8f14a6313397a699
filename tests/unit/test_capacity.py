"""How many streams a machine can carry: the lower one of what speed and memory allow, rounded down."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidflow.domain.capacity import (
    Capacity,
    CapacityLimit,
    Level,
    Machine,
    choose_next_level,
    count_workers_in_memory,
    estimate_capacity,
    list_levels,
)

MIB = 1024**2
TWO_CORES = Machine(2, 4096 * MIB)


def levels(*speeds: float, cores_used: float = 2.0) -> list[Level]:
    """Return the levels of 1, 2, 4 and so on workers."""
    return [Level(2**index, speed, cores_used) for index, speed in enumerate(speeds)]


def test_the_fastest_level_is_the_number_of_streams_rounded_down() -> None:
    capacity = estimate_capacity(levels(4.1, 7.96, 7.8)[0], levels(4.1, 7.96, 7.8), 40.0, 150 * MIB, TWO_CORES)
    assert capacity == Capacity(7, CapacityLimit.CORES, 7, 21)


def test_a_machine_with_little_memory_is_limited_by_it() -> None:
    capacity = estimate_capacity(levels(4.1, 7.96)[0], levels(4.1, 7.96), 40.0, 1000 * MIB, TWO_CORES)
    assert capacity == Capacity(3, CapacityLimit.MEMORY, 7, 3), "80% of 4096 MiB hold three workers of 1000 MiB"


def test_a_worker_that_needs_more_than_all_memory_leaves_no_stream() -> None:
    capacity = estimate_capacity(levels(4.1)[0], levels(4.1), 40.0, 5000 * MIB, TWO_CORES)
    assert (capacity.streams, capacity.limit) == (0, CapacityLimit.MEMORY)


@pytest.mark.parametrize(("decode_speed", "limit"), [(0.9, CapacityLimit.DECODING), (3.0, CapacityLimit.WORKER)])
def test_if_one_worker_cannot_keep_up_with_a_stream_more_cores_do_not_help(
    decode_speed: float, limit: CapacityLimit
) -> None:
    capacity = estimate_capacity(levels(0.8, 1.6, 3.1)[0], levels(0.8, 1.6, 3.1), decode_speed, 150 * MIB, TWO_CORES)
    assert (capacity.streams, capacity.limit, capacity.streams_by_speed) == (0, limit, 0)


def test_idle_cores_show_that_something_else_is_the_limit() -> None:
    busy = estimate_capacity(
        levels(4.0, 4.1, cores_used=1.6)[0], levels(4.0, 4.1, cores_used=1.6), 40.0, 150 * MIB, TWO_CORES
    )
    idle = estimate_capacity(
        levels(4.0, 4.1, cores_used=1.5)[0], levels(4.0, 4.1, cores_used=1.5), 40.0, 150 * MIB, TWO_CORES
    )
    assert (busy.limit, idle.limit) == (CapacityLimit.CORES, CapacityLimit.OTHER)
    assert busy.streams == idle.streams == 4


def test_a_worker_that_does_not_get_its_core_says_nothing_of_the_model() -> None:
    starved = estimate_capacity(
        levels(0.4, 0.42, cores_used=0.1)[0], levels(0.4, 0.42, cores_used=0.1), 0.3, 150 * MIB, TWO_CORES
    )
    assert (starved.streams, starved.limit) == (0, CapacityLimit.OTHER)


def test_memory_that_is_just_enough_is_not_the_limit() -> None:
    machine = Machine(2, 5000 * MIB)
    assert count_workers_in_memory(1000 * MIB, machine) == 4
    assert estimate_capacity(levels(4.5)[0], levels(4.5), 40.0, 1000 * MIB, machine).limit is CapacityLimit.CORES


@given(
    speeds=st.lists(st.floats(0.01, 1000), min_size=1, max_size=8),
    decode_speed=st.floats(0.01, 1000),
    worker_mib=st.integers(1, 10_000),
    cores=st.integers(1, 256),
)
def test_an_estimate_never_exceeds_what_was_measured(
    speeds: list[float], decode_speed: float, worker_mib: int, cores: int
) -> None:
    capacity = estimate_capacity(
        levels(*speeds)[0], levels(*speeds), decode_speed, worker_mib * MIB, Machine(cores, 8192 * MIB)
    )
    assert 0 <= capacity.streams <= max(1, *speeds)
    assert capacity.streams * worker_mib <= 8192
    assert speeds[0] >= 1 or capacity.streams == 0


@pytest.mark.parametrize(
    ("cores", "expected"),
    [(1, [1, 2]), (2, [1, 2, 4]), (4, [1, 2, 4, 8]), (6, [1, 2, 4, 6, 12]), (64, [1, 2, 4, 8, 16, 32, 64, 128])],
)
def test_workers_are_measured_in_doubling_numbers_up_to_two_per_core(cores: int, expected: list[int]) -> None:
    assert list_levels(cores) == expected


def test_more_workers_are_measured_until_they_are_no_faster_together() -> None:
    assert choose_next_level(levels(4), 8, 100) == 2
    assert choose_next_level(levels(4, 7), 8, 100) == 4
    assert choose_next_level(levels(4, 7, 7.3), 8, 100) is None
    assert choose_next_level(levels(4, 7, 5), 8, 100) is None


def test_no_more_workers_are_measured_than_fit_into_the_memory() -> None:
    assert choose_next_level(levels(4, 7), 8, 3) is None
    assert choose_next_level(levels(4, 7), 8, 4) == 4
    assert choose_next_level(levels(4), 8, 0) is None


def test_two_workers_per_core_are_the_most_that_are_measured() -> None:
    assert choose_next_level(levels(4, 8, 16), 2, 100) is None
