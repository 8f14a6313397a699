"""Batches that are inferred side by side: order, bounds, errors, and their end."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from tests import clips

from vidflow.domain.detections import InferenceError
from vidflow.domain.errors import SourceError
from vidflow.domain.messages import Frame, GapReason, WorkerWait
from vidflow.infra.video import FrameGap, KeptFrame, open_video, read_kept_frames
from vidflow.roles.worker import lanes as lanes_module
from vidflow.roles.worker.lanes import InferredStep, Lanes
from vidflow.roles.worker.read import FrameBatch, NumberedFrame
from vidflow.roles.worker.read_ahead import ReadStep, Step

LIMIT_S = 20.0
LANES = 3


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> list[FrameBatch]:
    path = clips.constant_rate(tmp_path_factory.mktemp("lanes") / "clip.mp4", frames=40)
    with open_video(str(path)) as video:
        frames = [frame for frame in read_kept_frames(video) if isinstance(frame, KeptFrame)]
    return [FrameBatch((NumberedFrame(frame.frame_number, frame),)) for frame in frames]


def read_steps(steps: list[Step]) -> Iterator[ReadStep]:
    return iter([ReadStep(step, 0.001) for step in steps])


def frame_of(batch: FrameBatch) -> tuple[Frame, ...]:
    (numbered,) = batch.frames
    return (Frame("u", 1, numbered.number, 0, "1/1", 0, 0.0, "", 1, 1),)


def open_lanes(
    steps: Iterator[ReadStep],
    infer: Callable[[FrameBatch], tuple[Frame, ...]] = frame_of,
    count: Callable[[], int] = lambda: LANES,
    stop: Callable[[], None] = lambda: None,
    report: Callable[[WorkerWait], None] = lambda _: None,
) -> Lanes:
    return Lanes(steps, infer, count, stop, report)


def lane_threads() -> int:
    return sum(thread.name.startswith("lane ") for thread in threading.enumerate())


def numbers(done: Iterator[InferredStep]) -> list[int]:
    return [frame.frame_number for inferred in done for frame in inferred.frames]


def test_results_come_in_the_order_of_the_video_whatever_each_takes(batches: list[FrameBatch]) -> None:
    pauses = random.Random(3)  # noqa: S311

    def infer(batch: FrameBatch) -> tuple[Frame, ...]:
        time.sleep(pauses.random() / 200)
        return frame_of(batch)

    gap = FrameGap(9, 0.0, 0.0, 1, GapReason.CORRUPT)
    steps: list[Step] = [*batches[:10], gap, *batches[10:]]
    with open_lanes(read_steps(steps), infer) as lanes:
        done = list(lanes)
    assert [inferred.step for inferred in done] == steps
    assert numbers(iter(done)) == list(range(40))
    assert lane_threads() == 0


def test_as_many_batches_as_there_are_lanes_are_inferred_at_once(batches: list[FrameBatch]) -> None:
    together = threading.Barrier(LANES, timeout=LIMIT_S)

    def infer(batch: FrameBatch) -> tuple[Frame, ...]:
        together.wait()  # fails unless all lanes come
        return frame_of(batch)

    with open_lanes(read_steps([*batches[: 4 * LANES]]), infer) as lanes:
        assert numbers(lanes) == list(range(4 * LANES))


def test_what_is_inferred_ahead_of_a_slow_sender_is_bounded(batches: list[FrameBatch]) -> None:
    inferred: list[int] = []
    blocked = threading.Event()

    def infer(batch: FrameBatch) -> tuple[Frame, ...]:
        inferred.append(batch.frames[0].number)
        if len(inferred) > LANES:
            blocked.set()
        return frame_of(batch)

    with open_lanes(read_steps([*batches]), infer) as lanes:
        for taken in range(1, len(batches) + 1):
            next(lanes)
            blocked.wait(0.01)
            assert len(inferred) <= taken + LANES + 1


def test_the_number_of_batches_at_once_follows_the_budget(batches: list[FrameBatch]) -> None:
    budget = 1
    four = threading.Barrier(4, timeout=LIMIT_S)
    changing = threading.Lock()
    running = 0
    at_once: dict[int, int] = {}  # batches that were inferred when the batch of this number began

    def infer(batch: FrameBatch) -> tuple[Frame, ...]:
        nonlocal running
        number = batch.frames[0].number
        with changing:
            running += 1
            at_once[number] = running
        if 13 <= number < 17:
            four.wait()  # fails unless four lanes come
        with changing:
            running -= 1
        return frame_of(batch)

    with open_lanes(read_steps([*batches]), infer, count=lambda: budget) as lanes:
        for number, _ in enumerate(lanes):
            budget = 4 if 10 <= number < 20 else 1
    assert max(at_once[number] for number in range(10)) == 1
    # Batches that were taken with four lanes are the last that may overlap. At most five of them are ahead of the one returned.
    assert max(at_once[number] for number in range(30, 40)) == 1


def test_there_are_never_more_lanes_than_the_bound(batches: list[FrameBatch]) -> None:
    most = 0
    with open_lanes(read_steps([*batches]), count=lambda: 1000) as lanes:
        for _ in lanes:
            most = max(most, lane_threads())
    assert most == lanes_module.MAX_LANES


def test_the_error_of_a_batch_comes_in_its_place(batches: list[FrameBatch]) -> None:
    def infer(batch: FrameBatch) -> tuple[Frame, ...]:
        if batch.frames[0].number == 7:
            raise InferenceError("the seventh")
        return frame_of(batch)

    with open_lanes(read_steps([*batches]), infer) as lanes:
        for inferred in lanes:
            if inferred.error is not None:
                break
    assert isinstance(inferred.error, InferenceError)
    assert isinstance(inferred.step, FrameBatch)
    assert inferred.step.frames[0].number == 7
    assert lane_threads() == 0


def test_an_error_of_reading_comes_after_the_results_of_the_frames_before_it(batches: list[FrameBatch]) -> None:
    def steps() -> Iterator[ReadStep]:
        yield from read_steps([*batches[:5]])
        raise SourceError("the disk failed", code="source_unreadable")

    with open_lanes(steps()) as lanes:
        assert [frame.frame_number for _ in range(5) for frame in next(lanes).frames] == list(range(5))
        with pytest.raises(SourceError, match="the disk failed"):
            next(lanes)


def test_a_wait_is_reported_as_one_for_the_source_or_for_the_model(batches: list[FrameBatch]) -> None:
    reported: list[WorkerWait] = []
    source, model = threading.Event(), threading.Event()

    def steps() -> Iterator[ReadStep]:
        assert source.wait(LIMIT_S)
        yield ReadStep(batches[0], 0.0)

    def infer(batch: FrameBatch) -> tuple[Frame, ...]:
        assert model.wait(LIMIT_S)
        return frame_of(batch)

    def report(wait: WorkerWait) -> None:
        reported.append(wait)
        {WorkerWait.SOURCE: source, WorkerWait.INFERENCE: model}[wait].set()

    with open_lanes(steps(), infer, report=report) as lanes:
        assert numbers(lanes) == [0]
    assert reported[:2] == [WorkerWait.SOURCE, WorkerWait.INFERENCE]


def test_the_end_of_the_block_ends_a_wait_for_the_source() -> None:
    stopped = threading.Event()
    waits = threading.Event()

    def steps() -> Iterator[ReadStep]:
        waits.set()
        stopped.wait()
        return
        yield

    lanes = open_lanes(steps(), stop=stopped.set, report=lambda _: None)
    taker = threading.Thread(target=lambda: list(lanes), daemon=True)
    taker.start()
    assert waits.wait(LIMIT_S)
    lanes.__exit__(None, None, None)
    taker.join(LIMIT_S)
    assert not taker.is_alive()
    assert lane_threads() == 0
