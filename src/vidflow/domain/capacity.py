"""Estimate how many streams a machine can carry, from the measured speed and memory of its workers.

A speed is the number of seconds of video that are processed in a second. A stream needs a speed of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec

from vidflow.domain.runner import WORKERS_SHARE

LEAST_GROWTH: Final = 1.05
"""More workers at once are worth it if all of them together are faster by this factor. Less is noise."""
BUSY_SHARE: Final = 0.8
"""If the workers use less than this share of the cores, or one worker of its core, something else slows them down."""
WORKERS_PER_CORE: Final = 2
"""More workers at once are not measured: with two per core, none of the cores waits."""


class CapacityLimit(StrEnum):
    """What allows no more streams."""

    DECODING = "decoding"
    """One worker decodes the video more slowly than it plays."""
    WORKER = "worker"
    """One worker processes the video more slowly than it plays, though it decodes it faster."""
    CORES = "cores"
    OTHER = "other"
    """The workers are slow without using the cores, which other programs, a CPU quota or a graphics card may be the cause of."""
    MEMORY = "memory"


class Level(msgspec.Struct, frozen=True):
    """A measurement of several workers at once: the sum of their speeds, and of their CPU seconds per second."""

    workers: int
    speed: float
    cores_used: float


class Machine(msgspec.Struct, frozen=True):
    """The cores that this process may use, and the memory of the machine or container."""

    cores: int
    memory_bytes: int


class Capacity(msgspec.Struct, frozen=True):
    """The number of streams, which is the lower one of what speed and memory allow, and what limits it."""

    streams: int
    limit: CapacityLimit
    streams_by_speed: int
    streams_by_memory: int


def estimate_capacity(
    lone: Level, levels: Sequence[Level], decode_speed: float, worker_bytes: int, machine: Machine
) -> Capacity:
    """Return how many streams the machine can carry, rounded down, without headroom.

    `lone`: a worker whose model uses a thread for each core. If it cannot keep up with a stream, more workers do not help. Those of
    `levels` use one thread each.
    `decode_speed`: of one worker that only decodes. `worker_bytes`: the memory of a worker.
    """
    by_memory = count_workers_in_memory(worker_bytes, machine)
    best = max(levels, key=lambda level: level.speed)
    by_speed = max(1, int(best.speed)) if lone.speed >= 1 else 0
    if by_memory < by_speed:
        return Capacity(by_memory, CapacityLimit.MEMORY, by_speed, by_memory)
    return Capacity(by_speed, _find_speed_limit(lone, best, decode_speed, machine.cores), by_speed, by_memory)


def _find_speed_limit(first: Level, best: Level, decode_speed: float, cores: int) -> CapacityLimit:
    if first.speed >= 1:
        return CapacityLimit.CORES if best.cores_used >= BUSY_SHARE * cores else CapacityLimit.OTHER
    if first.cores_used < BUSY_SHARE:
        return CapacityLimit.OTHER
    return CapacityLimit.DECODING if decode_speed < 1 else CapacityLimit.WORKER


def count_workers_in_memory(worker_bytes: int, machine: Machine) -> int:
    """Return how many workers fit into the share of the memory that a runner gives to its workers."""
    return int(machine.memory_bytes * WORKERS_SHARE) // max(1, worker_bytes)


def choose_next_level(levels: Sequence[Level], cores: int, most: int) -> int | None:
    """Return how many workers to measure at once next, None once more of them are not faster together. `most`: at most so many."""
    if len(levels) > 1 and levels[-1].speed < LEAST_GROWTH * max(level.speed for level in levels[:-1]):
        return None
    counts = [count for count in list_levels(cores) if count <= most and count > levels[-1].workers]
    return counts[0] if counts else None


def list_levels(cores: int) -> list[int]:
    """Return the numbers of workers that may be measured at once: 1, 2, 4 and so on, the number of cores, and twice that."""
    counts = {cores, cores * WORKERS_PER_CORE}
    count = 1
    while count < cores:
        counts.add(count)
        count *= 2
    return sorted({1, *counts})
