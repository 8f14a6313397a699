"""Read ahead of the model: a thread decodes the next batches while the main thread infers. What waits between them is bounded."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, NamedTuple, Self

from vidflow.domain.messages import ClockChanges
from vidflow.infra.video import FrameGap, ReadingStopped
from vidflow.roles.worker.read import FrameBatch

MAX_AHEAD_FRAMES: Final = 8
"""Frames that wait for the model: enough to cover the time that one frame takes longer to decode than others, a keyframe mostly."""
MAX_AHEAD_BYTES: Final = 32 * 1024 * 1024
"""Memory of the frames that wait. Two frames of 3840x2160 pixels."""

Step = FrameBatch | FrameGap | ClockChanges


class ReadStep(NamedTuple):
    """A step and the time that reading it took, in seconds."""

    step: Step
    read_s: float


def read_step(steps: Iterator[Step]) -> ReadStep | None:
    """Return the next step, None at the end. Raises the error of reading."""
    began_s = time.perf_counter()
    step = next(steps, None)
    return None if step is None else ReadStep(step, time.perf_counter() - began_s)


class _Waiting(NamedTuple):
    read: ReadStep
    frames: int
    size_bytes: int


class ReadAhead:
    """Iterates over `steps` in order, which a thread reads ahead. A context manager. One thread at a time may iterate.

    The thread starts with the first iteration. A step waits for room unless it is alone, so the thread holds at most one more than the
    bounds allow. `stop_reading`: makes `steps` raise ReadingStopped, which ends the iteration. An error of reading is raised after
    the steps before it. When the block ends, so has the thread.
    """

    def __init__(self, steps: Iterator[Step], stop_reading: Callable[[], None]) -> None:
        self._steps, self._stop_reading = steps, stop_reading
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._frames = self._bytes = 0  # of all that wait
        self._has_started = self._has_ended = self._is_closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name="read ahead", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._stop_reading()
            self._thread.join()
        self._waiting.clear()

    def __iter__(self) -> Self:
        return self

    def has_step(self) -> bool:
        """Return whether the next iteration finds a step without waiting."""
        return bool(self._waiting)

    def __next__(self) -> ReadStep:
        """Return the next step, after waiting for it. Raises the error of reading."""
        if not self._has_started:
            self._has_started = True
            self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._has_ended)
            if self._waiting:
                waiting = self._waiting.popleft()
                self._frames, self._bytes = self._frames - waiting.frames, self._bytes - waiting.size_bytes
                self._changed.notify_all()
                return waiting.read
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            while (read := read_step(self._steps)) is not None and self._put(read):
                pass
        except ReadingStopped:
            pass
        except BaseException as raised:  # noqa: BLE001 - raised again by __next__
            error = raised
        with self._changed:
            self._error, self._has_ended = error, True
            self._changed.notify_all()

    def _put(self, read: ReadStep) -> bool:
        """Append the step once there is room. Return whether to read on."""
        frames = len(read.step.frames) if isinstance(read.step, FrameBatch) else 1
        size_bytes = read.step.size_bytes if isinstance(read.step, FrameBatch) else 0
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or not self._waiting or self._has_room(frames, size_bytes))
            if self._is_closed:
                return False
            self._waiting.append(_Waiting(read, frames, size_bytes))
            self._frames, self._bytes = self._frames + frames, self._bytes + size_bytes
            self._changed.notify_all()
            return True

    def _has_room(self, frames: int, size_bytes: int) -> bool:
        return self._frames + frames <= MAX_AHEAD_FRAMES and self._bytes + size_bytes <= MAX_AHEAD_BYTES
