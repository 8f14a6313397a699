"""Live sources: what becomes of a camera that is absent, lost, frozen or faster than the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from tests.integration.api_server import free_port
from tests.rtsp.camera import Camera, Picture
from tests.rtsp.reading import LIMIT_S, assert_accounted_for, frames, gaps, has_frames, has_gap, reader, take_until
from tests.rtsp.relay import Relay

from vidflow.domain.messages import CaptureClock, GapReason, ResumePoint
from vidflow.domain.sampling import format_time_base
from vidflow.infra.video import FrameGap, KeptFrame, cameras
from vidflow.infra.video.live import LiveReader

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("rtsp_server")]
FPS = 25
LOST = (GapReason.RECONNECTING, GapReason.STALLED)
"""Why frames are missing while a camera is gone. On a busy machine, its silence may be noticed before the end of its connection."""
TOLERANCE_US = 3_000_000
"""Frames reach a busy machine late, and its clock may differ by 2 s before it is corrected."""


@pytest.fixture
def camera() -> Iterator[Camera]:
    with Camera(free_port(), FPS) as camera:
        yield camera


def has_camera_time(taken: list[KeptFrame | FrameGap]) -> bool:
    return any(frame.captured and frame.captured.clock is CaptureClock.RTCP for frame in frames(taken))


def test_frames_have_the_times_at_which_they_were_captured(camera: Camera) -> None:
    with reader(camera.url.replace("rtsp", "RtsP"), capacity=10) as live:  # the case of a scheme has no meaning
        taken = take_until(live, has_frames(50))
    assert all(frame.pts - frame.origin_pts == round(frame.time_s * 1e6) for frame in frames(taken))
    steps = [(later.time_s - frame.time_s) * FPS for frame, later in pairwise(frames(taken))]
    assert steps == pytest.approx([round(step) for step in steps], abs=0.05)
    assert_accounted_for(taken)


def test_time_is_that_of_the_runner_and_capture_times_are_those_of_the_camera(camera: Camera) -> None:
    """Eight seconds are eight seconds, although FFmpeg gives the first packets no pts. The first sender report comes within five."""
    with Relay(camera, offset_s=-3600) as slow, reader(camera.url) as live, reader(slow.url) as late:
        taken: dict[LiveReader, list[KeptFrame | FrameGap]] = {live: [], late: []}
        began_s = time.monotonic()
        while time.monotonic() - began_s < 8 or not all(frames(steps) for steps in taken.values()):
            for each, steps in taken.items():
                steps.extend(each.take(0.25))
                arrived_s = time.time()
                assert not frames(steps) or abs(frames(steps)[-1].pts / 1e6 - arrived_s) < 3
    for steps, offset_s in ((taken[live], 0), (taken[late], -3600)):
        kept = frames(steps)
        assert kept[-1].time_s * 1e6 == pytest.approx(kept[-1].pts - kept[0].pts)
        assert kept[-1].captured is not None
        assert kept[-1].captured.clock is CaptureClock.RTCP
        assert {frame.captured.clock for frame in kept if frame.captured} <= {CaptureClock.ARRIVAL, CaptureClock.RTCP}
        for frame in kept:
            assert frame.captured is not None
            expected_us = frame.pts + offset_s * 1_000_000 * (frame.captured.clock is CaptureClock.RTCP)
            assert frame.captured.at_us == pytest.approx(expected_us, abs=TOLERANCE_US)
        assert_accounted_for(steps)
    assert sum(frame.clock_drifts for frame in frames(taken[late])) == 1


def test_a_jump_of_the_timestamps_is_reported_even_if_the_frame_is_dropped(camera: Camera) -> None:
    with Relay(camera) as jumping, reader(jumping.url) as live:
        taken = take_until(live, has_camera_time)
        jumping.jump(600)
        assert jumping.sent_after_jump.wait(LIMIT_S)
        after = take_until(live, has_frames(2))
        taken += after
        assert [frame.clock_jumps for frame in frames(after)] == [1, 0]
        taken += take_until(live, has_camera_time)  # by the next sender report
    for frame in frames(taken):
        assert frame.captured is not None
        assert frame.captured.at_us == pytest.approx(frame.pts, abs=TOLERANCE_US)
    assert sum(frame.clock_jumps for frame in frames(taken)) == 1
    assert_accounted_for(taken)


def test_a_camera_that_refuses_tcp_is_read_over_udp_and_its_return_is_noticed() -> None:
    with Camera(free_port(), FPS, transport="udp") as camera, reader(camera.url, capacity=10) as live:
        taken = take_until(live, has_frames(30))
        camera.kill()
        taken += take_until(live, lambda _: live.outage is not None)
        camera.start()
        taken += take_until(live, has_gap(*LOST))
    assert_accounted_for(taken)


def test_a_rate_keeps_every_fifth_frame(camera: Camera) -> None:
    with reader(camera.url, Fraction(5)) as live:
        kept = frames(take_until(live, has_frames(12)))[2:]
    assert all(later.time_s - frame.time_s == pytest.approx(0.2, abs=0.001) for frame, later in pairwise(kept))


def test_a_camera_that_is_killed_and_comes_back_leaves_a_gap_and_time_goes_on(camera: Camera) -> None:
    with reader(camera.url) as live:
        taken = take_until(live, has_frames(30))
        camera.kill()
        lost_s = time.time()
        taken += take_until(live, lambda _: live.outage is not None)
        camera.start()
        taken += take_until(live, has_gap(*LOST))
    last = max((gap for reason in LOST for gap in gaps(taken, reason)), key=lambda gap: gap.to_s)
    after = next(frame for frame in frames(taken) if frame.time_s >= last.to_s)
    assert after.pts / 1e6 >= lost_s
    assert_accounted_for(taken)


def test_a_frozen_camera_is_noticed_and_its_silence_is_a_gap(camera: Camera) -> None:
    with reader(camera.url) as live:
        taken = take_until(live, has_frames(30))
        camera.freeze()
        taken += take_until(live, lambda _: live.outage is not None)
        assert live.outage is not None
        assert live.outage.code == "source_timeout"
        camera.thaw()
        taken += take_until(live, has_gap(GapReason.STALLED))
    assert_accounted_for(taken)


def test_a_camera_that_is_absent_at_first_is_waited_for() -> None:
    camera = Camera(free_port(), FPS)
    with reader(camera.url) as live:
        assert take_until(live, lambda _: live.outage is not None) == []
        assert live.wait_for_source(0.0) is None
        camera.start()
        try:
            taken = take_until(live, has_frames(1))
        finally:
            camera.kill()
        assert live.wait_for_source(0.0) is not None
    assert frames(taken)[0].frame_number == 0


def test_a_slow_model_gets_the_newest_frame_and_the_others_are_counted(camera: Camera) -> None:
    with reader(camera.url) as live:
        taken = take_until(live, has_frames(1))
        for _ in range(6):
            time.sleep(0.4)  # stands for the model
            taken += take_until(live, has_frames(1))
    kept = frames(taken)
    assert kept[-1].time_s - kept[0].time_s > 6 * 0.4 - 1  # its lag does not grow
    assert len(gaps(taken, GapReason.DROPPED)) >= 5
    assert_accounted_for(taken)


def test_a_redeployed_run_continues_in_time_and_number_and_reports_the_hole(camera: Camera) -> None:
    with reader(camera.url) as live:
        first = frames(take_until(live, has_frames(10)))[-1]
    resume = ResumePoint(
        first.frame_number + 1, first.origin_pts, format_time_base(first.time_base), first.pts, first.time_s
    )
    with reader(camera.url, resume=resume) as live:
        taken = take_until(live, has_frames(10))
    assert frames(taken)[0].frame_number == first.frame_number + 1
    assert frames(taken)[0].origin_pts == first.origin_pts
    assert isinstance(taken[0], FrameGap)
    assert taken[0].reason is GapReason.REDEPLOYED
    assert_accounted_for([first, *taken])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Picture("h264"), Picture("h264", 320, 240)),
        (Picture("h265"), Picture("mjpeg", 320, 240, fps="10")),
        (Picture("mjpeg"), Picture("h265", 192, 144)),
    ],
)
def test_a_camera_that_comes_back_with_another_picture_is_read_on(before: Picture, after: Picture) -> None:
    with Camera(free_port(), picture=before) as camera, reader(camera.url) as live:
        taken = take_until(live, has_frames(5))
        camera.kill()
        camera.launch = after.describe_pipeline()
        time.sleep(0.5)  # the absence: several frames of either rate
        camera.start()
        taken += take_until(live, has_gap(*LOST))
        taken += take_until(live, has_frames(20))
    kept = frames(taken)
    assert [(frame.width, frame.height) for frame in (kept[0], kept[-1])] == [
        (picture.width, picture.height) for picture in (before, after)
    ]
    assert kept[-1].image().shape == (after.height, after.width, 3)
    assert [frame.frame_number for frame in kept] == list(range(len(kept)))
    steps = [(later.time_s - frame.time_s) * int(after.fps) for frame, later in pairwise(kept[-15:])]
    assert steps == pytest.approx([round(step) for step in steps], abs=0.05)


def test_a_picture_that_changes_its_size_midway_is_read_on() -> None:
    encoder = "x265enc key-int-max=25 speed-preset=ultrafast tune=zerolatency ! h265parse"
    launch = (
        f"concat name=both ! h265parse config-interval=-1 ! rtph265pay name=pay0 pt=96 config-interval=-1"
        f" {Picture().describe_source().replace('is-live=true', 'is-live=true num-buffers=60')} ! {encoder} ! both."
        f" {Picture(width=320, height=240).describe_source()} ! {encoder} ! both."
    )
    with Camera(free_port(), launch=launch) as camera, reader(camera.url) as live:
        taken = take_until(live, lambda taken: any(frame.width == 320 for frame in frames(taken)))
        taken += take_until(live, has_frames(10))
    kept = frames(taken)
    assert {(frame.width, frame.height) for frame in kept} == {(160, 120), (320, 240)}
    assert kept[-1].image().shape == (240, 320, 3)
    assert not gaps(taken, GapReason.RECONNECTING)
    times = [frame.time_s for frame in kept]
    assert times == sorted(times)


def test_audio_that_comes_first_does_not_matter() -> None:
    picture = Picture().describe_pipeline().replace("pay0", "pay1")
    launch = f"audiotestsrc is-live=true ! alawenc ! rtppcmapay name=pay0 pt=8 {picture}"
    with Camera(free_port(), launch=launch) as camera, reader(camera.url) as live:
        taken = take_until(live, has_frames(10))
    assert (frames(taken)[-1].width, frames(taken)[-1].height) == (160, 120)


def test_connections_to_a_frozen_camera_do_not_pile_up(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cameras, "READ_TIMEOUT_S", 3.0)
    counts = []
    with reader(camera.url) as live:
        for _ in range(4):
            take_until(live, has_frames(1))
            counts.append((threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))))
            camera.freeze()
            take_until(live, lambda _: live.outage is not None)
            camera.thaw()
            take_until(live, has_gap(GapReason.STALLED))
    (threads, descriptors) = counts[1]
    assert counts[-1][0] <= threads + 1
    assert counts[-1][1] <= descriptors + 1
