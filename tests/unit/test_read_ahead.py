"""The worker's reading thread: order, bounds, errors, and its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from tests import clips

from vidflow.domain.errors import SourceError
from vidflow.domain.messages import GapReason
from vidflow.infra.video import FrameGap, KeptFrame, ReadingStopped, open_video, read_kept_frames
from vidflow.roles.worker import read_ahead
from vidflow.roles.worker.read import FrameBatch, NumberedFrame
from vidflow.roles.worker.read_ahead import MAX_AHEAD_FRAMES, ReadAhead, Step

LIMIT_S = 20.0
THREAD = "read ahead"


def gap(number: int) -> FrameGap:
    return FrameGap(number, 0.0, 0.0, 1, GapReason.CORRUPT)


def start_reading(steps: Iterator[Step], stop: Callable[[], None] = lambda: None) -> ReadAhead:
    return ReadAhead(steps, stop)


def numbers(ahead: Iterator[read_ahead.ReadStep]) -> list[int]:
    return [step.after_frame for step, _ in ahead if isinstance(step, FrameGap)]


def has_thread() -> bool:
    return any(thread.name == THREAD for thread in threading.enumerate())


def test_steps_are_read_in_order_on_another_thread() -> None:
    readers: set[str] = set()

    def steps() -> Iterator[Step]:
        for number in range(100):
            readers.add(threading.current_thread().name)
            yield gap(number)

    with start_reading(steps()) as ahead:
        assert numbers(ahead) == list(range(100))
    assert readers == {THREAD}
    assert not has_thread()


class CountedSteps:
    """Counts how many steps were produced and not taken. `is_full`: as many as may be ahead are.

    A step is taken a moment before it is counted as taken, so one more than `most_ahead` may be counted.
    """

    def __init__(self, most_ahead: int) -> None:
        self.most_ahead = most_ahead
        self.taken = 0
        self.largest = 0
        self.is_full = threading.Event()

    def produce(self, steps: Iterator[Step]) -> Iterator[Step]:
        for number, step in enumerate(steps, start=1):
            self.largest = max(self.largest, number - self.taken)
            if number - self.taken >= self.most_ahead:
                self.is_full.set()
            yield step

    def take_slowly(self, ahead: ReadAhead) -> None:
        """Take all steps, the first ones only after the reader is as far ahead as it may be."""
        for _ in ahead:
            self.taken += 1
            assert self.is_full.wait(LIMIT_S)


def test_a_slow_model_does_not_let_the_reader_run_ahead_of_its_bound() -> None:
    most_ahead = MAX_AHEAD_FRAMES + 1  # one is in the reader's hand
    counted = CountedSteps(most_ahead)
    with start_reading(counted.produce(map(gap, range(100)))) as ahead:
        counted.take_slowly(ahead)
    assert counted.taken == 100
    assert counted.largest <= most_ahead + 1


def test_large_pictures_are_bounded_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_video(str(clips.constant_rate(tmp_path / "clip.mp4", frames=30))) as video:
        frames = [frame for frame in read_kept_frames(video) if isinstance(frame, KeptFrame)]
    batches = [FrameBatch((NumberedFrame(frame.frame_number, frame),)) for frame in frames]
    assert batches[0].size_bytes >= clips.WIDTH * clips.HEIGHT * 3 // 2
    monkeypatch.setattr(read_ahead, "MAX_AHEAD_BYTES", batches[0].size_bytes * 2 + 1)
    counted = CountedSteps(2 + 1)
    with start_reading(counted.produce(iter(batches))) as ahead:
        counted.take_slowly(ahead)
    assert counted.taken == 30
    assert counted.largest <= 3 + 1


def test_a_step_larger_than_the_bound_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "MAX_AHEAD_BYTES", 1)
    with open_video(str(clips.constant_rate(tmp_path / "clip.mp4", frames=5))) as video:
        frames = [frame for frame in read_kept_frames(video) if isinstance(frame, KeptFrame)]
    batches = (FrameBatch((NumberedFrame(frame.frame_number, frame),)) for frame in frames)
    with start_reading(batches) as ahead:
        assert [step.frames[0].number for step, _ in ahead if isinstance(step, FrameBatch)] == list(range(5))


def test_an_error_is_raised_after_the_steps_before_it() -> None:
    def steps() -> Iterator[Step]:
        yield from map(gap, range(3))
        raise SourceError("the disk failed", code="source_unreadable")

    with start_reading(steps()) as ahead:
        assert numbers(islice(ahead, 3)) == [0, 1, 2]
        with pytest.raises(SourceError, match="the disk failed"):
            next(ahead)
    assert not has_thread()


def test_an_interrupted_reading_ends_without_an_error() -> None:
    def steps() -> Iterator[Step]:
        yield gap(0)
        raise ReadingStopped

    with start_reading(steps()) as ahead:
        assert numbers(ahead) == [0]


class SlowSource:
    """Steps that never come until the reading is stopped."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.is_waiting = threading.Event()

    def steps(self) -> Iterator[Step]:
        yield gap(0)
        self.is_waiting.set()
        assert self.stopped.wait(LIMIT_S)
        raise ReadingStopped


@pytest.mark.parametrize("error", [None, RuntimeError("the model failed")])
def test_the_thread_ends_with_the_block_while_it_waits_for_the_source(error: Exception | None) -> None:
    source = SlowSource()

    def infer() -> None:
        with start_reading(source.steps(), source.stopped.set) as ahead:
            next(ahead)
            assert source.is_waiting.wait(LIMIT_S)
            if error is not None:
                raise error

    if error is None:
        infer()
    else:
        with pytest.raises(RuntimeError, match="the model failed"):
            infer()
    assert not has_thread()


def test_the_thread_ends_with_the_block_while_it_waits_for_room() -> None:
    counted = CountedSteps(MAX_AHEAD_FRAMES + 1)
    with start_reading(counted.produce(map(gap, range(100)))) as ahead:
        assert numbers(islice(ahead, 1)) == [0]
        counted.taken = 1
        assert counted.is_full.wait(LIMIT_S)
    assert not has_thread()


def test_nothing_is_read_before_the_first_iteration() -> None:
    read: list[Step] = []

    def steps() -> Iterator[Step]:
        read.append(gap(0))
        yield read[0]

    with start_reading(steps()):
        assert not has_thread()
    assert read == []


def test_it_is_known_whether_the_next_step_is_there() -> None:
    may_go_on, has_gone_on = threading.Event(), threading.Event()

    def steps() -> Iterator[Step]:
        yield gap(0)
        assert may_go_on.wait(LIMIT_S)
        yield gap(1)
        has_gone_on.set()
        yield gap(2)

    with start_reading(steps()) as ahead:
        next(ahead)
        assert not ahead.has_step()
        may_go_on.set()
        assert has_gone_on.wait(LIMIT_S)
        assert ahead.has_step()
