"""The frames of an HLS presentation, whose parts have nothing in common but their order, as those of one video."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from fractions import Fraction
from typing import Final

from av.video.frame import VideoFrame

from vidflow.domain.live_clock import CAPTURE_TIME_BASE, CaptureTime
from vidflow.domain.messages import CaptureClock
from vidflow.infra.video.packets import Event
from vidflow.infra.video.source_connection import Interruption, ReadingStopped

MAX_AHEAD_S: Final = 5.0
MAX_BEHIND_S: Final = 10.0
"""A frame that is further from when it is due begins a new clock."""


class PartJoiner:
    """Lets the times of each part go on where those of the part before ended. `time_base`: that of the first part."""

    def __init__(self, time_base: Fraction) -> None:
        self._time_base = time_base
        self._next: int | None = None

    def join(self, events: Iterator[Event], time_base: Fraction, interval_s: Fraction) -> Iterator[Event]:
        """Yield the events of the next part. `interval_s`: the duration of its last frame."""
        shift: int | None = None
        for event in events:
            if event.pts is None:
                yield event
                continue
            pts = round(event.pts * time_base / self._time_base)
            if shift is None:
                shift = 0 if self._next is None else self._next - pts
            if not isinstance(event, VideoFrame):
                yield replace(event, pts=pts + shift)
                continue
            event.pts = pts + shift
            self._next = max(self._next or event.pts, event.pts + round(interval_s / self._time_base))
            yield event


def state_capture_times(events: Iterator[Event], first_at: datetime | None, time_base: Fraction) -> Iterator[Event]:
    """Yield the events of a part. `first_at`: when its first frame was captured by the playlist (None, or without a zone: unknown).

    Times that the frames state themselves have precedence.
    """
    first_us = None if first_at is None or first_at.tzinfo is None else round(first_at.timestamp() * 1_000_000)
    first_pts: int | None = None
    for event in events:
        if isinstance(event, VideoFrame) and event.pts is not None and first_us is not None:
            first_pts = event.pts if first_pts is None else first_pts
            if event.opaque is None:
                since_us = round((event.pts - first_pts) * time_base / CAPTURE_TIME_BASE)
                event.opaque = CaptureTime(first_us + since_us, CaptureClock.PLAYLIST)
        yield event


def pace(events: Iterator[Event], time_base: Fraction, interruption: Interruption) -> Iterator[Event]:
    """Yield frames when they are due, as a player shows them. Segments arrive at once, but their frames are to be read one by one.

    Raises ReadingStopped.
    """
    began_s: float | None = None
    for event in events:
        if isinstance(event, VideoFrame) and event.pts is not None:
            time_s, now_s = float(event.pts * time_base), time.monotonic()
            if began_s is None or not -MAX_BEHIND_S < began_s + time_s - now_s < MAX_AHEAD_S:
                began_s = now_s - time_s
            if interruption.wait(max(0.0, began_s + time_s - now_s)):
                raise ReadingStopped
        yield event
