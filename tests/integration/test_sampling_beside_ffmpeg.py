"""The frames kept at a rate are those that FFmpeg's filter `fps` selects, where the two answer the same question.

They differ by intention. The filter repeats and drops frames to fill every grid time, and decides which frame is shown at it once
the next frame is known; `round=near` moves each frame to the grid time nearest to it and takes the last of those that meet there,
up to half a grid interval too late. vidflow decides about each frame alone and keeps none twice. So the filter is asked for the
frame shown at each grid time (`round=up`) if every frame is shown from half a frame duration before its time, which is what a kept
frame stands for. Where exactly one frame is within half a frame duration of a grid time, both must choose it. Where there are
several or none (bursts, pauses, ties of rounded times), the filter takes the last one before, vidflow the first one after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
import pytest
from tests import clips
from tests.conftest import NO_SHARED, SHARED

from vidflow.domain.messages import ClockChanges
from vidflow.domain.sampling import Sampler
from vidflow.infra.video import FrameGap, KeptFrame, open_video, read_kept_frames

NS: Final = 1_000_000_000
READ_RATE: Final = Fraction(5)
"""The rate at which clips are read. At the others, only the sampler decides, as the reader would let it."""
RATES: Final = [Fraction(1), Fraction(2), Fraction(5), Fraction(7), Fraction(12), Fraction(15_000, 1_001)]
EVEN: Final[dict[str, Callable[[Path], Path]]] = {
    "constant.mp4": clips.constant_rate,
    "late.mkv": lambda path: clips.constant_rate(path, first_ms=5_033),
    "reordered.mp4": clips.long_gop_with_b_frames,
    "raw.h264": clips.raw_h264,
    "restarted.ts": clips.timestamps_restart,
    "hevc.mkv": clips.hevc,
}
VIDEOS: Final = [
    "h265-10bit.mp4", "nasa-13013.mp4", "rotated-90.mov", "corrupted.mp4",
    *(pytest.param(name, marks=pytest.mark.long) for name in ("bottle-detection.mp4", "one-by-one-person.mp4", "vtest.avi")),
]  # fmt: skip
CASES: Final = [
    "r30.mkv", "r30.webm", "r30.flv", "ntsc.mp4", "ab.ts", "outlier_future.mkv", "bframes_h264.avi", "cmaf_seg2.mp4", "dmg.mp4",
    "sar.mp4", "sub_ffmpeg.mkv",
]  # fmt: skip
UNEVEN_CASES: Final = ["held.mp4", "trim.mp4"]


@pytest.mark.parametrize("name", EVEN)
def test_an_even_clip_is_sampled_like_by_ffmpeg(name: str, tmp_path: Path) -> None:
    assert compare_at_all_rates(EVEN[name](tmp_path / name)) >= 0.9


def test_a_clip_with_a_variable_rate_is_sampled_like_by_ffmpeg_where_one_frame_is_nearest(tmp_path: Path) -> None:
    assert compare_at_all_rates(clips.variable_rate(tmp_path / "uneven.mkv")) > 0


@pytest.mark.skipif(not SHARED.exists(), reason=NO_SHARED)
@pytest.mark.parametrize("name", VIDEOS)
def test_a_real_clip_is_sampled_like_by_ffmpeg(name: str) -> None:
    assert compare_at_all_rates(SHARED / "videos" / name) >= 0.9


@pytest.mark.skipif(not SHARED.exists(), reason=NO_SHARED)
@pytest.mark.parametrize("name", CASES)
def test_an_odd_clip_is_sampled_like_by_ffmpeg(name: str) -> None:
    assert compare_at_all_rates(SHARED / "cases" / "videos" / name) >= 0.8  # 30 frames a second have ties at 12


@pytest.mark.skipif(not SHARED.exists(), reason=NO_SHARED)
@pytest.mark.parametrize("path", [*(f"cases/videos/{name}" for name in UNEVEN_CASES), "videos/tree.avi"])
def test_an_uneven_clip_is_sampled_like_by_ffmpeg_where_one_frame_is_nearest(path: str) -> None:
    assert compare_at_all_rates(SHARED / path) > 0


def compare_at_all_rates(path: Path) -> float:
    """Compare the kept frames at each rate. Return the share of the grid times at which a comparison was possible."""
    with open_video(str(path)) as video:
        timeline = video.source.build_timeline()
        items = list(read_times(read_kept_frames(video)))
    times_s, is_lost = [time_s for time_s, _ in items], [is_missing for _, is_missing in items]
    ticks = [round(time_s / timeline.time_base) for time_s in times_s]
    grid_times = compared = 0
    for rate in (*RATES, 1 / timeline.interval_s / 2, 1 / timeline.interval_s, 2 / timeline.interval_s):
        sampler, kept = Sampler(timeline, rate), set()
        for index, tick in enumerate(ticks):
            sampler, is_kept = sampler.sample_frame(tick)
            kept |= {index} if is_kept else set()
        if rate == READ_RATE:
            assert read_sampled(path, rate) == [times_s[index] for index in sorted(kept) if not is_lost[index]]
        shown = frames_shown_by_ffmpeg(times_s, rate, timeline.interval_s / 2)
        sole = sole_frames(times_s, rate, timeline.interval_s / 2)
        assert {k: shown.get(k) for k in sole} == sole, rate
        assert kept >= set(sole.values()), rate
        if len(sole) == len(shown):
            assert kept == set(shown.values()), rate
        grid_times, compared = grid_times + len(shown), compared + len(sole)
    return compared / grid_times


def read_sampled(path: Path, rate: Fraction) -> list[Fraction]:
    with open_video(str(path)) as video:
        return [time_s for time_s, is_missing in read_times(read_kept_frames(video, rate)) if not is_missing]


def read_times(items: Iterator[KeptFrame | FrameGap | ClockChanges]) -> Iterator[tuple[Fraction, bool]]:
    """Yield the exact time of each frame, and whether it is missing. Only gaps of one frame are expected."""
    time_base = Fraction(1)
    for item in items:
        if isinstance(item, KeptFrame):
            time_base = item.time_base
            yield round(Fraction(item.time_s) / time_base) * time_base, False
        else:
            assert isinstance(item, FrameGap)
            assert item.frames == 1
            yield round(Fraction(item.from_s) / time_base) * time_base, True


def sole_frames(times_s: Sequence[Fraction], rate: Fraction, half_s: Fraction) -> dict[int, int]:
    """Return the grid times, and their frame, that have exactly one frame from half a frame duration before to after them."""
    near: dict[int, list[int]] = {}
    for index, time_s in enumerate(times_s):
        first, last = math.ceil((time_s - half_s) * rate), math.floor((time_s + half_s) * rate)
        for k in range(max(0, first), last + 1):
            if k / rate - half_s <= time_s < k / rate + half_s:
                near.setdefault(k, []).append(index)
    return {k: indexes[0] for k, indexes in near.items() if len(indexes) == 1}


def frames_shown_by_ffmpeg(times_s: Sequence[Fraction], rate: Fraction, half_s: Fraction) -> dict[int, int]:
    """Return which frame FFmpeg's filter gives for each grid time, up to the last one that a frame represents."""
    graph = av.filter.Graph()
    source = graph.add("buffer", f"video_size=4x1:pix_fmt=gray:time_base=1/{NS}:pixel_aspect=1/1")
    fps = graph.add("fps", f"fps={rate.numerator}/{rate.denominator}:round=up:start_time=0")
    sink = graph.add("buffersink")
    source.link_to(fps)
    fps.link_to(sink)
    graph.configure()
    shown: dict[int, int] = {}
    end_s = times_s[-1] + 2 / rate + 2 * half_s  # a last frame, after which the filter has output all others
    for index, time_s in enumerate([*times_s, end_s]):
        number = np.frombuffer(index.to_bytes(4), np.uint8).reshape(1, 4)
        frame = av.VideoFrame.from_ndarray(number, format="gray")
        frame.time_base = Fraction(1, NS)
        frame.pts = (
            math.ceil((time_s - half_s) * NS) + 1
        )  # of two frames that are equally near, vidflow keeps the first
        source.push(frame)
        while True:
            try:
                output = sink.pull()
            except av.error.BlockingIOError:
                break
            shown[output.pts or 0] = int.from_bytes(output.to_ndarray().tobytes())
    last = math.floor((times_s[-1] + half_s) * rate)
    return {k: index for k, index in shown.items() if 0 <= k <= last and index < len(times_s)}
