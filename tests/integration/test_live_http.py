"""Live sources over HTTP: streams without end and pictures one after the other, and what is taken for one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from tests import clips
from tests.broadcast import Broadcast
from tests.http_server import LOOPBACK, Habits, listening, serving
from tests.rtsp.reading import (
    frames,
    gaps,
    has_frames,
    has_gap,
    take_until,
)

from vidflow.domain.errors import SourceError, Unavailable, VidflowError
from vidflow.domain.messages import GapReason, ResumePoint
from vidflow.domain.sampling import format_time_base
from vidflow.infra.video import FrameGap, KeptFrame, open_video
from vidflow.infra.video.live import LiveReader
from vidflow.infra.video.live_detection import is_live

MULTIPART = {"Content-Type": "multipart/x-mixed-replace; boundary=ffmpeg"}
KINDS = {
    "ts": ("mpegts", "mpeg2video", {"Content-Type": "video/mp2t"}),
    "flv": ("flv", "libx264", {"Content-Type": "video/x-flv"}),
    "mjpeg": ("mpjpeg", "mjpeg", MULTIPART),
    "raw": ("h264", "libx264", {}),
}


def broadcast(kind: str, fps: int = 25) -> Habits:
    container, codec, headers = KINDS[kind]
    return Habits(b"", headers=headers, live=Broadcast(container, codec, fps))


def reader(url: str, resume: ResumePoint | None = None, rate: Fraction | None = None) -> LiveReader:
    def is_fatal(error: VidflowError) -> bool:
        return not isinstance(error, SourceError | Unavailable)

    opened = partial(open_video, url, live=True, access=LOOPBACK)
    return LiveReader(opened, url, is_fatal, rate, resume or ResumePoint(), 10)


def assert_accounted_for(taken: list[KeptFrame | FrameGap], *, has_measured_rate: bool) -> None:
    """Assert that time goes on, and that frames and gaps together are all frames. A measured rate is not exact."""
    kept = frames(taken)
    times = [step.time_s if isinstance(step, KeptFrame) else step.from_s for step in taken]
    assert times == sorted(times)
    missing = sum(step.frames or 0 for step in taken[taken.index(kept[0]) :] if isinstance(step, FrameGap))
    expected = (kept[-1].time_s - kept[0].time_s) * 25 + 1
    tolerance = expected / 2 if has_measured_rate else 2
    assert len(kept) + missing == pytest.approx(expected, abs=tolerance)


@pytest.fixture(params=sorted(KINDS))
def habits(request: pytest.FixtureRequest) -> Habits:
    return broadcast(request.param)


@pytest.fixture
def url(habits: Habits) -> Iterator[str]:
    with serving(habits, name="live") as url:
        yield url


@pytest.mark.long
def test_a_stream_that_ends_is_reset_or_falls_silent_goes_on_and_its_holes_are_gaps(habits: Habits, url: str) -> None:
    live = habits.live
    assert live is not None
    with reader(url) as source:
        taken = take_until(source, has_frames(30))
        info = source.wait_for_source(0.0)
        for live.resets in (False, True):
            live.absent.set()
            taken += take_until(source, lambda _: source.outage is not None)
            time.sleep(1.0)  # the absence
            live.absent.clear()
            taken += take_until(source, has_gap(GapReason.RECONNECTING, GapReason.STALLED))
        live.frozen.set()
        taken += take_until(source, lambda _: source.outage is not None)
        assert source.outage is not None
        assert source.outage.code == "source_timeout"
        live.frozen.clear()
        taken += take_until(source, has_gap(GapReason.STALLED))
    assert info is not None
    assert (info.live, info.identity) == (True, None)
    assert_accounted_for(taken, has_measured_rate=not info.is_timed)


@pytest.mark.long
def test_a_redeployed_run_goes_on_at_once_and_the_hole_is_a_gap(url: str) -> None:
    with reader(url) as source:
        first = frames(take_until(source, has_frames(40)))[-1]
    time.sleep(1.5)  # until the next worker has started
    resume = ResumePoint(
        first.frame_number + 1, first.origin_pts, format_time_base(first.time_base), first.pts, first.time_s
    )
    with reader(url, resume) as source:
        taken = take_until(source, has_frames(3))
        info = source.wait_for_source(0.0)
    assert info is not None
    (gap,) = gaps(taken, GapReason.REDEPLOYED)
    assert frames(taken)[0].frame_number == first.frame_number + 1
    assert gap.to_s - gap.from_s < 4
    assert_accounted_for([first, *taken], has_measured_rate=not info.is_timed)


@pytest.mark.long
def test_pictures_have_the_times_at_which_they_arrive() -> None:
    with serving(broadcast("mjpeg", fps=8)) as url, reader(url) as source:
        kept = frames(take_until(source, has_frames(20)))
        assert source.wait_for_source(0.0) is not None
    assert abs(kept[-1].pts / 1e6 - time.time()) < 1
    assert [later.time_s - frame.time_s for frame, later in pairwise(kept)] == pytest.approx([1 / 8] * 19, abs=0.1)


def test_pictures_are_read_whatever_a_camera_writes_between_them() -> None:
    pictures = [encode_picture(number) for number in range(8)]
    heads = [
        b"\r\n\r\n--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n",
        b"\r\n--frame\r\ncontent-type: image/jpg\r\ncontent-length: %d\r\n\r\n",
        b"\r\n--frame\r\nContent-Length: %d\r\n\r\n",
        b"--frame\r\nContent-Type: image/jpeg; charset=binary\r\nX-Length: %d\r\n\r\n",
        b"\r\n----frame\r\nContent-Type: image/jpeg\r\nContent-Length: 0%d\r\n\r\n",
        b"\n--frame\nContent-Type: image/jpeg\nContent-Length: 1%d\n\n",
        b"\r\n--frame\r\nContent-Type: text/plain\r\n\r\nmotion: %d\r\n--frame\r\n\r\n",
        b"%d",
    ]
    body = b"".join(head % len(picture) + picture for head, picture in zip(heads, pictures, strict=True))
    headers = {"Content-Type": 'Multipart/X-Mixed-Replace;charset=utf-8; boundary="--frame"'}
    with serving(Habits(body, ranges=False, length=False, headers=headers), name="odd") as url:
        assert is_live(url, LOOPBACK, threading.Event())
        with open_video(url, live=True, access=LOOPBACK) as video:
            events = list(video.events())
    decoded = [event for event in events if isinstance(event, av.VideoFrame)]
    grays = [event.to_ndarray(format="gray").mean() for event in decoded]
    assert grays == pytest.approx([30 * number for number in range(8)], abs=3)
    assert len(decoded) == len(events)


def encode_picture(number: int) -> bytes:
    codec = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 64, 48, "yuvj420p", Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 30 * number, np.uint8), format="rgb24")
    return b"".join(bytes(packet) for packet in [*codec.encode(frame.reformat(format="yuvj420p")), *codec.encode(None)])


@pytest.mark.long
def test_streams_without_length_and_end_are_live(url: str) -> None:
    assert is_live(url, LOOPBACK, threading.Event())


@pytest.mark.parametrize("name", ["clip.ts", "clip.flv", "clip.mkv", "clip.mp4"])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_that_ends_is_a_file_with_or_without_length(tmp_path: Path, name: str, chunked: bool) -> None:
    path = clips.write(tmp_path / name, (clips.plain(i) for i in range(50)), [40 * i for i in range(50)])
    habits = Habits(path.read_bytes(), ranges=False, length=False, chunked=chunked, headers={})
    with serving(habits, name=name) as url:
        assert not is_live(url, LOOPBACK, threading.Event())
        habits.break_after = len(habits.body) * 3 // 5
        assert not is_live(url, LOOPBACK, threading.Event())


def test_pictures_are_refused_as_a_file_since_they_have_no_times() -> None:
    with serving(broadcast("mjpeg")) as url, pytest.raises(SourceError) as refused:
        open_video(url, access=LOOPBACK)
    assert refused.value.code == "source_not_video"


@pytest.mark.long
@pytest.mark.parametrize("headers", [{"ETag": '"1"'}, {"Last-Modified": "Sat, 28 Nov 2026 00:00:00 GMT"}])
def test_what_the_server_describes_as_a_file_is_one_however_slowly_it_comes(headers: dict[str, str]) -> None:
    habits = broadcast("ts")
    habits.headers = headers
    with serving(habits) as url:
        assert not is_live(url, LOOPBACK, threading.Event())


@pytest.mark.parametrize("source", ["/videos/a.ts", "http://127.0.0.1:9/live.ts"])
def test_other_sources_are_files(source: str) -> None:
    assert not is_live(source, LOOPBACK, threading.Event())


@pytest.mark.parametrize(
    ("status", "headers", "code"),
    [
        (401, {"WWW-Authenticate": "Basic"}, "source_unauthorized"), (403, {}, "source_denied"), (404, {}, "source_not_found"),
        (503, {}, "source_unreachable"), (302, {"Location": "http://10.1.2.3/"}, "source_refused"),
        (302, {"Location": "file:///etc/passwd"}, "source_denied"),
    ],
)  # fmt: skip
def test_a_refusal_of_a_live_source_has_its_code(status: int, headers: dict[str, str], code: str) -> None:
    with (
        serving(Habits(b"", answers=[(status, headers)])) as url,
        pytest.raises((SourceError, Unavailable)) as refused,
    ):
        open_video(url, live=True, access=LOOPBACK)
    assert refused.value.code == code


def test_a_live_source_is_asked_with_the_login_of_its_url() -> None:
    habits = Habits(
        b"", accepts="Basic ", headers={"Content-Type": "video/mp2t"}, live=Broadcast("mpegts", "mpeg2video")
    )
    with serving(habits) as url:
        with open_video(url.replace("127", "user:secret@127"), live=True, access=LOOPBACK) as video:
            assert video.source.container == "mpegts"
        assert "range" not in habits.requests[-1]


def test_a_live_source_that_accepts_and_stays_silent_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidflow.infra.video.http_connection.READ_TIMEOUT_S", 0.3)
    with listening() as port, pytest.raises(Unavailable) as silent:
        open_video(f"http://127.0.0.1:{port}/live", live=True, access=LOOPBACK)
    assert silent.value.code == "source_unreachable"
