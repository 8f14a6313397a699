"""Capture times that packets state: they are those of their own frames, in whatever order these are decoded."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import get_args

import av
import pytest
from av.packet import Packet, PacketSideData, PktSideDataT
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from tests import clips

from vidflow.domain.live_clock import CLOCK_SET_US, CaptureTime
from vidflow.domain.messages import CaptureClock
from vidflow.infra.video.capture_times import CaptureTimes, read_capture_time
from vidflow.infra.video.packets import decode_packets
from vidflow.infra.video.skipping import PacketSkipper

NOW_US = 1_800_000_000_000_000
PRFT = get_args(PktSideDataT).index("prft")


def state_time(packet: Packet[VideoStream], at_us: int) -> None:
    """Attach a producer reference time, as FFmpeg does."""
    data = PacketSideData(PRFT, 16)  # type: ignore[call-arg]
    data.update(struct.pack("=qi4x", at_us, 24))
    packet.set_sidedata(data)


def read(
    path: Path, states: Iterable[int], origin_us: int = NOW_US, container: str = "rtsp"
) -> list[CaptureTime | None]:
    """Return the capture time of each frame, if the packets at these places of the file state when they were captured."""
    numbers, place = set(states), 0
    with av.open(str(path)) as opened:
        stream = opened.streams.video[0]
        time_base = Fraction(stream.time_base.numerator, stream.time_base.denominator)
        times = CaptureTimes(container, stream, time_base)

        def note_packet(packet: Packet[VideoStream]) -> None:
            nonlocal place
            if place in numbers and packet.pts is not None:
                state_time(packet, origin_us + round(packet.pts * time_base * 1_000_000))
            place += 1
            times.note_packet(packet)

        events = times.complete(
            decode_packets(opened, stream, PacketSkipper(stream, is_enabled=False), note_packet=note_packet)
        )
        return [read_capture_time(event) for event in events if isinstance(event, VideoFrame)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.long_gop_with_b_frames(tmp_path_factory.mktemp("clips") / "b-frames.mp4", frames=40)


def test_each_frame_has_the_time_of_its_own_packet(clip: Path) -> None:
    assert read(clip, range(50)) == [CaptureTime(NOW_US + 40_000 * index, CaptureClock.RTCP) for index in range(40)]


def test_a_frame_whose_packet_states_no_time_has_one_by_its_pts(clip: Path) -> None:
    times = read(clip, [12])
    first = next(index for index, time in enumerate(times) if time is not None)
    assert 10 < first < 18
    assert times[first:] == [CaptureTime(NOW_US + 40_000 * index, CaptureClock.RTCP) for index in range(first, 40)]


def test_frames_have_no_time_if_no_packet_states_one(clip: Path) -> None:
    assert read(clip, []) == [None] * 40


def test_a_clock_that_was_never_set_gives_no_time(clip: Path) -> None:
    assert read(clip, range(50), CLOCK_SET_US - 60_000_000) == [None] * 40


def test_reference_times_of_another_container_are_those_of_its_producer(clip: Path) -> None:
    assert read(clip, range(50), container="mpegts")[-1] == CaptureTime(NOW_US + 40_000 * 39, CaptureClock.PRODUCER)
