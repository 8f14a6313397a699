"""Kept frames and gaps of clips with one property each: numbers, times, damage and resuming."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import pytest
from tests import clips

from vidflow.domain.messages import ClockChanges, GapReason, ResumePoint
from vidflow.domain.sampling import format_time_base
from vidflow.infra.video import FrameGap, KeptFrame, Video, open_video, read_kept_frames

ComparableFrame = tuple[int, int, float, int, int, bytes] | FrameGap | ClockChanges
"""What a run yields, in a form to compare: a frame's number, pts, time, size and picture, or a gap."""


def comparable(item: KeptFrame | FrameGap | ClockChanges) -> ComparableFrame:
    if not isinstance(item, KeptFrame):
        return item
    picture = item.image(16, 12).tobytes()
    return (item.frame_number, item.pts, item.time_s, item.width, item.height, picture)


def read_all(path: Path, rate: Fraction | None = None, resume: ResumePoint | None = None) -> list[ComparableFrame]:
    with open_video(str(path)) as video:
        return [comparable(item) for item in read_kept_frames(video, rate, resume)]


def frames(items: Sequence[ComparableFrame]) -> list[tuple[int, int, float, int, int, bytes]]:
    return [item for item in items if isinstance(item, tuple)]


def gaps(items: Sequence[ComparableFrame]) -> list[FrameGap]:
    return [item for item in items if isinstance(item, FrameGap)]


def resume_points(path: Path, rate: Fraction | None = None) -> list[ResumePoint]:
    """Return what is stored after each kept frame of an uninterrupted run."""
    with open_video(str(path)) as video:
        identity = video.source.identity
        kept = [item for item in read_kept_frames(video, rate) if isinstance(item, KeptFrame)]
    return [
        ResumePoint(k.frame_number + 1, k.origin_pts, format_time_base(k.time_base), k.pts, k.time_s, identity)
        for k in kept
    ]


def items_after(items: Sequence[ComparableFrame], next_frame: int) -> list[ComparableFrame]:
    """Return the part of a whole run that follows frame `next_frame - 1`."""
    for index, item in enumerate(items):
        if isinstance(item, tuple) and item[0] == next_frame - 1:
            return list(items[index + 1 :])
    raise AssertionError(f"no frame {next_frame - 1}")


def assert_resumes_everywhere(path: Path, rate: Fraction | None, every: int = 1) -> None:
    whole = read_all(path, rate)
    for resume in resume_points(path, rate)[::every]:
        assert read_all(path, rate, resume) == items_after(whole, resume.next_frame), resume.next_frame


def fail_on_restart(_: Video) -> None:
    pytest.fail("the video was decoded from the start")


# --- numbers and times


def test_frames_are_numbered_from_0_with_their_own_pts_and_pictures(tmp_path: Path) -> None:
    with open_video(str(clips.constant_rate(tmp_path / "clip.mp4", 30))) as video:
        kept = list(read_kept_frames(video))
        assert all(isinstance(item, KeptFrame) for item in kept)
        for index, frame in enumerate(item for item in kept if isinstance(item, KeptFrame)):
            assert (frame.frame_number, frame.pts, frame.time_s) == (index, 640 * index, index * 0.04)
            assert (frame.width, frame.height, frame.time_base) == (96, 64, Fraction(1, 16_000))
            assert abs(int(frame.image().mean()) - clips.grey(index)) <= 3
        assert len(kept) == 30


def test_a_rate_keeps_the_first_frame_that_reaches_each_grid_time_of_a_video_with_a_variable_rate(
    tmp_path: Path,
) -> None:
    clip = clips.variable_rate(tmp_path / "vfr.mkv")
    with open_video(str(clip)) as video:
        assert video.source.average_rate is not None
        half_frame_ms = 500 / video.source.average_rate
    milliseconds = [round(item[2] * 1_000) for item in frames(read_all(clip))]
    by_grid_time = {(time_ms + half_frame_ms) // 500: time_ms for time_ms in reversed(milliseconds)}
    assert [round(item[2] * 1_000) for item in frames(read_all(clip, Fraction(2)))] == sorted(by_grid_time.values())


def test_time_is_counted_from_the_first_frame_whatever_its_pts(tmp_path: Path) -> None:
    kept = frames(read_all(clips.constant_rate(tmp_path / "late.mkv", 10, first_ms=5_033)))
    assert [(k[1], round(k[2], 6)) for k in kept[:2]] == [(5_033, 0.0), (5_073, 0.04)]


def test_b_frames_are_returned_in_display_order(tmp_path: Path) -> None:
    kept = frames(read_all(clips.long_gop_with_b_frames(tmp_path / "b.mp4")))
    assert [k[1] for k in kept] == [640 * i for i in range(120)]


def test_a_single_frame_is_a_video(tmp_path: Path) -> None:
    assert [k[0] for k in frames(read_all(clips.constant_rate(tmp_path / "one.mp4", 1), Fraction(5)))] == [0]


def test_frames_without_pts_are_timed_by_the_streams_rate(tmp_path: Path) -> None:
    with open_video(str(clips.raw_h264(tmp_path / "raw.h264"))) as video:
        kept = [item for item in read_kept_frames(video, Fraction(5)) if isinstance(item, KeptFrame)]
    assert [(k.pts, k.time_base, k.time_s) for k in kept[:3]] == [
        (0, Fraction(1, 25), 0.0),
        (5, Fraction(1, 25), 0.2),
        (10, Fraction(1, 25), 0.4),
    ]
    assert len(kept) == 6


def test_no_frame_is_dropped_when_the_pts_restart_midway(tmp_path: Path) -> None:
    whole = read_all(clips.timestamps_restart(tmp_path / "two.ts"))
    assert [k[0] for k in frames(whole)] == list(range(60))
    assert [round(k[2], 3) for k in frames(whole)] == [round(0.04 * i, 3) for i in range(60)]


def test_each_frame_has_its_own_size_when_the_size_changes_midway(tmp_path: Path) -> None:
    sizes = [k[3:5] for k in frames(read_all(clips.changing_size(tmp_path / "sizes.h264")))]
    assert sizes == [(96, 64)] * 10 + [(128, 48)] * 10


def test_frames_that_exceed_the_size_limit_midway_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = clips.changing_size(tmp_path / "sizes.h264", 256, 128)
    for module in ("open", "ffmpeg"):
        monkeypatch.setattr(f"vidflow.infra.video.{module}.MAX_PIXELS", 128 * 128)
    whole = read_all(clip)
    assert {k[3:5] for k in frames(whole)} == {(96, 64)}
    assert sum(gap.frames or 0 for gap in gaps(whole)) == 10


@pytest.mark.long
def test_reading_many_frames_does_not_accumulate_memory(tmp_path: Path) -> None:
    clip = clips.write(
        tmp_path / "long.mp4", (clips.plain(i, 640, 480) for i in range(300)), [40 * i for i in range(300)]
    )

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4_096

    with open_video(str(clip)) as video:
        kept = read_kept_frames(video)
        for _ in range(50):
            next(kept)
        early_bytes = resident_bytes()
        count = sum(1 for _ in kept)
        assert count == 250
        assert resident_bytes() - early_bytes < 30 * 640 * 480 * 3 // 2


# --- damage


def test_a_damaged_packet_leaves_a_gap_of_one_frame_at_its_place(tmp_path: Path) -> None:
    clip = clips.write_damaged(clips.long_gop_with_b_frames(tmp_path / "whole.mp4"), tmp_path / "damaged.mp4", [30])
    whole = read_all(clip, None)
    assert len(frames(whole)) == 119
    (gap,) = gaps(whole)
    assert (gap.frames, gap.reason) == (1, GapReason.CORRUPT)
    previous, following = frames(whole)[gap.after_frame], frames(whole)[gap.after_frame + 1]
    assert previous[2] < gap.from_s < gap.to_s == following[2]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_hevc_packets_that_the_decoder_skips_silently_leave_a_gap(tmp_path: Path, suffix: str) -> None:
    whole = clips.hevc(tmp_path / "whole.mp4")
    data = bytearray(whole.read_bytes())
    with av.open(whole) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.pos is not None]
    for index in (25, 33):
        data[positions[index] + 4] = 40 << 1  # the type of its unit: reserved, so the decoder ignores it
    (tmp_path / "damaged.mp4").write_bytes(data)
    clip = clips.remux(tmp_path / "damaged.mp4", tmp_path / f"skipped{suffix}")
    items = read_all(clip)
    assert len(frames(items)) < 60
    assert len(frames(items)) + sum(gap.frames or 0 for gap in gaps(items)) == 60
    assert_resumes_everywhere(clip, None, every=7)


def test_adjacent_losses_form_one_gap(tmp_path: Path) -> None:
    clip = clips.write_damaged(clips.constant_rate(tmp_path / "whole.mp4"), tmp_path / "damaged.mp4", [13, 14, 15])
    assert gaps(read_all(clip)) == [FrameGap(12, 0.52, 0.64, 3, GapReason.CORRUPT)]


def test_gaps_after_a_damaged_keyframe_cover_all_its_dependent_frames(tmp_path: Path) -> None:
    clip = clips.write_damaged(clips.constant_rate(tmp_path / "whole.mp4"), tmp_path / "damaged.mp4", [30])
    whole = read_all(clip)
    assert len(frames(whole)) + sum(gap.frames or 0 for gap in gaps(whole)) == 50
    assert all(gap.reason is GapReason.CORRUPT and gap.from_s < gap.to_s for gap in gaps(whole))


def test_damage_up_to_the_end_is_reported_as_a_gap(tmp_path: Path) -> None:
    clip = clips.write_damaged(clips.constant_rate(tmp_path / "whole.mp4"), tmp_path / "damaged.mp4", range(45, 50))
    (gap,) = gaps(read_all(clip))
    assert (gap.after_frame, gap.from_s, gap.frames) == (44, 1.8, 5)


def test_damage_before_the_first_frame_is_reported_as_a_gap(tmp_path: Path) -> None:
    clip = clips.write_damaged(clips.constant_rate(tmp_path / "whole.mp4"), tmp_path / "damaged.mp4", [0])
    whole = read_all(clip)
    assert gaps(whole)[0].after_frame == -1
    assert len(frames(whole)) + sum(gap.frames or 0 for gap in gaps(whole)) == 50


def test_a_loss_in_a_cell_whose_frame_was_kept_is_not_a_gap(tmp_path: Path) -> None:
    clip = clips.write_damaged(clips.constant_rate(tmp_path / "whole.mp4"), tmp_path / "damaged.mp4", [13])
    assert gaps(read_all(clip, Fraction(1))) == []
    assert [gap.frames for gap in gaps(read_all(clip, Fraction(25)))] == [1]


def test_a_truncated_matroska_file_ends_with_a_gap(tmp_path: Path) -> None:
    whole = clips.constant_rate(tmp_path / "whole.mkv", 200)
    items = read_all(clips.write_truncated(whole, tmp_path / "cut.mkv"), Fraction(5))
    (gap,) = gaps(items)
    last = frames(items)[-1]
    assert (gap.after_frame, gap.reason, gap.frames, gap.to_s) == (last[0], GapReason.TRUNCATED, None, 8.0)
    assert last[2] < gap.from_s < 5


def test_a_truncated_mp4_with_its_index_in_front_ends_with_a_gap(tmp_path: Path) -> None:
    whole = clips.constant_rate(tmp_path / "whole.mp4", 200, muxer={"movflags": "faststart"})
    items = read_all(clips.write_truncated(whole, tmp_path / "cut.mp4"))
    assert gaps(items)[-1].reason == GapReason.TRUNCATED
    assert gaps(items)[-1].to_s == 8.0


@pytest.mark.parametrize("name", ["whole.mp4", "whole.mkv", "whole.avi", "whole.ts"])
def test_an_undamaged_file_has_no_gaps(tmp_path: Path, name: str) -> None:
    assert gaps(read_all(clips.constant_rate(tmp_path / name, 75, first_ms=2_000))) == []


def test_a_recording_that_begins_in_the_midst_of_a_stream_has_no_gap(tmp_path: Path) -> None:
    """The first frames refer to earlier ones, so no player shows them."""
    clip = tmp_path / "cut.mkv"
    with av.open(clips.hevc(tmp_path / "whole.mkv")) as original, av.open(clip, "w") as copy:
        stream = copy.add_stream_from_template(original.streams.video[0], opaque=True)
        packets = [packet for packet in original.demux(video=0) if packet.dts is not None]
        second_keyframe = [index for index, packet in enumerate(packets) if packet.is_keyframe][1]
        for packet in packets[second_keyframe:]:
            packet.stream = stream
            copy.mux_one(packet)
    items = read_all(clip)
    assert gaps(items) == []
    assert 0 < len(frames(items)) < len(packets) - second_keyframe


# --- resuming

MAKERS: dict[str, Callable[[Path], Path]] = {
    "cfr.mp4": clips.constant_rate,
    "cfr.mkv": clips.constant_rate,
    "cfr.avi": clips.constant_rate,
    "cfr.ts": clips.constant_rate,
    "late.mkv": lambda path: clips.constant_rate(path, 50, first_ms=5_000),
    "vfr.mp4": clips.variable_rate,
    "vfr.mkv": clips.variable_rate,
    "b.mp4": clips.long_gop_with_b_frames,
    "b.mkv": clips.long_gop_with_b_frames,
    "b.avi": clips.long_gop_with_b_frames,
    "refresh.mp4": clips.intra_refresh,
    "raw.h264": clips.raw_h264,
    "sizes.h264": clips.changing_size,
    "two.ts": clips.timestamps_restart,
    "one.mp4": lambda path: clips.constant_rate(path, 1),
    "hevc.mp4": clips.hevc,
    "hevc.mkv": clips.hevc,
}


@pytest.mark.parametrize("rate", [None, Fraction(5)], ids=["all", "5 per second"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_resumed_run_continues_exactly_as_an_uninterrupted_one(
    tmp_path: Path, name: str, rate: Fraction | None
) -> None:
    assert_resumes_everywhere(MAKERS[name](tmp_path / name), rate, every=7 if rate is None else 2)


@pytest.mark.parametrize("rate", [None, Fraction(5)], ids=["all", "5 per second"])
@pytest.mark.parametrize("packets", [[13, 14, 15], [20], [30, 33]])
def test_a_resumed_run_of_a_damaged_file_continues_exactly_as_an_uninterrupted_one(
    tmp_path: Path, packets: list[int], rate: Fraction | None
) -> None:
    clip = clips.write_damaged(clips.constant_rate(tmp_path / "whole.mp4"), tmp_path / "damaged.mp4", packets)
    assert_resumes_everywhere(clip, rate)


@pytest.mark.parametrize("name", ["b.mp4", "b.mkv", "vfr.mp4", "cfr.avi", "hevc.mp4", "hevc.mkv"])
def test_resuming_seeks_if_the_container_has_an_index(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = MAKERS[name](tmp_path / name)
    resumes = resume_points(clip)
    monkeypatch.setattr(Video, "restart", fail_on_restart)
    for resume in resumes[5::10]:
        assert frames(read_all(clip, None, resume))[0][0] == resume.next_frame


def test_resuming_near_a_keyframe_that_is_not_a_whole_picture_seeks_further_back(tmp_path: Path) -> None:
    clip = clips.intra_refresh(tmp_path / "refresh.mp4")
    whole, resume = read_all(clip), resume_points(clip)[85]
    assert read_all(clip, None, resume) == items_after(whole, 86)


def test_resuming_decodes_from_the_start_if_seeking_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = clips.constant_rate(tmp_path / "clip.mp4")
    whole, resume = read_all(clip), resume_points(clip)[40]

    def fail_to_seek(_: Video, __: int) -> None:
        raise av.error.OSError(5, "seeking is not supported")

    monkeypatch.setattr(Video, "seek", fail_to_seek)
    assert read_all(clip, None, resume) == items_after(whole, 41)


def test_a_run_resumed_after_the_last_frame_yields_nothing(tmp_path: Path) -> None:
    clip = clips.constant_rate(tmp_path / "clip.mp4")
    assert read_all(clip, None, resume_points(clip)[-1]) == []


def test_a_gap_directly_after_the_stored_frame_is_reported_again_unchanged(tmp_path: Path) -> None:
    clip = clips.write_damaged(clips.constant_rate(tmp_path / "whole.mp4"), tmp_path / "damaged.mp4", [13])
    (gap,) = gaps(read_all(clip))
    assert read_all(clip, None, resume_points(clip)[gap.after_frame])[0] == gap
    assert gaps(read_all(clip, None, resume_points(clip)[gap.after_frame + 1])) == []


def test_an_impossible_resume_point_is_resolved_by_counting_frames(tmp_path: Path) -> None:
    clip = clips.constant_rate(tmp_path / "clip.mp4")
    resume = ResumePoint(3, -(2**63), "1/16000", 2**63 - 1, None)
    assert [k[0] for k in frames(read_all(clip, None, resume))] == list(range(3, 50))
