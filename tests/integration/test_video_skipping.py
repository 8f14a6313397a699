"""Reading at a rate without decoding every frame gives what reading with every frame decoded gives: pixels, marks, times and gaps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from tests import clips

from vidflow.domain.messages import ResumePoint
from vidflow.domain.sampling import format_time_base
from vidflow.infra.video import KeptFrame, open_video, read_kept_frames, skipping
from vidflow.infra.video.packets import Event
from vidflow.infra.video.skipping import Picture, SkippedFrame, find_length_bytes, read_header

RATES: Final = [Fraction(5), Fraction(2), Fraction(1), Fraction(29, 30), Fraction(1, 3)]
FRAMES: Final = 150


def write(
    path: Path,
    picture: Callable[[int], NDArray[np.uint8]] = clips.moving_square,
    pts: list[int] | None = None,
    **options: str,
) -> Path:
    """Write 25 frames per second in H.264 of the preset `medium`, with `x264` options."""
    params = ":".join(f"{name.replace('_', '-')}={value}" for name, value in {"log-level": "none", **options}.items())
    times = pts or [40 * index for index in range(FRAMES)]
    pictures = (picture(index) for index in range(len(times)))
    return clips.write(path, pictures, times, options={"x264-params": params, "preset": "medium"})


def moving_noise(index: int) -> NDArray[np.uint8]:
    """Return a picture that moves with a third as much noise of its own."""
    moving = np.roll(clips.noise(0), (2 * index, 5 * index), axis=(0, 1)).astype(np.int64)
    return ((3 * moving + clips.noise(index)) // 4).astype(np.uint8)


def uneven_pts() -> list[int]:
    distances = [10, 40, 33, 900, 7, 120, 40, 40, 300, 51]
    return [sum(distances[k % 10] for k in range(index)) for index in range(FRAMES)]


def jumping_pts() -> list[int]:
    return [40 * index + (0 if index < 80 else 5_000_000) for index in range(FRAMES)]


def joined(path: Path) -> Path:
    """Join two recordings whose clocks differ, the second one earlier."""
    parts = [
        write(
            path.with_name(f"{start}-{path.name}"),
            pts=[start + 40 * index for index in range(70)],
            keyint="30",
            bframes="3",
        )
        for start in (9000, 1000)
    ]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def with_edit(path: Path) -> Path:
    """Cut the start of a clip at a frame between keyframes, by an edit list that hides the frames before it."""
    whole = write(path.with_name(f"whole-{path.name}"), keyint="30", bframes="3")
    data = bytearray(whole.read_bytes())
    place = data.index(b"elst") + 4
    assert data[place] == 0
    data[place + 12 : place + 16] = (int.from_bytes(data[place + 12 : place + 16]) + 17 * 512).to_bytes(4)
    path.write_bytes(data)
    return path


CLIPS: Final[dict[str, Callable[[Path], Path]]] = {
    "b-frames.mp4": lambda path: write(path, keyint="250", bframes="3", b_adapt="0"),
    "pyramid.mp4": lambda path: write(path, keyint="60", bframes="7", b_adapt="0", b_pyramid="normal"),
    "short-gop.mp4": lambda path: write(path, keyint="12", bframes="2"),
    "gop-of-1.mp4": lambda path: write(path, keyint="1"),
    "open-gop.mp4": lambda path: write(path, keyint="20", bframes="3", open_gop="1", scenecut="0"),
    "open-gop.mkv": lambda path: write(path, keyint="20", bframes="3", open_gop="1", scenecut="0"),
    "intra-refresh.mp4": lambda path: write(path, keyint="40", bframes="0", intra_refresh="1"),
    "no-b-frames.mkv": lambda path: write(path, keyint="30", bframes="0"),
    "b-frames.mkv": lambda path: write(path, keyint="30", bframes="3"),
    "b-frames.ts": lambda path: write(path, keyint="30", bframes="3"),
    "b-frames.avi": lambda path: write(path, keyint="30", bframes="3"),
    "no-b-frames.avi": lambda path: write(path, keyint="30", bframes="0"),
    "interlaced.ts": lambda path: write(path, keyint="30", bframes="2", interlaced="1", tff="1"),
    "slices.mp4": lambda path: write(path, keyint="30", bframes="2", slices="4"),
    "uneven.mp4": lambda path: write(path, pts=uneven_pts(), keyint="40", bframes="3"),
    "uneven.mkv": lambda path: write(path, pts=uneven_pts(), keyint="40", bframes="3"),
    "jumping.mkv": lambda path: write(path, pts=jumping_pts(), keyint="30", bframes="3"),
    "first-at-5-s.mp4": lambda path: write(path, pts=[5000 + 40 * index for index in range(FRAMES)], keyint="30"),
    "hevc.mp4": lambda path: clips.hevc(path, FRAMES),
    "mpeg2.ts": lambda path: clips.mpeg2(path, frames=FRAMES),
    "joined.ts": joined,
    "edited.mp4": with_edit,
}  # fmt: skip


@pytest.fixture(scope="module", params=CLIPS)
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return CLIPS[request.param](tmp_path_factory.mktemp("clips") / request.param)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an mp4 whose packets are long enough to be damaged in part, and whose pictures all depend on each other."""
    path = tmp_path_factory.mktemp("noisy") / "whole.mp4"
    return write(path, moving_noise, keyint="40", bframes="3", b_adapt="0")


def comparable(item: object) -> object:
    if not isinstance(item, KeptFrame):
        return item
    pixels = hashlib.sha256(b"".join(bytes(plane) for plane in item.decoded.planes)).hexdigest()
    return item.frame_number, item.pts, item.origin_pts, item.time_s, item.corrupt, item.clock_jumps, pixels


def read(path: Path, rate: Fraction, resume: ResumePoint | None = None, *, decodes_all: bool = False) -> list[object]:
    with open_video(str(path)) as video:
        if decodes_all:
            video.decode_all()
        return [comparable(item) for item in read_kept_frames(video, rate, resume)]


def read_resume_points(path: Path, rate: Fraction) -> list[ResumePoint]:
    """Return resume points after each third kept frame."""
    with open_video(str(path)) as video:
        return [
            ResumePoint(item.frame_number + 1, item.origin_pts, format_time_base(item.time_base), item.pts, item.time_s)
            for item in read_kept_frames(video, rate)
            if isinstance(item, KeptFrame) and item.frame_number % 3 == 1
        ]


@pytest.mark.parametrize("rate", RATES, ids=str)
def test_kept_frames_are_those_of_a_full_decode(clip: Path, rate: Fraction) -> None:
    assert read(clip, rate) == read(clip, rate, decodes_all=True)


@pytest.mark.parametrize("rate", [*RATES, Fraction(1, 10)], ids=str)
@pytest.mark.parametrize("name", ["corrupted.mp4", "nasa-13013.mp4", "bottle-detection.mp4"])
def test_kept_frames_of_a_real_clip_are_those_of_a_full_decode(shared: Path, name: str, rate: Fraction) -> None:
    """The damage in `corrupted.mp4` is concealed differently if what was left out before it is not decoded again."""
    path = shared / "videos" / name
    assert read(path, rate) == read(path, rate, decodes_all=True)


@pytest.mark.parametrize("rate", [Fraction(2), Fraction(1)], ids=str)
def test_a_resumed_run_is_that_of_a_full_decode(clip: Path, rate: Fraction) -> None:
    points = read_resume_points(clip, rate)
    assert points
    resumed = [read(clip, rate, point) for point in points]
    assert resumed == [read(clip, rate, point, decodes_all=True) for point in points]


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_lost_packets_are_reported_and_concealed_as_by_a_full_decode(
    noisy: Path, suffix: str, rate: Fraction, tmp_path: Path
) -> None:
    references = find_references(noisy)
    for lost in ([references[20]], [references[21]], references[9::15], [*references[3:5], *range(95, 99)]):
        path = clips.write_damaged(noisy, tmp_path / "damaged.mp4", lost)
        path = path if suffix == ".mp4" else clips.remux(path, tmp_path / f"damaged{suffix}")
        assert read(path, rate) == read(path, rate, decodes_all=True)


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_truncated_file_ends_as_in_a_full_decode(noisy: Path, suffix: str, rate: Fraction, tmp_path: Path) -> None:
    whole = (
        clips.remux(noisy, tmp_path / f"whole{suffix}")
        if suffix != ".mp4"
        else with_index_in_front(tmp_path / "whole.mp4")
    )
    path = clips.write_truncated(whole, tmp_path / f"truncated{suffix}", 0.6)
    assert marks(read(path, rate)) == marks(read(path, rate, decodes_all=True))


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_concealed_damage_is_marked_as_by_a_full_decode(
    noisy: Path, suffix: str, rate: Fraction, tmp_path: Path
) -> None:
    """The decoder's guess of the damaged parts depends on where it began, so it differs from that of a full decode as in a resumed run."""
    path = clips.with_concealed_damage(noisy, tmp_path / "damaged.mp4", find_references(noisy)[::7])
    path = path if suffix == ".mp4" else clips.remux(path, tmp_path / f"damaged{suffix}")

    assert marks(read(path, rate)) == marks(read(path, rate, decodes_all=True))


def marks(items: list[object]) -> list[object]:
    """Return the items without pixels."""
    return [item[:-1] if isinstance(item, tuple) else item for item in items]


def find_references(path: Path) -> list[int]:
    """Return the indexes of the packets to which others refer, but no keyframes."""
    return [index for index, picture in enumerate(list_pictures(path)) if picture is Picture.REFERENCE]


def with_index_in_front(path: Path) -> Path:
    pictures = (clips.noise(index) for index in range(FRAMES))
    options = {"x264-params": "log-level=none:keyint=40:bframes=3"}
    return clips.write(
        path, pictures, [40 * i for i in range(FRAMES)], options=options, muxer={"movflags": "faststart"}
    )


def list_pictures(path: Path) -> list[Picture]:
    with av.open(path) as container:
        stream = container.streams.video[0]
        length_bytes = find_length_bytes(stream.codec_context.extradata)
        return [
            read_header(memoryview(packet), length_bytes).picture for packet in container.demux(stream) if packet.size
        ]


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize(("first", "stop"), [(33, 34), (50, 55), (80, 120)])
def test_packets_that_did_not_arrive_are_reported_as_by_a_full_decode(
    noisy: Path, first: int, stop: int, rate: Fraction, tmp_path: Path
) -> None:
    whole = clips.remux(noisy, tmp_path / "whole.ts")
    path = clips.without_transport_packets(whole, tmp_path / "lost.ts", first, stop)
    assert read(path, rate) == read(path, rate, decodes_all=True)


def read_events(path: Path, unwanted: range) -> list[Event]:
    with open_video(str(path)) as video:
        events = video.events()
        first = next(events)
        video.skip_frames(unwanted)
        return [first, *events]


def count_skipped(path: Path, unwanted: range) -> int:
    return sum(isinstance(event, SkippedFrame) for event in read_events(path, unwanted))


def test_a_picture_that_no_other_refers_to_is_not_decoded(tmp_path: Path) -> None:
    path = write(tmp_path / "video.mp4", keyint="infinite", bframes="3", b_adapt="0", b_pyramid="none", scenecut="0")
    assert (
        list_pictures(path).count(Picture.DISPOSABLE) == 111
    )  # three of each four after the first, and one less at the end
    assert 105 <= count_skipped(path, range(1, 1_000_000)) <= 111


def test_the_end_of_a_group_after_the_last_kept_frame_is_not_decoded(tmp_path: Path) -> None:
    path = write(tmp_path / "video.mp4", keyint="25", min_keyint="25", bframes="0", scenecut="0")
    assert list_pictures(path).count(Picture.IDR) == 6
    with open_video(str(path)) as video:
        time_base = video.source.time_base
    assert 120 <= count_skipped(path, range(1, int(5 / time_base))) < 125  # the last group begins at 5 s


def test_what_is_left_out_appears_in_order_of_display(tmp_path: Path) -> None:
    path = write(tmp_path / "video.mp4", keyint="25", bframes="3")
    events = read_events(path, range(1, 1_000_000))
    assert [event.pts for event in events] == [event.pts for event in read_events(path, range(0))]


@pytest.mark.parametrize("name", ["open-gop.mp4", "intra-refresh.mp4", "no-b-frames.mkv", "gop-of-1.mp4"])
def test_packets_that_are_kept_and_skipped_frames_that_wait_are_bounded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skipping, "MAX_KEPT_BYTES", 2000)
    monkeypatch.setattr(skipping, "MAX_SKIPPED_FRAMES", 8)
    path = CLIPS[name](tmp_path / name)
    items = [read(path, rate) for rate in RATES]
    assert items == [read(path, rate, decodes_all=True) for rate in RATES]


def test_a_packet_is_read_by_the_types_of_its_units() -> None:
    """The bytes are written by hand after H.264 7.3.1 and 7.3.2."""
    idr, reference, disposable = b"\x65\x88", b"\x41\x9a", b"\x01\x9e"
    parameters, timing, recovery, rotation = (
        b"\x67\x64",
        b"\x06\x01\x01\x32\x80",
        b"\x06\x06\x01\xc4\x80",
        b"\x06\x2f\x01\x80\x80",
    )
    expected = {
        (idr,): (Picture.IDR, b""),
        (parameters, b"\x68\xee", idr, idr): (Picture.IDR, parameters + b"\x68\xee"),
        (reference, reference): (Picture.REFERENCE, b""),
        (b"\x09\xf0", timing, disposable): (Picture.DISPOSABLE, b""),
        (reference, disposable): (Picture.REFERENCE, b""),
        (recovery, disposable): (Picture.REFERENCE, b""),
        (rotation, disposable): (Picture.OTHER, b""),
        (b"\x0b", disposable): (Picture.OTHER, b""),
        (b"\x02\x11",): (Picture.OTHER, b""),
        (): (Picture.OTHER, b""),
    }
    for units, header in expected.items():
        by_length = b"".join(len(unit).to_bytes(4) + unit for unit in units)
        by_start = b"".join(b"\0\0\0\1" + unit for unit in units)
        assert read_header(memoryview(by_start), None) == header
        assert read_header(memoryview(by_length), 4) == header
    assert read_header(memoryview(b"\0\0\0\x09\x65\x88"), 4).picture is Picture.OTHER
    assert read_header(memoryview(b"\0\0"), 4).picture is Picture.OTHER
