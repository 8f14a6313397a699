"""Warm-up frames, found by seeking back from a resume point."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from tests import clips

from vidflow.domain.messages import ResumePoint
from vidflow.domain.sampling import format_time_base
from vidflow.infra.video import KeptFrame, open_video, read_kept_frames
from vidflow.infra.video.warmup import read_warmup_frames

COUNT = 8


def kept_from_start(source: Path, rate: Fraction | None) -> list[KeptFrame]:
    with open_video(str(source)) as video:
        return [item for item in read_kept_frames(video, rate) if isinstance(item, KeptFrame)]


def read_before(source: Path, rate: Fraction | None, last: KeptFrame, count: int) -> list[KeptFrame] | None:
    resume = ResumePoint(
        last.frame_number + 1, last.origin_pts, format_time_base(last.time_base), last.pts, last.time_s
    )
    with open_video(str(source)) as video:
        return read_warmup_frames(video, rate, resume, count)


def comparable(frames: list[KeptFrame]) -> list[object]:
    return [(frame.frame_number, frame.pts, frame.time_s, frame.image().tobytes()) for frame in frames]


@pytest.mark.parametrize("rate", [None, Fraction(25), Fraction(7), Fraction(2)])
@pytest.mark.parametrize("make", [clips.constant_rate, clips.variable_rate, clips.long_gop_with_b_frames])
def test_warmup_frames_are_the_frames_of_a_run_from_the_start(
    tmp_path: Path, make: Callable[[Path], Path], rate: Fraction | None
) -> None:
    source = make(tmp_path / "clip.mp4")
    whole = kept_from_start(source, rate)
    found_any = False
    for last in range(0, len(whole), 3):
        count = min(COUNT, last + 1)
        found = read_before(source, rate, whole[last], count)
        if found is not None:
            found_any = True
            assert comparable(found) == comparable(whole[last + 1 - count : last + 1])
    assert found_any


def test_there_are_no_warmup_frames_if_seeking_is_unreliable(tmp_path: Path) -> None:
    source = clips.raw_h264(tmp_path / "clip.h264")
    whole = kept_from_start(source, None)
    assert read_before(source, None, whole[20], COUNT) is None
