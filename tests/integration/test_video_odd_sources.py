"""Files whose times, ends or shapes mislead a simple reader: each frame is kept once, at its time, and no gap is invented."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from tests import clips
from tests.conftest import NO_SHARED, SHARED

from vidflow.domain.errors import SourceError
from vidflow.domain.messages import ClockChanges, ResumePoint
from vidflow.domain.sampling import format_time_base
from vidflow.infra.video.frames import FrameGap, KeptFrame, read_kept_frames
from vidflow.infra.video.open import open_video
from vidflow.infra.video.source import SourceInfo

ROTATE_90 = (0, 65_536, 0, -65_536, 0, 0, 0, 0, 1 << 30)
CASES = SHARED / "cases" / "videos"
NTSC = Fraction(30_000, 1_001)


class Result(NamedTuple):
    source: SourceInfo
    frames: list[KeptFrame]
    gaps: list[FrameGap]

    @property
    def times_s(self) -> list[float]:
        return [round(frame.time_s, 3) for frame in self.frames]


def read(path: Path, rate: Fraction | None = None) -> Result:
    with open_video(str(path)) as video:
        items = list(read_kept_frames(video, rate))
        frames = [item for item in items if isinstance(item, KeptFrame)]
        return Result(video.source, frames, [item for item in items if isinstance(item, FrameGap)])


class Case(NamedTuple):
    name: str
    rate: Fraction | None
    frames: int
    last_s: float
    size: tuple[int, int] = (96, 64)


@pytest.mark.skipif(not CASES.exists(), reason=NO_SHARED)
@pytest.mark.parametrize(
    "case",
    [
        Case("r30.mkv", Fraction(30), 120, 3.967),
        Case("r30.webm", Fraction(30), 120, 3.967),
        Case("r30.flv", Fraction(30), 120, 3.967),
        Case("ntsc.mp4", Fraction(2997, 100), 120, 3.971),
        Case("held.mp4", None, 4, 1.2),
        Case("sub_ffmpeg.mkv", None, 50, 1.96),
        Case("cmaf_seg2.mp4", None, 49, 1.96),
        Case("ab.ts", None, 100, 3.96),
        Case("outlier_future.mkv", None, 50, 1.96),
        Case("bframes_h264.avi", None, 200, 7.96),
        Case("bframes_h264.avi", Fraction(25), 200, 7.96),
        Case("crop.mkv", None, 120, 3.967, (64, 48)),
        Case("sar.mp4", None, 5, 0.8, (853, 480)),
        Case("trim.mp4", None, 102, 4.12),
    ],
    ids=lambda case: f"{case.name}-{case.rate or 'all'}",
)
def test_an_odd_file_has_its_frames_times_and_size_and_no_gap(case: Case) -> None:
    source, frames, gaps = result = read(CASES / case.name, case.rate)
    assert (len(frames), gaps, (source.width, source.height)) == (case.frames, [], case.size)
    assert result.times_s[-1] == case.last_s
    expected = source.estimate_kept_frames(case.rate)
    assert expected is None or abs(expected - case.frames) <= 0.03 * case.frames


# --- rates


@pytest.mark.parametrize("suffix", [".mkv", ".flv", ".mp4", ".ts"])
@pytest.mark.parametrize("rate", [Fraction(24), NTSC, Fraction(30), Fraction(60), 2 * NTSC])
def test_a_file_sampled_at_its_own_rate_keeps_every_frame(tmp_path: Path, suffix: str, rate: Fraction) -> None:
    path = write_even(tmp_path / f"clip{suffix}", rate, 90)
    for sampled_at in (rate, Fraction(round(rate)), 2 * rate):
        source, frames, gaps = read(path, sampled_at)
        assert (len(frames), gaps) == (90, [])
        assert source.estimate_kept_frames(sampled_at) in {None, 89, 90, 91}


@pytest.mark.parametrize("suffix", [".mkv", ".flv"])
@pytest.mark.parametrize("divisor", [2, 3, 5, 7])
def test_a_file_with_rounded_times_sampled_at_a_part_of_its_rate_keeps_every_nth_frame(
    tmp_path: Path, suffix: str, divisor: int
) -> None:
    path = write_even(tmp_path / f"clip{suffix}", Fraction(30), 90)
    every, sampled = read(path).times_s, read(path, Fraction(30, divisor)).times_s
    assert sampled == every[::divisor]


def write_even(path: Path, rate: Fraction, frames: int) -> Path:
    """Write frames at a constant rate; the container rounds their times to its time base."""
    return clips.write(path, (clips.plain(i) for i in range(frames)), range(frames), time_base=1 / rate, rate=rate)


# --- clocks


@pytest.mark.parametrize("second_start_s", [0, 1, 500, 20_000], ids=lambda start_s: f"second from {start_s} s")
def test_time_goes_on_from_one_recording_to_the_one_joined_to_it(tmp_path: Path, second_start_s: int) -> None:
    joined = tmp_path / "joined.ts"
    parts = [write_even_from(tmp_path / f"{start_s}.ts", start_s) for start_s in (100, second_start_s)]
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    result = read(joined)
    assert result.gaps == []
    assert result.times_s == [round(0.04 * index, 3) for index in range(100)]
    assert result.source.estimate_kept_frames(Fraction(5)) in {None, 20}


def write_even_from(path: Path, start_s: int) -> Path:
    pts = [90_000 * start_s + 3_600 * index for index in range(50)]
    return clips.write(path, (clips.plain(i) for i in range(50)), pts, time_base=Fraction(1, 90_000))


@pytest.mark.parametrize("wild_index", [1, 20, 49], ids=lambda index: f"frame {index}")
def test_one_wild_time_changes_no_other(tmp_path: Path, wild_index: int) -> None:
    whole = clips.constant_rate(tmp_path / "whole.mp4")
    wild = clips.with_wild_times(whole, tmp_path / "wild.mp4", {wild_index: 36_000 * 16_000})
    result = read(wild)
    assert (result.times_s, result.gaps) == ([round(0.04 * index, 3) for index in range(50)], [])
    assert result.source.estimate_kept_frames(Fraction(5)) in {None, 10}


@pytest.mark.parametrize("options", ["bf=2:b-adapt=0", "bf=3:b-pyramid=strict", "bf=1:open-gop=1"])
def test_an_avi_with_b_frames_has_even_times_and_resumes_exactly(tmp_path: Path, options: str) -> None:
    x264 = {"g": "30", "preset": "fast", "x264-params": options}
    pictures = (clips.plain(i) for i in range(75))
    path = clips.write(tmp_path / "b.avi", pictures, range(75), time_base=Fraction(1, 25), options=x264)
    result = read(path)
    assert (result.times_s, result.gaps) == ([round(0.04 * index, 3) for index in range(75)], [])
    assert all(abs(int(frame.image().mean()) - clips.grey(index)) <= 6 for index, frame in enumerate(result.frames))
    assert not result.source.seekable  # a seek could not tell which frame is which


@pytest.mark.parametrize("rate", [None, Fraction(5)])
def test_a_jump_of_the_clock_is_reported_once_with_the_next_kept_frame(tmp_path: Path, rate: Fraction | None) -> None:
    joined = tmp_path / "joined.ts"
    parts = [write_even_from(tmp_path / f"{start_s}.ts", start_s) for start_s in (100, 500, 20)]
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames = read(joined, rate).frames
    per_part = 50 if rate is None else 10
    assert [frame.frame_number for frame in frames if frame.clock_jumps] == [per_part, 2 * per_part]
    assert sum(frame.clock_jumps for frame in frames) == 2
    for last in (frames[per_part - 1], frames[per_part], frames[-2]):
        with open_video(str(joined)) as video:
            resumed = [
                item for item in read_kept_frames(video, rate, resume_after(last)) if isinstance(item, KeptFrame)
            ]
        following = frames[last.frame_number + 1 :]
        assert [frame.clock_jumps for frame in resumed] == [frame.clock_jumps for frame in following]


def test_jumps_of_the_clock_after_the_last_kept_frame_are_reported_at_the_end_of_every_run(tmp_path: Path) -> None:
    whole = clips.constant_rate(tmp_path / "whole.mp4")
    hour = 3_600 * 16_000
    path = clips.with_wild_times(whole, tmp_path / "wild.mp4", {12: 10 * hour, 46: 20 * hour, 49: 30 * hour})
    late = ClockChanges(1.96, jumps=2)
    with open_video(str(path)) as video:
        *kept, last = read_kept_frames(video, Fraction(5))
    frames = [item for item in kept if isinstance(item, KeptFrame)]
    assert (kept, last) == (frames, late)
    assert [(frame.frame_number, frame.clock_jumps) for frame in frames if frame.clock_jumps] == [(3, 1)]
    for frame in frames:
        resume = resume_after(frame, clock_jumped=frame.frame_number >= 3)
        with open_video(str(path)) as video:
            assert list(read_kept_frames(video, Fraction(5), resume))[-1] == late


def resume_after(frame: KeptFrame, *, clock_jumped: bool = False) -> ResumePoint:
    return ResumePoint(
        frame.frame_number + 1, frame.origin_pts, format_time_base(frame.time_base), frame.pts, frame.time_s,
        clock_jumped=clock_jumped,
    )  # fmt: skip


def test_a_wild_time_is_one_jump_and_an_even_clock_has_none(tmp_path: Path) -> None:
    whole = clips.constant_rate(tmp_path / "whole.mp4")
    assert not any(frame.clock_jumps for frame in read(whole).frames)
    frames = read(clips.with_wild_times(whole, tmp_path / "wild.mp4", {20: 36_000 * 16_000})).frames
    assert [(frame.frame_number, frame.clock_jumps) for frame in frames if frame.clock_jumps] == [(20, 1)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_run_resumed_after_a_wild_time_expects_no_later_end(tmp_path: Path, suffix: str) -> None:
    whole = clips.constant_rate(tmp_path / f"whole{suffix}")
    ticks_per_s = 16_000 if suffix == ".mp4" else 1_000
    path = clips.with_wild_times(whole, tmp_path / f"wild{suffix}", {25: 36_000 * ticks_per_s})
    assert_resumes_without_a_gap(path)


@pytest.mark.skipif(not CASES.exists(), reason=NO_SHARED)
def test_a_recording_with_a_wild_time_resumes_without_a_gap() -> None:
    assert_resumes_without_a_gap(CASES / "outlier_future.mkv")


def assert_resumes_without_a_gap(path: Path) -> None:
    _, frames, gaps = read(path)
    assert gaps == []
    seen = False
    for last in frames:
        seen = seen or last.clock_jumps > 0
        with open_video(str(path)) as video:
            resumed = list(read_kept_frames(video, None, resume_after(last, clock_jumped=seen)))
        assert [item.frame_number for item in resumed if isinstance(item, KeptFrame)] == list(
            range(last.frame_number + 1, 50)
        )
        assert [item for item in resumed if isinstance(item, FrameGap)] == []


# --- ends


def test_a_longer_audio_track_does_not_make_a_video_truncated(tmp_path: Path) -> None:
    for name in ("sound.mkv", "sound.mp4", "sound.ts"):
        result = read(write_with_sound(tmp_path / name, video_s=2, sound_s=20))
        assert (len(result.frames), result.gaps) == (50, []), name


def write_with_sound(path: Path, video_s: int, sound_s: int) -> Path:
    with av.open(path, "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        video.codec_context.thread_count = 1
        sound = container.add_stream("aac", rate=8_000, layout="mono")
        for index in range(25 * video_s):
            container.mux(video.encode(av.VideoFrame.from_ndarray(clips.plain(index), format="rgb24")))
        container.mux(video.encode(None))
        for index in range(8 * sound_s):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1_000), np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts = 8_000, 1_000 * index
            container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
    return path


# --- shapes


@pytest.mark.parametrize(
    ("pixel_aspect", "matrix", "size"),
    [
        (Fraction(8, 9), None, (85, 64)),
        (Fraction(4, 3), None, (128, 64)),
        (Fraction(2), ROTATE_90, (64, 192)),
    ],
    ids=["narrow", "wide", "wide and rotated"],
)
def test_pixels_that_are_not_square_are_displayed_at_their_shape(
    tmp_path: Path, pixel_aspect: Fraction, matrix: Sequence[int] | None, size: tuple[int, int]
) -> None:
    path = clips.write(tmp_path / "clip.mp4", [clips.quarters()], [0], pixel_aspect=pixel_aspect, display_matrix=matrix)
    result = read(path)
    assert (result.source.width, result.source.height) == size
    [frame] = result.frames
    assert (frame.width, frame.height, frame.image().shape) == (*size, (size[1], size[0], 3))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize(
    ("size", "offset", "left_top"),
    [
        ((64, 48), (0, 0), (16, 8)),
        ((63, 47), (0, 0), (16, 8)),
        ((41, 33), (7, -5), (34, 10)),
        ((1, 1), (0, 0), (47, 31)),
    ],
    ids=["even", "odd", "off centre", "one pixel"],
)
def test_the_margins_that_a_container_hides_are_not_displayed(
    tmp_path: Path, suffix: str, size: tuple[int, int], offset: tuple[int, int], left_top: tuple[int, int]
) -> None:
    codec = "libvpx-vp9" if suffix == ".webm" else "libx264"
    whole = clips.write(tmp_path / "whole.mp4", [clips.quarters()], [0], codec=codec, pixel_format="yuv444p")
    cropped = clips.with_clean_aperture(whole, tmp_path / "cropped.mp4", size, offset)
    path = cropped if suffix == ".mp4" else clips.remux(cropped, tmp_path / f"cropped{suffix}")
    [all_pixels], [frame] = read(whole).frames, (result := read(path)).frames
    left, top = left_top
    assert (result.source.width, result.source.height) == (frame.width, frame.height) == size
    expected = all_pixels.image()[top : top + size[1], left : left + size[0]]
    np.testing.assert_array_equal(frame.image(), expected)
    assert frame.image(32, 24).shape == (24, 32, 3)
    brightness = expected @ np.array([0.299, 0.587, 0.114])
    assert np.abs(frame.image(*size, "grey") - brightness).max() < 5


@pytest.mark.parametrize(("size", "offset"), [((97, 48), (0, 0)), ((64, 48), (80, 0)), ((0, 48), (0, 0))])
def test_a_displayed_part_outside_the_picture_is_ignored(
    tmp_path: Path, size: tuple[int, int], offset: tuple[int, int]
) -> None:
    whole = clips.write(tmp_path / "whole.mp4", [clips.quarters()], [0])
    path = clips.with_clean_aperture(whole, tmp_path / "cropped.mp4", size, offset)
    assert (read(path).source.width, read(path).source.height) == (96, 64)


def test_matroska_margins_that_cover_the_picture_are_refused(tmp_path: Path) -> None:
    cropped = clips.with_clean_aperture(
        clips.write(tmp_path / "whole.mp4", [clips.quarters()], [0]), tmp_path / "cropped.mp4", (64, 48)
    )
    path = clips.remux(cropped, tmp_path / "cropped.mkv")
    top, wide = b"\x54\xbb\x81\x08", b"\x54\xbb\x81\x3f"
    assert path.read_bytes().count(top) == 1
    path.write_bytes(path.read_bytes().replace(top, wide))
    with pytest.raises(SourceError) as raised:
        read(path)
    assert raised.value.code == "source_not_video"


@pytest.mark.parametrize(
    ("display_size", "displayed"),
    [((64, 48), (64, 48)), ((128, 48), (128, 48)), ((96, 64), (64, 48)), ((64, 64), (48, 48))],
    ids=["of the part", "of the stretched part", "of the whole picture", "of the narrowed part"],
)
def test_the_display_size_of_a_cropped_matroska_file_gives_the_shape_of_its_pixels(
    tmp_path: Path, display_size: tuple[int, int], displayed: tuple[int, int]
) -> None:
    whole = clips.write(tmp_path / "whole.mp4", [clips.quarters()], [0])
    cropped = clips.remux(clips.with_clean_aperture(whole, tmp_path / "c.mp4", (64, 48)), tmp_path / "cropped.mkv")
    path = clips.with_display_size(cropped, tmp_path / "display.mkv", display_size)
    [frame] = (result := read(path)).frames
    assert (result.source.width, result.source.height) == (frame.width, frame.height) == displayed
    assert frame.image().shape == (displayed[1], displayed[0], 3)


def test_a_picture_is_cropped_before_it_is_stretched_and_turned(tmp_path: Path) -> None:
    whole = clips.write(
        tmp_path / "whole.mp4", [clips.quarters()], [0], pixel_aspect=Fraction(2), display_matrix=ROTATE_90
    )
    path = clips.with_clean_aperture(whole, tmp_path / "cropped.mp4", (48, 20), (0, 22))  # the lower third
    [frame] = read(path).frames
    assert (frame.width, frame.height) == (20, 96)
    picture = frame.image()
    blue, white = picture[24, 10], picture[72, 10]
    assert (blue > 128).tolist() == [False, False, True]
    assert (white > 128).tolist() == [True, True, True]


def test_margins_wider_than_later_frames_hide_nothing_of_them(tmp_path: Path) -> None:
    large = clips.constant_rate(tmp_path / "large.ts", 100)  # longer than what FFmpeg probes
    small = clips.write(tmp_path / "small.ts", [clips.plain(0, 16, 16)], [4_000])
    both = tmp_path / "both.ts"
    both.write_bytes(large.read_bytes() + small.read_bytes())
    mp4 = clips.remux(both, tmp_path / "both.mp4")
    result = read(clips.with_clean_aperture(mp4, tmp_path / "cropped.mp4", (64, 48)))
    assert [frame.image().shape for frame in result.frames] == [(48, 64, 3)] * 100 + [(16, 16, 3)]


def test_an_absurd_pixel_shape_is_ignored(tmp_path: Path) -> None:
    path = clips.write(tmp_path / "clip.mp4", [clips.plain(0)], [0], pixel_aspect=Fraction(1000))
    assert (read(path).source.width, read(path).source.height) == (96, 64)


# --- encryption


def test_an_encrypted_file_is_refused_with_that_word(tmp_path: Path) -> None:
    cenc = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "01" * 16, "encryption_kid": "02" * 16}
    path = clips.constant_rate(tmp_path / "clip.mp4", muxer=cenc)
    with pytest.raises(SourceError, match="encrypted") as raised:
        read(path)
    assert raised.value.code == "source_encrypted"
