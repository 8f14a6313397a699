"""Real clips and their pitfalls: each is read as DATA.md beside the checkout describes it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from vidflow.domain.errors import SourceError
from vidflow.domain.messages import GapReason, ResumePoint
from vidflow.domain.sampling import format_time_base
from vidflow.infra.video import FrameGap, KeptFrame, Video, open_video, read_kept_frames


def kept(path: Path, rate: Fraction | None = None, resume: ResumePoint | None = None) -> list[KeptFrame]:
    with open_video(str(path)) as video:
        return [item for item in read_kept_frames(video, rate, resume) if isinstance(item, KeptFrame)]


def gaps(path: Path) -> list[FrameGap]:
    with open_video(str(path)) as video:
        return [item for item in read_kept_frames(video) if isinstance(item, FrameGap)]


def read_comparable(
    path: Path, rate: Fraction | None, resume: ResumePoint | None = None
) -> list[tuple[int, int, float, bytes]]:
    """Return number, pts, time and picture of each kept frame, holding no decoded picture."""
    with open_video(str(path)) as video:
        return [
            (item.frame_number, item.pts, item.time_s, item.image(32, 18).tobytes())
            for item in read_kept_frames(video, rate, resume)
            if isinstance(item, KeptFrame)
        ]


def resume_points(path: Path, rate: Fraction | None, numbers: list[int]) -> list[ResumePoint]:
    with open_video(str(path)) as video:
        return [
            ResumePoint(
                k.frame_number + 1, k.origin_pts, format_time_base(k.time_base), k.pts, k.time_s, video.source.identity
            )
            for k in read_kept_frames(video, rate)
            if isinstance(k, KeptFrame) and k.frame_number in numbers
        ]


@pytest.mark.parametrize(
    ("name", "frames", "size", "duration_s"),
    [
        ("bottle-detection.mp4", 1189, (640, 360), 39.9),
        ("one-by-one-person.mp4", 1394, (768, 432), 139.4),
        ("vtest.avi", 795, (768, 576), 79.5),
        ("tree.avi", 68, (320, 240), 29.6),
        ("h265-10bit.mp4", 30, (200, 200), 1.0),
        ("rotated-90.mov", 3, (320, 568), 0.1),
    ],
)
def test_a_clip_has_the_expected_frames_and_size_and_no_gaps(
    shared: Path, name: str, frames: int, size: tuple[int, int], duration_s: float
) -> None:
    with open_video(str(shared / "videos" / name)) as video:
        count = 0
        for item in read_kept_frames(video):
            assert isinstance(item, KeptFrame)
            assert (item.frame_number, (item.width, item.height)) == (count, size)
            count += 1
        assert video.source.duration_s == pytest.approx(duration_s, abs=0.1)
    assert count == frames


def test_a_clip_of_40_seconds_has_40_frames_at_one_per_second(shared: Path) -> None:
    frames = kept(shared / "videos" / "bottle-detection.mp4", Fraction(1))
    assert [k.frame_number for k in frames] == list(range(40))
    assert all(abs(k.time_s - second) <= 0.5 / 29.83 for second, k in enumerate(frames))


@pytest.mark.parametrize("rate", [None, Fraction(5), Fraction(1)], ids=["all", "5 per second", "1 per second"])
@pytest.mark.long
def test_resuming_in_a_long_gop_seeks_and_yields_the_same_frames(
    shared: Path, rate: Fraction | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = shared / "videos" / "bottle-detection.mp4"
    monkeypatch.setattr(Video, "restart", lambda _: pytest.fail("the video was decoded from the start"))
    whole = read_comparable(clip, rate)
    last = len(whole) - 1
    points = sorted({0, 1, last // 5, last // 3, last // 2, last * 3 // 4, last - 1, last})
    for resume in resume_points(clip, rate, points):
        assert read_comparable(clip, rate, resume) == whole[resume.next_frame :]


@pytest.mark.parametrize(
    "name", ["vtest.avi", "tree.avi", "corrupted.mp4", "h265-10bit.mp4", "nasa-13013.mp4", "rotated-90.mov"]
)
def test_resuming_yields_the_same_frames_for_every_kind_of_file(shared: Path, name: str) -> None:
    clip = shared / "videos" / name
    whole = read_comparable(clip, None)
    last = len(whole) - 1
    for resume in resume_points(clip, None, [0, last // 3, last * 2 // 3, last]):
        assert read_comparable(clip, None, resume) == whole[resume.next_frame :]


def test_the_larger_of_two_default_streams_is_read(shared: Path) -> None:
    with open_video(str(shared / "videos" / "nasa-13013.mp4")) as video:
        assert (video.source.width, video.source.height, video.source.frames_expected) == (480, 270, 390)
        assert sum(1 for _ in read_kept_frames(video)) == 390


def test_an_audio_file_is_refused(shared: Path) -> None:
    with pytest.raises(SourceError, match="contains no video, only audio") as caught:
        open_video(str(shared / "videos" / "audio-only.mp3"))
    assert caught.value.code == "source_no_video_stream"


def test_a_header_with_too_many_frames_causes_no_gap(shared: Path) -> None:
    with open_video(str(shared / "videos" / "tree.avi")) as video:
        assert video.source.frames_expected == 444
    assert gaps(shared / "videos" / "tree.avi") == []


@pytest.mark.parametrize("threads", [1, 2])
def test_a_damaged_clip_has_a_gap_of_one_frame(shared: Path, threads: int) -> None:
    with open_video(str(shared / "videos" / "corrupted.mp4"), threads=threads) as video:
        items = list(read_kept_frames(video))
    found = [item for item in items if isinstance(item, FrameGap)]
    assert len(items) - len(found) == 49
    assert found == [FrameGap(29, 3.0, 3.1, 1, GapReason.CORRUPT)]


def test_a_rotated_clip_is_read_upright(shared: Path) -> None:
    frame = kept(shared / "videos" / "rotated-90.mov")[0]
    assert frame.image().shape == (568, 320, 3)
