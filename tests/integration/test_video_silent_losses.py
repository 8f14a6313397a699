"""Frames that are lost without an error from the decoder are gaps, and a variable rate alone is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Final

import pytest
from tests import clips

from vidflow.domain.messages import ClockChanges, GapReason, ResumePoint
from vidflow.domain.sampling import format_time_base
from vidflow.infra.video import FrameGap, KeptFrame, open_video, read_kept_frames
from vidflow.infra.video.packets import is_single_field

Item = KeptFrame | FrameGap | ClockChanges


def read(path: Path, rate: Fraction | None = None, resume: ResumePoint | None = None) -> list[Item]:
    with open_video(str(path)) as video:
        return list(read_kept_frames(video, rate, resume))


def frames(items: Sequence[Item]) -> list[KeptFrame]:
    return [item for item in items if isinstance(item, KeptFrame)]


def gaps(items: Sequence[Item]) -> list[FrameGap]:
    return [item for item in items if isinstance(item, FrameGap)]


def count_all(items: Sequence[Item]) -> int:
    """Return the number of frames, kept and missing."""
    return len(frames(items)) + sum(gap.frames or 0 for gap in gaps(items))


def comparable(items: Sequence[Item]) -> list[object]:
    return [(item.frame_number, item.pts, item.time_s) if isinstance(item, KeptFrame) else item for item in items]


def assert_resumes_everywhere(path: Path, items: Sequence[Item], every: int) -> None:
    for index, item in enumerate(items):
        if isinstance(item, KeptFrame) and item.frame_number % every == 0:
            resume = ResumePoint(
                item.frame_number + 1, item.origin_pts, format_time_base(item.time_base), item.pts, item.time_s
            )
            assert comparable(read(path, None, resume)) == comparable(items[index + 1 :])


# --- packets of a transport stream that did not arrive


def h264(path: Path) -> Path:
    return clips.write(path, (clips.noise(i) for i in range(60)), range(60), time_base=Fraction(1, 25))


def reordered_h264(path: Path) -> Path:
    pictures = (clips.noise(i) for i in range(60))
    return clips.write(
        path, pictures, range(60), time_base=Fraction(1, 25), options={"g": "12", "bf": "3", "preset": "fast"}
    )


CODECS: Final[dict[str, Callable[[Path], Path]]] = {"h264": h264, "hevc": clips.hevc, "mpeg2": clips.mpeg2}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("first", "stop"), [(12, 13), (20, 21), (20, 25), (30, 50)])
def test_frames_whose_packets_did_not_arrive_are_gaps(codec: str, first: int, stop: int, tmp_path: Path) -> None:
    whole = CODECS[codec](tmp_path / "whole.ts")
    assert (count_all(read(whole)), gaps(read(whole))) == (60, [])
    path = clips.without_transport_packets(whole, tmp_path / "lost.ts", first, stop)
    items = read(path)
    assert len(frames(items)) <= 60 - (stop - first)
    assert {gap.reason for gap in gaps(items)} == {GapReason.CORRUPT}
    assert count_all(items) == 60
    assert_resumes_everywhere(path, items, 20)


@pytest.mark.parametrize("rate", [Fraction(5), Fraction(7), Fraction(25)])
def test_at_a_rate_only_frames_that_would_be_kept_are_missing(rate: Fraction, tmp_path: Path) -> None:
    whole = h264(tmp_path / "whole.ts")
    expected = {frame.time_s for frame in frames(read(whole, rate))}
    items = read(clips.without_transport_packets(whole, tmp_path / "lost.ts", 18, 33), rate)
    assert {frame.time_s for frame in frames(items)} < expected
    assert count_all(items) == len(expected)


def test_a_loss_from_the_middle_of_a_frame_to_that_of_a_later_one_is_a_gap(tmp_path: Path) -> None:
    path = clips.without_transport_packets(h264(tmp_path / "whole.ts"), tmp_path / "lost.ts", 20, 23, offset=2)
    items = read(path)
    assert count_all(items) == 60
    assert sum(gap.frames or 0 for gap in gaps(items)) + sum(frame.corrupt for frame in frames(items)) >= 3


@pytest.mark.parametrize(("first", "stop"), [(20, 25), (30, 50)])
def test_no_lost_frame_is_passed_over_if_the_decoder_confuses_the_order_after_it(
    first: int, stop: int, tmp_path: Path
) -> None:
    whole = reordered_h264(tmp_path / "whole.ts")
    assert (count_all(read(whole)), gaps(read(whole))) == (60, [])
    items = read(clips.without_transport_packets(whole, tmp_path / "lost.ts", first, stop))
    assert 60 <= count_all(items) <= 63


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "libx265"])
@pytest.mark.parametrize("suffix", [".ts", ".mkv", ".mp4"])
def test_pauses_of_a_variable_rate_are_no_gaps(codec: str, suffix: str, tmp_path: Path) -> None:
    distances = [1, 1, 1, 10, 1, 2, 1, 1, 1, 1, 1, 1, 25, 1, 3]
    pts = [sum(distances[k % len(distances)] for k in range(i)) for i in range(60)]
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = clips.write(
        tmp_path / f"uneven{suffix}",
        (clips.moving_square(i) for i in range(60)),
        pts,
        time_base=Fraction(1, 25),
        codec=codec,
        options=options,
    )
    assert (len(frames(items := read(path))), gaps(items)) == (60, [])


def test_a_pause_long_after_a_loss_is_no_gap(tmp_path: Path) -> None:
    pts = [40 * i + (600 if i > 100 else 0) for i in range(120)]
    whole = clips.write(tmp_path / "whole.ts", (clips.noise(i) for i in range(120)), pts)
    items = read(clips.without_transport_packets(whole, tmp_path / "lost.ts", 33, 35))
    assert (count_all(items), [gap.frames for gap in gaps(items)]) == (120, [2])


def test_where_two_recordings_were_joined_nothing_is_missing(tmp_path: Path) -> None:
    for first_s, second_s in ((100, 0), (100, 500)):
        parts = [
            clips.write(
                tmp_path / f"{start_s}.ts", (clips.plain(i) for i in range(count)),
                [1_000 * start_s + 40 * i for i in range(count)],
            )
            for start_s, count in ((first_s, 45), (second_s, 47))
        ]  # fmt: skip
        joined = tmp_path / "joined.ts"
        joined.write_bytes(b"".join(part.read_bytes() for part in parts))
        assert (len(frames(items := read(joined))), gaps(items)) == (92, [])


# --- pictures of MPEG-2 that the decoder skips


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_pictures_of_mpeg2_with_a_damaged_header_are_gaps(suffix: str, tmp_path: Path) -> None:
    whole = clips.mpeg2(tmp_path / f"whole{suffix}")
    assert (count_all(read(whole)), gaps(read(whole))) == (60, [])
    path = clips.with_damaged_picture_headers(whole, tmp_path / f"damaged{suffix}", [20, 33, 34])
    items = read(path)
    assert len(frames(items)) < 60
    assert count_all(items) == 60
    assert_resumes_everywhere(path, items, 11)


@pytest.mark.parametrize("suffix", [".mpg", ".m2v"])
def test_pictures_with_a_damaged_header_are_gaps_where_packets_have_guessed_times(suffix: str, tmp_path: Path) -> None:
    whole = clips.mpeg2(tmp_path / f"whole{suffix}")
    assert (count_all(read(whole)), gaps(read(whole))) == (60, [])
    items = read(clips.with_damaged_picture_headers(whole, tmp_path / f"damaged{suffix}", [20, 33]))
    assert len(frames(items)) == 58
    assert count_all(items) == 60


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".mpg"])
@pytest.mark.parametrize(
    "options",
    [
        {"flags": "+ildct+ilme"}, {"bf": "0"}, {"g": "300", "sc_threshold": "1000000000"},
        {"flags": "+cgop", "sc_threshold": "1000000000"},
    ],
    ids=["interlaced", "without B-frames", "one long GOP", "closed GOPs"],
)  # fmt: skip
def test_an_undamaged_video_of_mpeg2_has_no_gap(options: dict[str, str], suffix: str, tmp_path: Path) -> None:
    path = clips.mpeg2(tmp_path / f"whole{suffix}", options)
    assert (len(frames(items := read(path))), gaps(items)) == (60, [])


def test_a_packet_with_a_single_field_is_told_from_a_frame() -> None:
    """FFmpeg encodes no such pictures, so these are headers only. Where each field is a packet, half of them give no frame."""
    picture, sequence = bytes.fromhex("0000010000d7fffb80"), bytes.fromhex("000001b5148200010000")

    def field(structure: int) -> bytes:
        return picture + bytes.fromhex("000001b58111") + bytes([0b1111_0000 | structure]) + bytes(20)

    assert [is_single_field(memoryview(sequence + field(structure))) for structure in (1, 2, 3)] == [True, True, False]
    assert not is_single_field(memoryview(field(1) + field(2)))
    assert not is_single_field(memoryview(picture))
    assert not is_single_field(memoryview(b""))
