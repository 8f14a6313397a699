"""The measurements of `vidflow bench`, in order: decoding, inference, then more and more whole workers at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from vidflow.commands.bench.processes import Processes
from vidflow.commands.bench.protocol import BenchStep, BenchTask, Measurement, Ready
from vidflow.domain.capacity import (
    Capacity,
    Level,
    Machine,
    choose_next_level,
    count_workers_in_memory,
    estimate_capacity,
    list_levels,
)
from vidflow.domain.errors import ParameterError
from vidflow.infra.process.cores import available_cores
from vidflow.infra.process.memory import available_bytes

STEP_SHARE: Final = 0.1
"""Share of the time for each of decoding, three kinds of inference, and a lone worker. The rest is for whole workers at once."""


class Figures(msgspec.Struct, frozen=True):
    """Everything that was measured.

    `decoded_per_s`, `inferred_per_s`: frames per second of one process on its own; `inferred_per_s_at_once`: of `at_once` processes
    together; `inferred_per_s_by_threads`: of one process with a thread for each core, as that of `lone_worker`. `decode_speed`: seconds
    of video per second. `conversion_s`: time to convert one picture for the model. `worker_bytes`: resident memory of the largest
    process, shared libraries included.
    """

    source: Ready
    machine: Machine
    decoded_per_s: float
    decode_speed: float
    conversion_s: float
    inferred_per_s: float
    inferred_per_s_by_threads: float
    at_once: int
    inferred_per_s_at_once: float
    lone_worker: Level
    levels: tuple[Level, ...]
    worker_bytes: int
    capacity: Capacity


def measure(task: BenchTask, seconds: float, notify: Callable[[str], None]) -> Figures:
    """Measure for about so many seconds, besides the start of the processes. `notify` gets a line for each step.

    Raises the error of a process, such as SourceError or ModelError, or a VidflowError if it dies or takes too long.
    """
    machine = Machine(available_cores(), available_bytes())
    step_s = seconds * STEP_SHARE
    level_s = seconds * (1 - 5 * STEP_SHARE) / len(list_levels(machine.cores))
    notify("loading the model")
    with Processes(task) as processes:
        source = processes.start(1)
        notify("measuring decoding and inference")
        [decoding] = processes.measure(BenchStep.DECODING, 1, step_s)
        [inference] = processes.measure(BenchStep.INFERENCE, 1, step_s)
        levels, worker_bytes = _measure_levels(processes, machine, level_s, notify)
        at_once = min(machine.cores, levels[-1].workers)
        notify("measuring inference in all processes")
        all_inference = processes.measure(BenchStep.INFERENCE, at_once, step_s)
    notify(f"measuring a lone worker with {machine.cores} threads")
    with Processes(msgspec.structs.replace(task, threads=machine.cores)) as processes:
        processes.start(1)
        [threaded_inference] = processes.measure(BenchStep.INFERENCE, 1, step_s)
        [lone] = processes.measure(BenchStep.WORK, 1, step_s)
    lone_worker = _sum_level([lone])
    decode_speed = decoding.video_s / decoding.elapsed_s
    return Figures(
        source=source,
        machine=machine,
        decoded_per_s=_sum_rates([decoding]),
        decode_speed=decode_speed,
        conversion_s=inference.conversion_s / inference.frames,
        inferred_per_s=_sum_inference([inference]),
        inferred_per_s_by_threads=_sum_inference([threaded_inference]),
        at_once=at_once,
        inferred_per_s_at_once=_sum_inference(all_inference),
        lone_worker=lone_worker,
        levels=tuple(levels),
        worker_bytes=worker_bytes,
        capacity=estimate_capacity(lone_worker, levels, decode_speed, worker_bytes, machine),
    )


def _measure_levels(
    processes: Processes, machine: Machine, seconds: float, notify: Callable[[str], None]
) -> tuple[list[Level], int]:
    """Return the levels, and the largest memory of a process."""
    levels: list[Level] = []
    worker_bytes = 0
    count: int | None = 1
    while count is not None:
        notify(f"measuring {count} whole worker{'s' if count > 1 else ''} at once")
        processes.start(count)
        measured = processes.measure(BenchStep.WORK, count, seconds)
        if not any(each.video_s for each in measured):
            raise ParameterError(
                "The video is too short for this --fps: only its first frame is kept. Use a longer one."
            )
        levels.append(_sum_level(measured))
        worker_bytes = max(worker_bytes, *(each.memory_bytes for each in measured))
        count = choose_next_level(levels, machine.cores, count_workers_in_memory(worker_bytes, machine))
    return levels, worker_bytes


def _sum_level(measured: Sequence[Measurement]) -> Level:
    return Level(
        len(measured),
        sum(each.video_s / each.elapsed_s for each in measured),
        sum(each.cpu_s / each.elapsed_s for each in measured),
    )


def _sum_inference(measured: Sequence[Measurement]) -> float:
    return sum(each.frames / (each.elapsed_s - each.conversion_s) for each in measured)


def _sum_rates(measured: Sequence[Measurement]) -> float:
    return sum(each.frames / each.elapsed_s for each in measured)
