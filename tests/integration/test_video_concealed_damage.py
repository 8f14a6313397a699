"""Frames whose damage the decoder conceals: kept with a mark or reported as a gap, in every run alike."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Final

import pytest
from tests import clips
from tests.conftest import NO_SHARED, SHARED

from vidflow.domain.messages import ClockChanges, CorruptPolicy, GapReason, ResumePoint
from vidflow.domain.sampling import format_time_base
from vidflow.infra.video import FrameGap, KeptFrame, open_video, read_kept_frames
from vidflow.infra.video.warmup import read_warmup_frames

DAMAGED: Final = (0, 10, 13, 14, 25, 26, 27, 48, 49)
CASES: Final = SHARED / "cases" / "videos"
RATES: Final = [None, Fraction(25), Fraction(7), Fraction(5), Fraction(1)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damage") / "whole.mp4"
    return clips.write(path, (clips.noise(i) for i in range(50)), [40 * i for i in range(50)])


@pytest.fixture(scope="module")
def damaged(whole: Path) -> Path:
    return clips.with_concealed_damage(whole, whole.with_name("damaged.mp4"), DAMAGED)


def read(
    path: Path, rate: Fraction | None, on_corrupt: CorruptPolicy, resume: ResumePoint | None = None
) -> list[KeptFrame | FrameGap | ClockChanges]:
    with open_video(str(path)) as video:
        return list(read_kept_frames(video, rate, resume, on_corrupt))


def frames(items: Sequence[KeptFrame | FrameGap | ClockChanges]) -> list[KeptFrame]:
    return [item for item in items if isinstance(item, KeptFrame)]


def gaps(items: Sequence[KeptFrame | FrameGap | ClockChanges]) -> list[FrameGap]:
    return [item for item in items if isinstance(item, FrameGap)]


def comparable(items: Sequence[KeptFrame | FrameGap | ClockChanges]) -> list[object]:
    return [
        (item.frame_number, item.pts, item.time_s, item.corrupt, item.image(16, 12).tobytes())
        if isinstance(item, KeptFrame)
        else item
        for item in items
    ]


def resume_after(frame: KeptFrame) -> ResumePoint:
    return ResumePoint(
        frame.frame_number + 1, frame.origin_pts, format_time_base(frame.time_base), frame.pts, frame.time_s
    )


def test_damaged_frames_are_kept_with_a_mark(damaged: Path) -> None:
    items = read(damaged, None, CorruptPolicy.KEEP)
    assert gaps(items) == []
    assert [frame.frame_number for frame in frames(items)] == list(range(50))
    assert tuple(frame.frame_number for frame in frames(items) if frame.corrupt) == DAMAGED


def test_damaged_frames_are_gaps_if_the_scenario_skips_them(damaged: Path) -> None:
    items = read(damaged, None, CorruptPolicy.SKIP)
    assert [round(frame.time_s * 25) for frame in frames(items)] == [i for i in range(50) if i not in DAMAGED]
    assert [frame.frame_number for frame in frames(items)] == list(range(50 - len(DAMAGED)))
    assert not any(frame.corrupt for frame in frames(items))
    assert gaps(items)[:4] == [
        FrameGap(-1, 0.0, 0.04, 1, GapReason.CORRUPT),
        FrameGap(8, 0.4, 0.44, 1, GapReason.CORRUPT),
        FrameGap(10, 0.52, 0.6, 2, GapReason.CORRUPT),
        FrameGap(20, 1.0, 1.12, 3, GapReason.CORRUPT),
    ]
    (last,) = gaps(items)[4:]
    assert (last.after_frame, last.from_s, last.frames, last.reason) == (40, 1.92, 2, GapReason.CORRUPT)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("on_corrupt", CorruptPolicy)
def test_kept_and_missing_frames_are_together_those_of_the_undamaged_video(
    whole: Path, damaged: Path, rate: Fraction | None, on_corrupt: CorruptPolicy
) -> None:
    expected = {frame.time_s for frame in frames(read(whole, rate, on_corrupt))}
    items = read(damaged, rate, on_corrupt)
    assert {frame.time_s for frame in frames(items)} <= expected
    assert len(frames(items)) + sum(gap.frames or 0 for gap in gaps(items)) == len(expected)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("on_corrupt", CorruptPolicy)
def test_a_resumed_run_has_the_same_marks_and_gaps(
    damaged: Path, rate: Fraction | None, on_corrupt: CorruptPolicy
) -> None:
    items = read(damaged, rate, on_corrupt)
    for index, item in enumerate(items):
        if isinstance(item, KeptFrame):
            resumed = read(damaged, rate, on_corrupt, resume_after(item))
            assert comparable(resumed) == comparable(items[index + 1 :])


@pytest.mark.parametrize("rate", [None, Fraction(5)])
@pytest.mark.parametrize("on_corrupt", CorruptPolicy)
def test_a_model_is_warmed_up_with_the_frames_that_it_has_seen(
    damaged: Path, rate: Fraction | None, on_corrupt: CorruptPolicy
) -> None:
    kept = frames(read(damaged, rate, on_corrupt))
    with open_video(str(damaged)) as video:
        warmup = read_warmup_frames(video, rate, resume_after(kept[-1]), 6, on_corrupt)
    assert warmup is not None
    assert comparable(warmup) == comparable(kept[-6:])


@pytest.mark.parametrize("rate", RATES)
def test_a_lost_packet_is_one_missing_frame_at_most(whole: Path, tmp_path: Path, rate: Fraction | None) -> None:
    path = clips.write_damaged(whole, tmp_path / "lost.mp4", [*range(5, 20), 30])
    items = read(path, rate, CorruptPolicy.KEEP)
    missing = sum(gap.frames or 0 for gap in gaps(items) if gap.reason is GapReason.CORRUPT)
    assert len(frames(items)) + missing == len(frames(read(whole, rate, CorruptPolicy.KEEP)))


def test_lost_packets_of_a_raw_stream_are_missing_frames(tmp_path: Path) -> None:
    whole = clips.raw_h264(tmp_path / "whole.h264")
    data = whole.read_bytes()
    starts = [i for i in range(len(data) - 4) if data[i : i + 3] == b"\0\0\1" and data[i + 3] & 31 in {1, 5}]
    path = tmp_path / "lost.h264"
    damaged = bytearray(data)
    for packet in (12, 13, 17):
        damaged[starts[packet] + 4 : starts[packet + 1] - 4] = b"\xff" * (starts[packet + 1] - starts[packet] - 8)
    path.write_bytes(damaged)
    items = read(path, None, CorruptPolicy.KEEP)
    assert gaps(items)
    assert len(frames(items)) + sum(gap.frames or 0 for gap in gaps(items)) == 30
    assert frames(items)[-1].time_s == pytest.approx(29 / 25)


@pytest.mark.skipif(not CASES.exists(), reason=NO_SHARED)
def test_the_damage_of_a_real_recording_is_marked() -> None:
    kept = read(CASES / "dmg.mp4", None, CorruptPolicy.KEEP)
    assert [frame.frame_number for frame in frames(kept) if frame.corrupt] == [20, 60]
    assert (len(frames(kept)), gaps(kept)) == (100, [])
    skipped = read(CASES / "dmg.mp4", None, CorruptPolicy.SKIP)
    assert [(gap.after_frame, gap.frames) for gap in gaps(skipped)] == [(19, 1), (58, 1)]
    assert len(frames(skipped)) == 98
