"""How the reading of a live source ends: by a limit, by a stop, or given up. Frames and gaps reach exactly to the end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import partial

import pytest
from tests.integration.api_server import free_port
from tests.rtsp.camera import ENCODERS, Camera, Picture

from vidflow.domain.errors import SourceError
from vidflow.domain.live_end import LiveLimits
from vidflow.domain.messages import GapReason, ResumePoint
from vidflow.domain.sampling import format_time_base
from vidflow.domain.source_access import SourceAccess, allow_local_networks
from vidflow.infra.video import FrameGap, Interruption, KeptFrame, Video, open_video
from vidflow.infra.video.live import LiveReader

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("rtsp_server")]
FPS = 25
LIMIT_S = 30.0
Steps = list[KeptFrame | FrameGap]


@pytest.fixture
def camera() -> Iterator[Camera]:
    with Camera(free_port(), FPS) as camera:
        yield camera


def reader(
    url: str,
    limits: LiveLimits | None = None,
    rate: Fraction | None = None,
    resume: ResumePoint | None = None,
    capacity: int = 1,
) -> LiveReader:
    opened = partial(open_video, url, access=allow_local_networks(SourceAccess()))
    return LiveReader(opened, url, lambda _: False, rate, resume or ResumePoint(), capacity, limits)


def take_frames(live: LiveReader, count: int) -> Steps:
    taken: Steps = []
    deadline_s = time.monotonic() + LIMIT_S
    while len(frames(taken)) < count:
        assert time.monotonic() < deadline_s, taken[-3:]
        taken += live.take(0.1)
    return taken


def take_until_over(live: LiveReader) -> Steps:
    taken: Steps = []
    deadline_s = time.monotonic() + LIMIT_S
    while not live.is_over:
        assert time.monotonic() < deadline_s, taken[-3:]
        taken += live.take(0.1)
    return [*taken, *live.end()]


def take_until_missing(live: LiveReader) -> Steps:
    """Take frames until the source is lost and nothing has come for a while."""
    taken: Steps = []
    deadline_s = time.monotonic() + LIMIT_S
    while (newest := live.take(0.5)) or live.outage is None:
        assert time.monotonic() < deadline_s
        taken += newest
    return taken


def frames(taken: Steps) -> list[KeptFrame]:
    return [step for step in taken if isinstance(step, KeptFrame)]


def gaps(taken: Steps) -> list[FrameGap]:
    return [step for step in taken if isinstance(step, FrameGap)]


def assert_covered_until(taken: Steps, end_s: float) -> None:
    """Assert that frames and gaps follow one another without a hole from the first frame to the end, and count all frames."""
    reached_s = 0.0
    for step in taken:
        begins_s, ends_s = (
            (step.time_s, step.time_s + 1 / FPS) if isinstance(step, KeptFrame) else (step.from_s, step.to_s)
        )
        assert begins_s == pytest.approx(reached_s, abs=0.3 / FPS), step
        reached_s = ends_s
    assert -0.3 / FPS < reached_s - end_s < 1 / FPS  # the last frame may begin just before the end
    assert len(frames(taken)) + sum(gap.frames or 0 for gap in gaps(taken)) == pytest.approx(end_s * FPS, abs=2)


def lateness_s(taken: Steps) -> float:
    """Return how late the frame that was just taken came. It is negative if the camera's clock is ahead of ours."""
    return time.time() - frames(taken)[-1].pts / 1e6


def seconds_since_first(taken: Steps, late_s: float) -> float:
    return time.time() - late_s - frames(taken)[0].origin_pts / 1e6


def test_a_duration_ends_the_reading_after_so_long_by_the_frames_times(camera: Camera) -> None:
    with reader(camera.url, LiveLimits(duration_us=2_000_000), capacity=10) as live:
        taken = take_until_over(live)
        assert live.take(0.1) == []
    assert_covered_until(taken, 2.0)
    assert frames(taken)[-1].time_s < 2.0


def test_a_duration_goes_on_across_a_redeployment(camera: Camera) -> None:
    limits = LiveLimits(duration_us=3_000_000)
    with reader(camera.url, limits, capacity=10) as live:
        first = take_frames(live, 25)
    last = frames(first)[-1]
    resume = ResumePoint(
        last.frame_number + 1, last.origin_pts, format_time_base(last.time_base), last.pts, last.time_s
    )
    with reader(camera.url, limits, resume=resume, capacity=10) as live:
        taken = [*first, *take_until_over(live)]
    assert {gap.reason for gap in gaps(taken)} <= {GapReason.REDEPLOYED, GapReason.DROPPED}
    assert_covered_until(taken, 3.0)


def test_a_lost_camera_does_not_delay_the_end_and_the_outage_is_a_gap(camera: Camera) -> None:
    with reader(camera.url, LiveLimits(duration_us=3_000_000), capacity=10) as live:
        taken = take_frames(live, 25)
        late_s = lateness_s(taken)
        camera.kill()
        taken += take_until_over(live)
    assert seconds_since_first(taken, late_s) == pytest.approx(3.0, abs=0.3)
    assert gaps(taken)[-1].reason is GapReason.RECONNECTING
    assert gaps(taken)[-1].to_s == 3.0
    assert_covered_until(taken, 3.0)


def test_a_frozen_camera_does_not_delay_the_end_and_its_silence_is_a_gap(camera: Camera) -> None:
    with reader(camera.url, LiveLimits(duration_us=2_000_000), capacity=10) as live:
        taken = take_frames(live, 25)
        late_s = lateness_s(taken)
        camera.freeze()
        taken += take_until_over(live)
    assert 2.0 <= seconds_since_first(taken, late_s) < 3.0
    assert gaps(taken)[-1].reason is GapReason.STALLED
    assert_covered_until(taken, 2.0)


def test_a_stop_during_an_outage_reports_it_up_to_the_stop(camera: Camera) -> None:
    with reader(camera.url, capacity=10) as live:
        taken = take_frames(live, 25)
        late_s = lateness_s(taken)
        camera.kill()
        taken += take_until_missing(live)
        taken += live.end()
        stopped_s = seconds_since_first(taken, late_s)
    assert gaps(taken)[-1].reason is GapReason.RECONNECTING
    assert gaps(taken)[-1].to_s == pytest.approx(stopped_s, abs=0.1)
    assert_covered_until(taken, gaps(taken)[-1].to_s)


def test_a_stop_reports_the_frames_that_the_model_did_not_get(camera: Camera) -> None:
    with reader(camera.url, capacity=3) as live:
        taken = take_frames(live, 5)
        late_s = lateness_s(taken)
        time.sleep(0.6)  # stands for the model
        taken += live.end()
        stopped_s = seconds_since_first(taken, late_s)
    assert {gap.reason for gap in gaps(taken)} == {GapReason.DROPPED}
    assert_covered_until(taken, gaps(taken)[-1].to_s)
    assert gaps(taken)[-1].to_s == pytest.approx(stopped_s, abs=0.2)


def test_a_stop_of_a_camera_that_sends_leaves_no_gap(camera: Camera) -> None:
    with reader(camera.url, capacity=10) as live:
        take_frames(live, 25)
        missing = live.end()
    assert sum(gap.frames or 0 for gap in missing) <= 1
    assert all(gap.reason is GapReason.DROPPED for gap in missing)


def test_a_camera_that_never_came_ends_at_the_time_given() -> None:
    end_s = time.time() + 1.0
    with reader(f"rtsp://127.0.0.1:{free_port()}/cam", LiveLimits(end_at_us=round(end_s * 1e6))) as live:
        assert take_until_over(live) == []
    assert time.time() == pytest.approx(end_s, abs=0.3)


def test_a_camera_that_was_lost_before_a_redeployment_ends_at_the_time_given() -> None:
    now_us = time.time_ns() // 1000
    resume = ResumePoint(10, now_us - 3_000_000, "1/1000000", now_us - 1_000_000, 2.0)
    limits = LiveLimits(duration_us=3_500_000)
    with reader(f"rtsp://127.0.0.1:{free_port()}/cam", limits, Fraction(5), resume) as live:
        taken = take_until_over(live)
    [gap] = gaps(taken)
    assert (gap.after_frame, gap.to_s, gap.frames, gap.reason) == (9, 3.5, 7, GapReason.REDEPLOYED)
    assert gap.from_s == pytest.approx(2.2)


def test_a_source_is_given_up_with_its_own_error() -> None:
    began_s = time.monotonic()
    url = f"rtsp://127.0.0.1:{free_port()}/cam"
    with (
        reader(url, LiveLimits(give_up_after_s=1.0)) as live,
        pytest.raises(SourceError, match="No frame has come for 1 s") as raised,
    ):
        take_frames(live, 1)
    assert raised.value.code == "source_unreachable"
    assert time.monotonic() - began_s == pytest.approx(1.0, abs=0.3)


def test_a_source_that_accepts_connections_and_says_nothing_is_given_up_as_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"rtsp://127.0.0.1:{server.getsockname()[1]}/cam"
        with reader(url, LiveLimits(give_up_after_s=1.0)) as live, pytest.raises(SourceError) as raised:
            take_frames(live, 1)
    assert raised.value.code == "source_timeout"


def test_a_camera_that_sends_is_not_given_up_and_one_that_was_lost_is(camera: Camera) -> None:
    with reader(camera.url, LiveLimits(give_up_after_s=3.0)) as live:
        taken = take_frames(live, 90)
        camera.kill()
        killed_s = time.monotonic()
        with pytest.raises(SourceError) as raised:
            take_frames(live, 1000)
        given_up_s = time.monotonic() - killed_s
        missing = live.end()
    assert raised.value.code == "source_unreachable"
    assert given_up_s == pytest.approx(3.0, abs=0.4)
    assert missing[-1].reason is GapReason.RECONNECTING
    assert missing[-1].to_s == pytest.approx(frames(taken)[-1].time_s + 3.0, abs=0.6)


def test_a_reader_ends_at_once_while_its_source_is_being_resolved_or_opened() -> None:
    is_opening, never = threading.Event(), threading.Event()

    def open_slowly(*, interruption: Interruption) -> Video:
        is_opening.set()
        never.wait(LIMIT_S)  # deaf to the interruption
        assert interruption.is_set()
        raise SourceError("too late")

    try:
        began_s = time.monotonic()
        with LiveReader(open_slowly, "camera", lambda _: True, None, ResumePoint(), 1) as live:
            assert is_opening.wait(LIMIT_S)
            assert live.take(0.1) == []
            assert live.end() == []
        assert time.monotonic() - began_s < 1.0
    finally:
        never.set()


def test_a_camera_with_sound_first_and_two_pictures_is_read_as_asked() -> None:
    small, large = Picture(), Picture("mjpeg", 320, 240)
    launch = (
        "audiotestsrc is-live=true ! mulawenc ! rtppcmupay name=pay0 pt=0"
        f" {small.describe_source()} ! {ENCODERS['h264'].format(gop=25)} name=pay1 pt=96"
        f" {large.describe_source()} ! {ENCODERS['mjpeg']} name=pay2 pt=26"
    )
    access = allow_local_networks(SourceAccess())
    with Camera(free_port(), launch=launch) as camera:
        for stream, codec, width in ((0, "h264", 160), (1, "mjpeg", 320)):
            with open_video(camera.url, stream=stream, access=access) as video:
                assert (video.source.codec, video.source.width) == (codec, width)
        with pytest.raises(SourceError, match=r"It has: 0 \(h264.*, 1 \(mjpeg") as raised:
            open_video(camera.url, stream=2, access=access)
    assert raised.value.code == "source_no_video_stream"
