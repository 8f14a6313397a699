"""The frames of a live source on one time line, across its connections: their capture times, those to keep, and what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Final, Generic, TypeVar

from vidflow.domain.frame_interval import FrameInterval
from vidflow.domain.live_clock import CAPTURE_TIME_BASE, CaptureTime, LiveClock, compute_offset_s
from vidflow.domain.live_end import MAX_LATENESS_S, LastKeptFrame, LiveLimits
from vidflow.domain.messages import ClockChanges, GapReason, ResumePoint
from vidflow.domain.newest_frames import LiveGap, NewestFrames
from vidflow.domain.sampling import Sampler, Timeline, compute_cells

T = TypeVar("T")

PAUSE_FRAMES: Final = 3
STEADY_PAUSE_FRAMES: Final = Fraction(3, 2)
"""A connected source that pauses for more than this many frame durations has stalled. The second is for a constant rate."""
UNTIMED_PAUSE_S: Final = Fraction(1)
"""The least pause of a source without times in which frames count as missing if all are kept: after a shorter one they may just be late."""
_FOREVER_S: Final = Fraction(10**9)


@dataclass(frozen=True, slots=True)
class Arrival(Generic[T]):
    """A decoded frame: its pts, its arrival in microseconds since 1970, and when the source says that it captured it."""

    item: T
    pts: int | None
    arrived_us: int
    stated: CaptureTime | None = None


@dataclass(frozen=True, slots=True)
class LiveFrame(Generic[T]):
    """A kept frame, which has no number yet. `captured_us` is its capture time, `clock` the clock after it."""

    item: T
    captured_us: int
    time_s: float
    clock: LiveClock


class LiveStream(Generic[T]):
    """Places the frames of a live source, keeps those that sampling chooses, and counts those that are missing. Not thread-safe.

    `rate`: kept frames a second (None: all). `capacity`: how many frames wait at most; older ones are dropped and reported as a gap.
    """

    def __init__(self, rate: Fraction | None, resume: ResumePoint, capacity: int, limits: LiveLimits) -> None:
        self._rate, self._resume, self._capacity, self._limits = rate, resume, capacity, limits
        self._frames: NewestFrames[LiveFrame[T]] = NewestFrames(capacity)
        self._clock = LiveClock()
        self._stated: CaptureTime | None = None  # when the source says that it captured the last frame
        self._sampler: Sampler | None = None
        self._hole: GapReason | None = None if resume.last_pts is None else GapReason.REDEPLOYED
        self._lost_packets = 0
        self._kept_us: int | None = None  # the capture time of the last frame that was kept or is in a stored gap
        self._late_us = 0  # how long after its capture the last frame arrived
        self._passed_end = False  # a frame came after the end
        # Of the connection:
        self._time_base: Fraction | None = None
        self._interval = FrameInterval(None)
        self._last_pts: int | None = None
        self._burst: list[Arrival[T]] | None = []  # None once its frames are placed

    def __len__(self) -> int:
        """Return how many frames wait."""
        return len(self._frames)

    @property
    def interval_s(self) -> Fraction | None:
        """The duration of a frame, None before the first connection."""
        return None if self._sampler is None else self._sampler.timeline.interval_s

    @property
    def origin_us(self) -> int | None:
        """The capture time of the scenario's first frame, None before it."""
        return self._resume.origin_pts if self._sampler is None else self._sampler.timeline.origin

    @property
    def is_flowing(self) -> bool:
        """Whether the current connection has brought more than its first frames, which may have been stored for a while."""
        return self._burst is None

    @property
    def has_burst(self) -> bool:
        """Whether first frames of the connection are kept until it is known when they were captured."""
        return bool(self._burst)

    def connect(self, time_base: Fraction | None, average_rate: Fraction | None) -> None:
        """Begin a connection, at its first event. `time_base`: seconds per tick of pts (None: frames have no times but arrivals)."""
        self._time_base, self._last_pts = time_base, None
        self._interval = FrameInterval(average_rate, self.interval_s, is_timed=time_base is not None)
        if self._sampler is None:
            self._sampler = self._build_sampler(self._interval.interval_s)

    def disconnect(self, reason: GapReason) -> None:
        """End a connection that has brought something. Until the next frame, frames are missing for this reason or an earlier one."""
        self.end_burst()
        self._burst, self._hole = [], self._hole or reason

    def lose_packet(self) -> None:
        """Note that a packet of the connection could not be decoded."""
        self._lost_packets += 1

    def add(self, arrival: Arrival[T], burst_limit: int) -> None:
        """Add the connection's next frame. `burst_limit`: how many frames that arrive at once are kept before the first is placed."""
        is_burst = self._belongs_to_burst(arrival)
        self._measure_interval(arrival, is_burst=is_burst)
        if self._burst is None:
            self._place(arrival)
            return
        self._burst.append(arrival)
        if not is_burst or len(self._burst) >= burst_limit:
            self.end_burst()

    def _belongs_to_burst(self, arrival: Arrival[T]) -> bool:
        if not self._burst:
            return self._burst is not None
        return self._came_at_once(self._burst[-1], arrival)

    def _came_at_once(self, earlier: Arrival[T], later: Arrival[T]) -> bool:
        return later.arrived_us - earlier.arrived_us < self._interval.interval_s / CAPTURE_TIME_BASE / 2

    def _newest_of_burst(self, first: list[Arrival[T]]) -> list[Arrival[T]]:
        """Return the first frames without those that had been stored: their times are unknown, and they may be repeated."""
        return [a for a, following in pairwise(first) if not self._came_at_once(a, following)] + first[-1:]

    def end_burst(self) -> None:
        """Place the first frames of the connection. The one that was delayed least shows when all were captured."""
        first, self._burst = self._burst, None
        if not first:
            return
        if self._time_base is None:
            first = self._newest_of_burst(first)
        self._clock = self._clock.connect(self._time_base, [(arrival.pts, arrival.arrived_us) for arrival in first])
        # A scenario begins with its first frame that is handed on, not with those that had to be dropped before.
        for arrival in first if self._kept_us is not None else first[-self._capacity :]:
            if not self._clock.is_repeated(arrival.pts):
                self._place(arrival)

    def take(self) -> list[LiveFrame[T] | LiveGap]:
        """Remove and return the frames and the gaps before them, in order."""
        return self._frames.take()

    def is_past_end(self, now_us: int, *, is_receiving: bool) -> bool:
        """Return whether no frame before the limits' end can come any more. `is_receiving`: the source is connected."""
        end_us = self._limits.compute_end_us(self.origin_us)
        if end_us is None or self._passed_end:
            return self._passed_end
        late_s = MAX_LATENESS_S if is_receiving else 0.0
        return (now_us - self._late_us - end_us) * CAPTURE_TIME_BASE >= late_s

    def end(self, now_us: int, *, is_receiving: bool, reason: GapReason) -> list[LiveGap]:
        """Drop the frames that wait. Return what is missing from the last frame taken to the end, which is now or that of the limits.

        `reason`: why frames are missing after the last one, unless a hole has begun for another reason.
        """
        last, origin_us = self._find_last_kept(), self.origin_us
        if last is None or origin_us is None:
            return []
        is_past_end = self.is_past_end(now_us, is_receiving=is_receiving)
        end_us = self._limits.compute_end_us(origin_us) if is_past_end else None
        until_s = Fraction((end_us or now_us - self._late_us) - origin_us) * CAPTURE_TIME_BASE
        is_quiet = until_s - last.time_s > (last.interval_s or 0) + Fraction(MAX_LATENESS_S)
        if is_receiving and not is_past_end and not is_quiet:
            until_s = last.time_s + (last.interval_s or 0)  # it would have gone on
        missing = last.find_missing(until_s, self._hole or reason)
        gaps = self._frames.drop_all(missing.from_s if missing else float(until_s))
        return [*gaps, *([missing] if missing else ())]

    def describe_clock_changes(self, since: LiveClock) -> ClockChanges | None:
        """Return what the clock did since an earlier one, None if nothing."""
        clock, origin_us = self._clock, self.origin_us
        jumps, drifts = clock.jumps - since.jumps, clock.drifts - since.drifts
        if not (jumps or drifts) or clock.captured_us is None or origin_us is None:
            return None
        offset_s = compute_offset_s(self._stated, clock.captured_us) if self._stated else None
        return ClockChanges(float((clock.captured_us - origin_us) * CAPTURE_TIME_BASE), jumps, drifts, offset_s)

    def _find_last_kept(self) -> LastKeptFrame | None:
        kept_us = self._kept_us
        if self._sampler is None:
            kept_us = compute_covered_us(self._resume, self._kept_interval_s(Fraction(0)))
        if kept_us is None or self.origin_us is None:
            return None
        return LastKeptFrame(Fraction(kept_us - self.origin_us) * CAPTURE_TIME_BASE, self._rate, self.interval_s)

    def _build_sampler(self, interval_s: Fraction) -> Sampler:
        """Return the sampler that continues after the stored frames and gaps."""
        resume = self._resume
        self._kept_us = last = compute_covered_us(resume, self._kept_interval_s(interval_s))
        self._clock = LiveClock(last)
        timeline = Timeline(CAPTURE_TIME_BASE, interval_s, _FOREVER_S, resume.origin_pts, last)
        cells = None if last is None else compute_cells(last, timeline, self._rate)
        return Sampler(timeline, self._rate, resume.next_frame, cells)

    def _measure_interval(self, arrival: Arrival[T], *, is_burst: bool) -> None:
        """Correct the frames' duration, which counts those that are missing. Arrivals in a burst do not show it."""
        assert self._sampler is not None
        is_timed = self._time_base is not None
        pts = arrival.pts if is_timed else arrival.arrived_us
        is_step = is_timed or not is_burst
        if is_step and pts is not None and self._last_pts is not None and pts > self._last_pts:
            ticks, time_base = pts - self._last_pts, self._time_base or CAPTURE_TIME_BASE
            self._interval.note_step(round(ticks * time_base / CAPTURE_TIME_BASE))
            if self._interval.interval_s != self._sampler.timeline.interval_s:
                self._sampler = self._sampler.change_interval(self._interval.interval_s)
        self._last_pts = pts

    def _place(self, arrival: Arrival[T]) -> None:
        if self._passed_end:
            return
        self._clock, is_placed = self._clock.place(arrival.pts, arrival.arrived_us)
        captured_us = self._clock.captured_us
        if is_placed and captured_us is not None:
            self._late_us = arrival.arrived_us - captured_us
            self._clock, self._stated = self._clock.compare(arrival.stated), arrival.stated
            self._sample(arrival.item, captured_us)

    def _sample(self, item: T, captured_us: int) -> None:
        earlier = self._sampler
        assert earlier is not None
        end_us = self._limits.compute_end_us(captured_us if self.origin_us is None else self.origin_us)
        if end_us is not None and captured_us >= end_us:
            self._passed_end = True
            return
        if self._hole is None and not self._lost_packets and self._has_paused(earlier, captured_us):
            self._hole = GapReason.STALLED
        self._sampler, is_kept = earlier.place_frame(captured_us).represent_tick()
        if not is_kept:
            return
        time_s = float(self._sampler.timeline.seconds_since_start(captured_us))
        self._report_hole(earlier, self._sampler, time_s)
        self._hole, self._lost_packets, self._kept_us = None, 0, captured_us
        self._frames.add(LiveFrame(item, captured_us, time_s, self._clock), time_s)

    def _has_paused(self, earlier: Sampler, captured_us: int) -> bool:
        """Return whether the connected source was silent for longer than its frames last, before this frame."""
        last_us = earlier.timeline.tick
        if last_us is None:
            return False
        limit_s = (STEADY_PAUSE_FRAMES if self._interval.is_steady else PAUSE_FRAMES) * earlier.timeline.interval_s
        if self._time_base is None and not earlier.is_selective:
            limit_s = max(limit_s, UNTIMED_PAUSE_S)
        return (captured_us - last_us) * CAPTURE_TIME_BASE > limit_s

    def _report_hole(self, earlier: Sampler, later: Sampler, time_s: float) -> None:
        """Add the gap before a kept frame, if frames are missing there."""
        reason = self._hole or (GapReason.CORRUPT if self._lost_packets else None)
        if reason is None or self._kept_us is None:
            return
        kept_s = later.timeline.seconds_since_start(self._kept_us)
        from_s = float(kept_s + self._kept_interval_s(later.timeline.interval_s))
        if missing := count_missing(earlier, later):
            self._frames.add_gap(min(from_s, time_s), missing, reason)

    def _kept_interval_s(self, interval_s: Fraction) -> Fraction:
        return interval_s if self._rate is None else max(interval_s, 1 / self._rate)


def compute_covered_us(resume: ResumePoint, kept_interval_s: Fraction) -> int | None:
    """Return the capture time of the last frame that is stored or in a stored gap. None: nothing is stored."""
    if resume.last_pts is None or resume.origin_pts is None or resume.gap_until_s is None:
        return resume.last_pts
    covered_s = Fraction(resume.gap_until_s) - kept_interval_s
    return max(resume.last_pts, resume.origin_pts + round(covered_s / CAPTURE_TIME_BASE))


def count_missing(earlier: Sampler, later: Sampler) -> int:
    """Return how many frames sampling would have kept between the last frame of each."""
    if later.is_selective and earlier.cells is not None and later.cells is not None:
        return max(0, later.cells[0] - earlier.cells[0] - 1)
    before, after = earlier.timeline.tick, later.timeline.tick
    if before is None or after is None:
        return 0
    return max(0, round((after - before) * later.timeline.time_base / later.timeline.interval_s) - 1)
