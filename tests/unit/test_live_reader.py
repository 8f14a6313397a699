"""A LiveReader with sources that misbehave: pts, rates, sizes and errors that no camera should have."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import count, pairwise
from typing import Self, cast

import pytest
from av.video.frame import VideoFrame

from vidflow.domain.errors import VidflowError
from vidflow.domain.messages import ResumePoint
from vidflow.infra.video import FrameGap, KeptFrame, Video
from vidflow.infra.video.live import LiveReader, compute_burst_limit
from vidflow.infra.video.pixels import NO_CROP, SQUARE
from vidflow.infra.video.source import SourceInfo

WILDEST_PTS = 2**63 - 1
LIMIT_S = 10.0


@dataclass
class ScriptedVideo:
    """An open source whose frames have these pts, one each `pause_s`. It then stays silent until the test ends."""

    pts: Iterator[int | None]
    pause_s: float = 0.0
    rate: Fraction | None = Fraction(1000)
    width: int = 16
    height: int = 16
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def source(self) -> SourceInfo:
        return SourceInfo(
            self.width, self.height, 0, SQUARE, NO_CROP, self.rate, Fraction(1, 90_000), None, None, "h264", "rtsp",
            seekable=False, live=True, identity=None,
        )  # fmt: skip

    def events(self) -> Iterator[VideoFrame]:
        for pts in self.pts:
            if self.over.wait(self.pause_s):
                return
            frame = VideoFrame(self.width, self.height, "yuv420p")
            frame.pts = pts
            yield frame
        self.over.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()


def read(video: ScriptedVideo, is_enough: Callable[[list[KeptFrame | FrameGap]], bool]) -> list[KeptFrame | FrameGap]:
    taken: list[KeptFrame | FrameGap] = []
    reader = LiveReader(lambda **_: cast("Video", video), "a camera", lambda _: True, None, ResumePoint(), 1)
    with reader:
        while not is_enough(taken):
            steps = reader.take(LIMIT_S)
            assert steps, taken
            taken += steps
        video.over.set()
    return taken


def frames(taken: list[KeptFrame | FrameGap]) -> list[KeptFrame]:
    return [step for step in taken if isinstance(step, KeptFrame)]


@pytest.mark.parametrize("wild", [WILDEST_PTS, -WILDEST_PTS, 0])
@pytest.mark.parametrize("place", [0, 1, 5, 30])
def test_a_wild_pts_does_not_move_the_times_of_the_others(wild: int, place: int) -> None:
    usual = 90_000 * 3600
    pts = iter([wild if index == place else usual + 90 * index for index in range(60)])
    taken = read(ScriptedVideo(pts, pause_s=0.001), lambda taken: len(frames(taken)) >= 10)
    times = [frame.time_s for frame in frames(taken)]
    assert times == sorted(times)
    assert times[-1] < LIMIT_S


def test_a_camera_of_1000_frames_a_second_is_accounted_for() -> None:
    pts = (90 * index for index in count())
    taken = read(ScriptedVideo(pts, pause_s=0.001), lambda taken: any(frame.time_s > 0.1 for frame in frames(taken)))
    kept = frames(taken)
    missing = sum(step.frames or 0 for step in taken if isinstance(step, FrameGap))
    assert len(kept) + missing == pytest.approx((kept[-1].time_s - kept[0].time_s) * 1000 + 1, abs=2)
    assert all(earlier.time_s < later.time_s for earlier, later in pairwise(kept))


def test_a_source_that_states_an_absurd_rate_has_the_measured_one() -> None:
    pts = (9_000 * index for index in range(20))
    video = ScriptedVideo(pts, rate=Fraction(10**9), pause_s=0.1)
    taken = read(video, lambda taken: len(frames(taken)) >= 3)
    assert [round(frame.time_s, 3) for frame in frames(taken)][:3] == [0, 0.1, 0.2]


@pytest.mark.parametrize(("side", "frames"), [(16, 64), (4096, 5), (10_240, 1)])
def test_pictures_that_arrive_at_once_do_not_fill_the_memory(side: int, frames: int) -> None:
    assert compute_burst_limit(VideoFrame(side, side, "yuv420p")) == frames


def test_an_error_that_nobody_expected_ends_the_reading() -> None:
    def fail(**_: object) -> Video:
        raise ZeroDivisionError("unexpected")

    with (
        LiveReader(fail, "a camera", lambda error: error.code == "internal_error", None, ResumePoint(), 1) as reader,
        pytest.raises(VidflowError, match="ZeroDivisionError"),
    ):
        reader.take(LIMIT_S)
