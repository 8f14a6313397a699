"""Infer several batches of one video side by side, each in a thread, and return them in the order of the video.

On a CPU this uses the cores better than a network with several threads, which wait for each other in every layer. What is ahead is
bounded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, NamedTuple, Self

from vidflow.domain.messages import Frame, WorkerWait
from vidflow.roles.worker.read import FrameBatch
from vidflow.roles.worker.read_ahead import ReadStep, Step

MAX_LANES: Final = 16
"""Batches of one video at once. A single thread decodes, so more would wait for it."""


class InferredStep(NamedTuple):
    """A step of the video, with the results of its frames if it is a batch. Times are in seconds."""

    step: Step
    read_s: float
    frames: tuple[Frame, ...] = ()
    inference_s: float = 0.0
    error: BaseException | None = None
    """The error with which the model failed on the batch."""


InferBatch = Callable[[FrameBatch], tuple[Frame, ...]]


def infer_step(read: ReadStep, infer: InferBatch) -> InferredStep:
    """Return the step with its results, or with the error of its inference."""
    if not isinstance(read.step, FrameBatch):
        return InferredStep(read.step, read.read_s)
    began_s = time.perf_counter()
    try:
        frames = infer(read.step)
    except BaseException as error:  # noqa: BLE001 - raised by whoever takes the step
        return InferredStep(read.step, read.read_s, error=error)
    return InferredStep(read.step, read.read_s, frames, time.perf_counter() - began_s)


class Lanes:
    """Iterates over `steps` in order, with results, on one thread. A context manager.

    `infer`: is called by several threads. `count_lanes`: how many batches may be inferred at once; the number may change.
    `stop_reading`: ends a wait of `steps`. `report_wait`: called with what the next step waits for. An error of `steps` is raised in its
    place. When the block ends, so have the threads.
    """

    def __init__(
        self,
        steps: Iterator[ReadStep],
        infer: InferBatch,
        count_lanes: Callable[[], int],
        stop_reading: Callable[[], None],
        report_wait: Callable[[WorkerWait], None],
    ) -> None:
        self._steps, self._infer, self._count_lanes = steps, infer, count_lanes
        self._stop_reading, self._report_wait = stop_reading, report_wait
        self._reading = threading.Lock()  # held while a lane takes the next step, so that their order is known
        self._changed = threading.Condition()  # guards what follows
        self._lanes: dict[int, threading.Thread] = {}
        self._taken = self._returned = 0  # steps
        self._inferred: dict[int, InferredStep] = {}
        self._is_closed = self._has_ended = False
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            lanes = list(self._lanes.values())
        if lanes:
            self._stop_reading()
        for lane in lanes:
            lane.join()
        self._inferred.clear()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> InferredStep:
        """Return the next step, after waiting for it. Raises the error of reading."""
        reported: WorkerWait | None = None
        with self._changed:
            self._start_lanes()
            while True:
                if self._returned < self._taken and reported is not WorkerWait.INFERENCE:
                    reported = WorkerWait.INFERENCE
                    self._report_wait(reported)
                if (inferred := self._inferred.pop(self._returned, None)) is not None:
                    self._returned += 1
                    self._changed.notify_all()
                    return inferred
                if self._has_ended and self._returned == self._taken:
                    break
                if self._returned == self._taken and reported is None:
                    reported = WorkerWait.SOURCE
                    self._report_wait(reported)
                self._changed.wait()
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def _start_lanes(self) -> None:
        """Start the lanes that are missing. Those that are too many end themselves."""
        if self._has_ended:
            return
        for number in range(self._wanted()):
            if number not in self._lanes:
                self._lanes[number] = threading.Thread(
                    target=self._run_lane, args=(number,), name=f"lane {number}", daemon=True
                )
                self._lanes[number].start()

    def _wanted(self) -> int:
        return max(1, min(self._count_lanes(), MAX_LANES))

    def _run_lane(self, number: int) -> None:
        while (taken := self._take(number)) is not None:
            place, read = taken
            inferred = infer_step(read, self._infer)
            with self._changed:
                self._inferred[place] = inferred
                self._changed.notify_all()

    def _take(self, number: int) -> tuple[int, ReadStep] | None:
        """Return the next step and its place in the order, None if this lane is to end."""
        with self._reading:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._taken - self._returned <= self._wanted())
                if self._is_closed or self._has_ended or number >= self._wanted():
                    del self._lanes[number]
                    return None
            error: BaseException | None = None
            try:
                read = next(self._steps, None)
            except BaseException as raised:  # noqa: BLE001 - raised again by __next__
                read, error = None, raised
            with self._changed:
                self._changed.notify_all()
                if read is None:
                    self._has_ended, self._error = True, error
                    del self._lanes[number]
                    return None
                self._taken += 1
                return self._taken - 1, read
