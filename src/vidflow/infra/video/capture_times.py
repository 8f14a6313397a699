"""Find when the frames of a live source were captured by the source's own clock.

A time travels with its packet and its frame in their attribute `opaque`, so that the order of decoding does not matter.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import Final

from av.codec.context import Flags
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vidflow.domain.live_clock import CAPTURE_TIME_BASE, CaptureTime
from vidflow.domain.messages import CaptureClock
from vidflow.infra.video.packets import Event

_RTP_CONTAINERS: Final = frozenset({"rtsp", "rtp", "sdp"})
"""Containers whose producer reference times FFmpeg computes from RTCP sender reports."""
_LONGEST_STEP_S: Final = 30
_LONGEST_STEP_BACK_S: Final = 2
"""A packet whose pts differs more from the one before has another clock. B-frames and pauses differ less."""


def read_capture_time(frame: VideoFrame) -> CaptureTime | None:
    """Return when a frame was captured by its source's clock, which is in its `opaque`.

    None if the source does not say, or its clock was never set.
    """
    captured = frame.opaque
    return captured if isinstance(captured, CaptureTime) and captured.is_credible else None


class CaptureTimes:
    """Gives the frames of a connection the capture times that its packets state as producer reference times.

    Create it before the decoder is opened. `container`: FFmpeg's name of the format.
    """

    def __init__(self, container: str, stream: VideoStream, time_base: Fraction) -> None:
        stream.codec_context.flags |= Flags.copy_opaque
        self._clock = CaptureClock.RTCP if container in _RTP_CONTAINERS else CaptureClock.PRODUCER
        self._us_per_tick = time_base / CAPTURE_TIME_BASE
        self._awaits_report = False
        self._last_pts: int | None = None
        self._known: tuple[int, CaptureTime] | None = None  # the pts and time of the last frame that had one

    def note_packet(self, packet: Packet[VideoStream]) -> None:
        """Read a packet's time, before it is decoded."""
        if self._has_jumped(packet.pts):
            # FFmpeg computes times by the report from before the jump, until the next one comes.
            self._awaits_report = self._clock is CaptureClock.RTCP
            self._known = None
        if packet.has_sidedata("rtcp_sr"):
            self._awaits_report = False
        if self._awaits_report or not packet.has_sidedata("prft"):
            return
        at_us = int.from_bytes(bytes(packet.get_sidedata("prft"))[:8], sys.byteorder, signed=True)
        packet.opaque = CaptureTime(at_us, self._clock)

    def _has_jumped(self, pts: int | None) -> bool:
        last, self._last_pts = self._last_pts, self._last_pts if pts is None else pts
        if pts is None or last is None:
            return False
        step_s = (pts - last) * self._us_per_tick * CAPTURE_TIME_BASE
        return not -_LONGEST_STEP_BACK_S <= step_s <= _LONGEST_STEP_S

    def complete(self, events: Iterator[Event]) -> Iterator[Event]:
        """Yield the events. Frames whose packet states no time get that of an earlier one, by the difference of their pts."""
        for event in events:
            if isinstance(event, VideoFrame) and event.pts is not None:
                self._complete_frame(event, event.pts)
            yield event

    def _complete_frame(self, frame: VideoFrame, pts: int) -> None:
        if isinstance(frame.opaque, CaptureTime):
            self._known = pts, frame.opaque
        elif self._known is not None:
            known_pts, known = self._known
            frame.opaque = CaptureTime(known.at_us + round((pts - known_pts) * self._us_per_tick), known.clock)
