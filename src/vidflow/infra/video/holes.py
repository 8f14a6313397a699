"""Find frames that left no packet, in a stream of which the container reports that data is missing.

A transport stream numbers its packets, so FFmpeg knows that some did not arrive, but not how many frames they held. Those are found
by the time between the frames around them. A long time alone shows nothing: the rate may vary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from fractions import Fraction
from typing import Final

from vidflow.domain.sampling import LONGEST_BROADCAST_PAUSE_S

MAX_REORDERED_FRAMES: Final = 16
"""No codec displays a frame before more than this many that are decoded earlier."""
_STEPS: Final = 25
"""Steps from frame to frame of which the median is the usual one."""
_HOLE_STEPS: Final = Fraction(3, 2)
"""Frames further apart than this many usual steps have a hole between them."""


_MAX_PACKETS: Final = 4096
"""More than a decoder ever holds back, and than last as long as the longest hole."""


class HoleFinder:
    """Follows the packets and frames of a stream. Times are pts, in ticks of `time_base` seconds."""

    def __init__(self, time_base: Fraction) -> None:
        self._longest = int(LONGEST_BROADCAST_PAUSE_S / time_base)  # a longer step is a jump of the clock
        self._steps: deque[int] = deque(maxlen=_STEPS)
        self._last: int | None = None  # of a frame
        self._packets: deque[int] = deque(maxlen=_MAX_PACKETS)  # whose frames are not older than the last one
        self._suspect: tuple[int, int] | None = None  # the first and the last packet beside missing data
        self._is_after_loss = False

    def note_packet(self, pts: int | None, *, is_damaged: bool) -> None:
        """Record a packet. `is_damaged`: the container reports that data is missing in it or directly after it."""
        if pts is None:
            return
        self._packets.append(pts)
        if is_damaged or self._is_after_loss:
            first, last = self._suspect or (pts, pts)
            self._suspect = first, max(last, pts)
        self._is_after_loss = is_damaged

    def find_before(self, pts: int | None) -> Iterable[int]:
        """Return the places without a packet between the previous frame and the one at `pts`, if data is missing there."""
        last = self._last
        if last is None or pts is None:
            self._last = pts
            return ()
        distance, usual = pts - last, self._usual_step
        margin = MAX_REORDERED_FRAMES * usual
        if -margin <= distance <= 0:
            return ()  # the frame appears too late
        self._last = pts
        while self._packets and self._packets[0] <= last:
            self._packets.popleft()
        if self._suspect is None:
            if distance > 0:
                self._steps.append(distance)
            return ()
        first, until = self._suspect
        if not -margin <= distance <= self._longest or pts > until + margin:
            self._suspect = None
        if not usual * _HOLE_STEPS < distance <= self._longest or not first - margin < pts:
            return ()
        return self._list_places(last, pts, round(distance / usual))

    def find_at_end(self) -> Iterable[int]:
        """Return the places without a packet between the last frame and the last packet, if data is missing there."""
        return self.find_before(max(self._packets, default=None))

    @property
    def _usual_step(self) -> int:
        return sorted(self._steps)[len(self._steps) // 2] if self._steps else self._longest

    def _list_places(self, last: int, pts: int, steps: int) -> Iterable[int]:
        places = [last + index * (pts - last) // steps for index in range(1, steps)]
        for packet in [packet for packet in self._packets if last < packet < pts][: len(places)]:
            places.remove(min(places, key=lambda place: abs(place - packet)))
        return places
