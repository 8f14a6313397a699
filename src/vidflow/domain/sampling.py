"""Which decoded frames are kept at a frame rate, and where a resumed run begins. Not how frames are decoded.

A frame is kept when it is the first decoded one in its cell of a grid of 1 / rate seconds laid from the first frame's time.
All of it is exact: whole ticks of the stream's time base and Fractions. So a number means the same frame at every attempt.

Two layers: a Timeline gives each decoded frame a *tick*, its place in time, which always moves on; a Sampler lays the grid
over the ticks and counts. A tick is the frame's own pts wherever the source's pts move on, which nearly all do. Where they
stand still or step back a little, the frame stands one tick behind the one before; where they jump back (two recordings in
one file), the clock goes on from there; where there are none, frames are counted at the stream's nominal rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction
from typing import Final

from vidflow.domain.frame_rate import FASTEST_RATE
from vidflow.domain.messages import ResumePoint

SLOWEST_RATE: Final = Fraction(1, 86_400)
"""A frame a day: a stream that says it has fewer is not believed."""
USUAL_RATE: Final = Fraction(25)
"""Frames a second where a stream does not say, or says nonsense: only frames without pts are placed by it."""
DISORDER_S: Final = 1
"""A step back of up to this long is disorder among frames; a longer one is a clock that was started again."""


def format_time_base(time_base: Fraction) -> str:
    """A time base as it is stored and sent: "1/90000", seconds a tick."""
    return f"{time_base.numerator}/{time_base.denominator}"


@dataclass(frozen=True, slots=True)
class Timeline:
    """The ticks of a stream's decoded frames: a value that `place` makes anew for each frame.

    `time_base`: seconds a tick. `step`: ticks from a frame to the next where their pts do not tell. `origin`: the first
    frame's tick, where time is 0 (None: no frame yet). `tick`: that of the frame placed last (None: none yet, or none since a
    seek). `shift`: what is added to the pts since the clock jumped back. `counted`: the source has no pts; ticks are counts.
    """

    time_base: Fraction
    step: int
    origin: int | None = None
    tick: int | None = None
    shift: int = 0
    counted: bool = False

    def place(self, pts: int | None) -> Timeline:
        """The timeline once the next decoded frame is placed; its `tick` is that frame's."""
        if self.origin is None:
            return self._begin(pts)
        if self.tick is None:
            return replace(self, tick=self.origin if pts is None else pts)
        if self.counted or pts is None:
            return replace(self, tick=self.tick + self.step)
        tick = pts + self.shift
        if tick > self.tick:
            return replace(self, tick=tick)
        if (self.tick - tick) * self.time_base <= DISORDER_S:
            return replace(self, tick=self.tick + 1)
        onward = self.tick + self.step
        return replace(self, tick=onward, shift=onward - pts)

    def _begin(self, pts: int | None) -> Timeline:
        if pts is not None:
            return replace(self, origin=pts, tick=pts)
        return Timeline(self.time_base * self.step, 1, origin=0, tick=0, counted=True)

    def seconds_since_start(self, tick: int) -> Fraction:
        """Seconds from the first frame to `tick`, exactly."""
        return (tick - (self.origin or 0)) * self.time_base


def build_timeline(time_base: Fraction, nominal_rate: Fraction | None) -> Timeline:
    """The timeline of a stream before its first frame. A stream without a credible nominal rate is taken for 25 a second."""
    credible = nominal_rate is not None and SLOWEST_RATE <= nominal_rate <= FASTEST_RATE
    rate = nominal_rate if nominal_rate is not None and credible else USUAL_RATE
    return Timeline(time_base, step=max(1, round(1 / (rate * time_base))))


@dataclass(frozen=True, slots=True)
class Sampler:
    """Which frames are kept: a value that `sample_frame` makes anew for each decoded frame.

    `rate`: kept frames a second, None for all. `next_frame`: the number that the next kept frame gets. `cell`: that of the
    frame kept last (None: none yet). A frame whose cell is not beyond it is not kept.
    """

    timeline: Timeline
    rate: Fraction | None
    next_frame: int = 0
    cell: int | None = None

    def sample_frame(self, pts: int | None) -> tuple[Sampler, bool]:
        """The sampler after the next decoded frame, and whether that frame is kept (its number: `next_frame - 1`)."""
        placed = self.timeline.place(pts)
        cell = compute_cell(placed.tick or 0, placed, self.rate)
        if self.cell is not None and cell <= self.cell:
            return replace(self, timeline=placed), False
        return Sampler(placed, self.rate, self.next_frame + 1, cell), True

    def would_keep(self, tick: int) -> bool:
        """Whether a frame at `tick` would stand in a cell beyond the last kept one."""
        return self.cell is None or compute_cell(tick, self.timeline, self.rate) > self.cell


def compute_cell(tick: int, placed: Timeline, rate: Fraction | None) -> int:
    """The cell of the grid in which `tick` lies; without a rate each tick is a cell of its own."""
    return tick if rate is None else math.floor(placed.seconds_since_start(tick) * rate)


@dataclass(frozen=True, slots=True)
class DecodeFromStart:
    """Decode from the first frame and pass over the kept frames whose number is below `next_frame`."""

    next_frame: int


@dataclass(frozen=True, slots=True)
class SeekToPts:
    """Seek to before `last_pts`, `track_seek` the frame that stands there, and go on behind it with `sampler`."""

    last_pts: int
    sampler: Sampler


class SeekStatus(Enum):
    """How a seek's landing turned out so far."""

    SEEKING = "under way"
    ARRIVED = "arrived"
    MISSED = "astray"


def track_seek(point: SeekToPts, placed: Timeline, pts: int | None) -> tuple[Timeline, SeekStatus]:
    """The next decoded frame on the way to the stored one, from `point.sampler.build_timeline` on.

    Arrived is only who sees the stored frame itself again: a seek may land behind it, or where frames cannot be shown yet.
    As the seek aimed before it, it is not the first frame seen, unless it is the video's first: of two frames with the same
    pts the second would pass for the first.
    """
    if pts is None:
        return placed, SeekStatus.MISSED
    first, after = placed.tick is None, placed.place(pts)
    tick = pts if after.tick is None else after.tick
    if tick < point.last_pts:
        return after, SeekStatus.SEEKING
    arrived = tick == point.last_pts and (not first or tick == after.origin)
    return after, SeekStatus.ARRIVED if arrived else SeekStatus.MISSED


def plan_resume(resume: ResumePoint, start: Sampler, *, seekable: bool) -> DecodeFromStart | SeekToPts:
    """Where a run that follows `resume` begins. `start` is the sampler of a run from the first frame.

    By pts where they tell the place: the source can seek, its time base is the stored one, and the stored time is what the
    stored pts say (it is not where the source's clock had jumped). Else from the start, by counting: slower, and exact too.
    """
    last_pts, origin = resume.last_pts, resume.origin_pts
    time_base = start.timeline.time_base
    if not seekable or not resume.next_frame or last_pts is None or origin is None:
        return DecodeFromStart(resume.next_frame)
    if resume.time_base not in {None, format_time_base(time_base)}:
        return DecodeFromStart(resume.next_frame)
    placed = replace(start.timeline, origin=origin)
    if resume.last_time_s is not None:
        strayed_s = abs(resume.last_time_s - placed.seconds_since_start(last_pts))
        if not strayed_s * 2 < time_base:
            return DecodeFromStart(resume.next_frame)
    return SeekToPts(
        last_pts, Sampler(placed, start.rate, resume.next_frame, compute_cell(last_pts, placed, start.rate))
    )


def estimate_frame_count(duration_s: float | None, decoded: int | None, rate: Fraction | None) -> int | None:
    """How many frames will be kept of a source that promises so much; None where it promises too little to tell."""
    if rate is None:
        return decoded
    if duration_s is None:
        return None
    if not decoded:
        return max(1, math.ceil(Fraction(duration_s) * rate))
    last_begins_s = Fraction(duration_s) * (decoded - 1) / decoded  # the duration goes to its end
    return min(math.floor(last_begins_s * rate) + 1, decoded)
