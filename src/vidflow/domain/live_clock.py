"""The capture times of a live source's frames, across reconnects and redeployments.

A capture time is in microseconds since 1970 by the clock of the runner, so that time goes on while nobody reads the source. Within a
connection, the differences of pts are the camera's own and exact; the moment of arrival only says when the connection began. The two
may differ by MAX_OFFSET_US, for example because a server first sends what it has stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

from vidflow.domain.messages import MAX_MICROSECONDS, CaptureClock

CAPTURE_TIME_BASE: Final = Fraction(1, 1_000_000)
"""Seconds per tick of a capture time."""
MAX_OFFSET_US: Final = 2_000_000
"""How far capture times may differ from the arrivals before they are corrected."""
SETTLED_OFFSET_US: Final = 500_000
"""The correction ends at this offset."""
CORRECTION: Final = Fraction(1, 20)
"""Share by which time runs slower or faster during a correction. A step would be a hole, or would squeeze frames into one moment."""
JUMP_US: Final = 1_000_000
"""The clock has jumped if a frame came this much sooner or later after the previous one than its pts say. Otherwise it drifts."""
CATCH_UP_US: Final = 1_000_000
"""Frames that come later than their pts say may have been delayed, and the next ones then come at once. If in this time they do not
come half as fast again as their pts say, the clock has jumped."""
LONGEST_BURST_US: Final = 60_000_000
"""No server stores more at the beginning of a connection. Frames whose pts are further apart have a wild one among them."""
MAX_UNTIMED_FRAMES: Final = 25
"""FFmpeg gives the first packets of a session no pts. After this many, the source has none, and arrivals are its times."""
CLOCK_SET_US: Final = 946_684_800_000_000
"""The year 2000. A camera without a time of day reports 0, or the time since it was started, as an earlier one (RFC 3550)."""


@dataclass(frozen=True, slots=True)
class CaptureTime:
    """When a frame was captured, in microseconds since 1970, and by which clock."""

    at_us: int
    clock: CaptureClock

    @property
    def is_credible(self) -> bool:
        """Whether the clock was ever set."""
        return CLOCK_SET_US <= self.at_us <= MAX_MICROSECONDS


@dataclass(frozen=True, slots=True)
class _Placed:
    """A frame with known times: its pts, its capture time and its arrival, the latter two in microseconds since 1970."""

    pts: int
    captured_us: int
    arrived_us: int


@dataclass(frozen=True, slots=True)
class LiveClock:
    """Assigns capture times, which strictly increase. Immutable: `place` returns a new clock for each frame.

    `captured_us`: the capture time of the last frame (None: none yet). `time_base`: seconds per tick of pts (None: the pts are not
    to be trusted, so arrivals are the times). `jumps`: how often the pts jumped and time went on by the arrivals. `drifts`: how
    often the pts had drifted so far that time ran slower or faster for a while, or the camera's time of day began to be off.
    """

    captured_us: int | None = None
    time_base: Fraction | None = None
    jumps: int = 0
    drifts: int = 0
    _anchor: _Placed | None = None
    _previous: _Placed | None = None
    _untimed: int = 0
    _is_corrected: bool = False
    _is_off: bool = False
    # The frame from which on frames are delayed, or the one that last was nearer to its time:
    _delayed: _Placed | None = None

    def connect(self, time_base: Fraction | None, first: Sequence[tuple[int | None, int]] = ()) -> LiveClock:
        """Return the clock at the beginning of a connection. The pts of two connections have nothing in common.

        `first`: pts and arrivals of the first frames, which are still to be placed. The one that was delayed least shows when all
        were captured: FFmpeg and servers first send what they have stored.
        """
        clock = LiveClock(self.captured_us, time_base, self.jumps, self.drifts, _is_off=self._is_off)
        timed = [(pts, arrived_us) for pts, arrived_us in first if pts is not None]
        if time_base is None or not timed:
            return clock
        pts, arrived_us = min(timed, key=lambda frame: frame[1] - clock._to_us(frame[0]))
        return replace(clock, _anchor=_Placed(pts, arrived_us, arrived_us))

    def is_repeated(self, pts: int | None) -> bool:
        """Return whether a first frame of a connection was captured before the last frame of the one before.

        Servers first send what they have stored since the last keyframe.
        """
        if pts is None or self.captured_us is None or self._anchor is None or self._previous is not None:
            return False
        return self._anchor.captured_us + self._to_us(pts - self._anchor.pts) <= self.captured_us

    def place(self, pts: int | None, arrived_us: int) -> tuple[LiveClock, bool]:
        """Return the clock after the next frame, and whether it has a capture time. A frame without one is dropped."""
        if pts is None or self.time_base is None:
            waits = self.time_base is not None and self._previous is None and self._untimed < MAX_UNTIMED_FRAMES
            if waits:
                return replace(self, _untimed=self._untimed + 1), False
            return replace(self, captured_us=self._after_last(arrived_us)), True
        if self._anchor is None:
            return self._anchor_at(pts, arrived_us, arrived_us), True
        captured_us = self._anchor.captured_us + self._to_us(pts - self._anchor.pts)
        offset_us = captured_us - arrived_us
        if self._previous is None:
            is_wild = abs(offset_us) > LONGEST_BURST_US
            return self._anchor_at(pts, arrived_us if is_wild else captured_us, arrived_us), True
        elapsed_us = arrived_us - self._previous.arrived_us
        ahead_us = self._to_us(pts - self._previous.pts) - elapsed_us
        # A server may count from 0 again when another client joins.
        if pts < self._previous.pts or (offset_us > MAX_OFFSET_US and ahead_us > JUMP_US):
            return self._jump(pts, self._previous.captured_us + elapsed_us, arrived_us), True
        if offset_us < -MAX_OFFSET_US and (self._delayed is not None or ahead_us < -JUMP_US):
            return self._place_delayed(_Placed(pts, self._after_last(captured_us), arrived_us)), True
        is_corrected = abs(offset_us) > (SETTLED_OFFSET_US if self._is_corrected else MAX_OFFSET_US)
        if is_corrected:
            step_us = captured_us - self._previous.captured_us
            captured_us -= round(abs(step_us) * CORRECTION) * (1 if offset_us > 0 else -1)
            drifts = self.drifts + (not self._is_corrected)
            return replace(self._anchor_at(pts, captured_us, arrived_us), drifts=drifts, _is_corrected=True), True
        placed = _Placed(pts, self._after_last(captured_us), arrived_us)
        return replace(self, captured_us=placed.captured_us, _previous=placed, _is_corrected=False, _delayed=None), True

    def _place_delayed(self, placed: _Placed) -> LiveClock:
        """Return the clock after a frame that came much later than its pts say, or jumped if such frames do not catch up."""
        delayed = self._delayed or placed
        passed_us = placed.arrived_us - delayed.arrived_us
        if passed_us >= CATCH_UP_US:
            if placed.captured_us - delayed.captured_us < passed_us * 3 / 2:
                return self._jump(placed.pts, placed.arrived_us, placed.arrived_us)
            delayed = placed
        return replace(self, captured_us=placed.captured_us, _previous=placed, _is_corrected=False, _delayed=delayed)

    def _jump(self, pts: int, captured_us: int, arrived_us: int) -> LiveClock:
        return replace(self._anchor_at(pts, captured_us, arrived_us), jumps=self.jumps + 1)

    def compare(self, stated: CaptureTime | None) -> LiveClock:
        """Return the clock after the camera has stated when it captured the last frame.

        Only a camera's times should be those of the runner. The ones of producers and playlists may be earlier by design.
        """
        if stated is None or stated.clock is not CaptureClock.RTCP or self.captured_us is None:
            return self
        is_off = abs(stated.at_us - self.captured_us) > (SETTLED_OFFSET_US if self._is_off else MAX_OFFSET_US)
        if is_off is self._is_off:
            return self
        return replace(self, drifts=self.drifts + is_off, _is_off=is_off)

    def _anchor_at(self, pts: int, captured_us: int, arrived_us: int) -> LiveClock:
        placed = _Placed(pts, self._after_last(captured_us), arrived_us)
        return replace(self, captured_us=placed.captured_us, _anchor=placed, _previous=placed, _delayed=None)

    def _after_last(self, captured_us: int) -> int:
        return captured_us if self.captured_us is None else max(captured_us, self.captured_us + 1)

    def _to_us(self, ticks: int) -> int:
        return round(ticks * (self.time_base or CAPTURE_TIME_BASE) / CAPTURE_TIME_BASE)


def compute_offset_s(stated: CaptureTime, captured_us: int) -> float | None:
    """Return how far a camera's clock, by the time that it states, is ahead of the runner's. None if it agrees.

    Producers and playlists say nothing of when frames arrive.
    """
    offset_us = stated.at_us - captured_us
    if stated.clock is not CaptureClock.RTCP or abs(offset_us) <= MAX_OFFSET_US:
        return None
    return float(offset_us * CAPTURE_TIME_BASE)
