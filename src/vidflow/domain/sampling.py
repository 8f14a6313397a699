"""Sampling: which decoded frames are kept at a frame rate, and where a resumed run begins.

The time from the first frame on is divided into cells of 1 / rate seconds. A frame is kept if it is the first decoded one in its
cell. The arithmetic is exact (integer ticks and Fractions), so a frame number means the same frame in every attempt.

There are two layers. A Timeline assigns each decoded frame a *tick*, its strictly increasing position in time. A Sampler maps
ticks to cells and counts the kept frames. The tick of a frame is its pts, as long as pts increase, which is the normal case. If
pts repeat or step back a little, the frame follows one tick after the previous one. If they jump back (two recordings in one
file), the clock continues from the previous frame. Frames without pts are counted at the stream's nominal rate.
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
"""A frame a day. A lower nominal rate of a stream is not credible."""
USUAL_RATE: Final = Fraction(25)
"""Frames per second of a stream without a credible nominal rate. Only frames without usable pts depend on it."""
DISORDER_S: Final = 1
"""A step back of pts up to this length is disorder among frames; a longer one is a restarted clock."""


def format_time_base(time_base: Fraction) -> str:
    """Return a time base, in seconds per tick, as it is stored and sent: "1/90000"."""
    return f"{time_base.numerator}/{time_base.denominator}"


@dataclass(frozen=True, slots=True)
class Timeline:
    """The position in time of a stream's decoded frames. Immutable: `place` returns a new one for each frame.

    `time_base`: seconds per tick. `step`: ticks between frames where pts cannot be used. `origin`: the tick of the first frame,
    at which time is 0 (None: no frame yet). `tick`: the tick of the last frame (None: no frame yet, or none since a seek).
    `shift`: the correction added to pts since the clock jumped back. `counted`: the source has no pts, and ticks count frames.
    """

    time_base: Fraction
    step: int
    origin: int | None = None
    tick: int | None = None
    shift: int = 0
    counted: bool = False

    def place(self, pts: int | None) -> Timeline:
        """Return the timeline after the next decoded frame. Its `tick` is that of the frame."""
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
        """Return the exact time from the first frame to `tick`."""
        return (tick - (self.origin or 0)) * self.time_base


def build_timeline(time_base: Fraction, nominal_rate: Fraction | None) -> Timeline:
    """Return the timeline of a stream before its first frame. Without a credible nominal rate, USUAL_RATE is assumed."""
    credible = nominal_rate is not None and SLOWEST_RATE <= nominal_rate <= FASTEST_RATE
    rate = nominal_rate if nominal_rate is not None and credible else USUAL_RATE
    return Timeline(time_base, step=max(1, round(1 / (rate * time_base))))


@dataclass(frozen=True, slots=True)
class Sampler:
    """Decides which frames are kept. Immutable: `sample_frame` returns a new one for each decoded frame.

    `rate`: kept frames per second (None: all). `next_frame`: the number of the next kept frame. `cell`: the cell of the last
    kept frame (None: none yet). Only a frame in a later cell is kept.
    """

    timeline: Timeline
    rate: Fraction | None
    next_frame: int = 0
    cell: int | None = None

    def sample_frame(self, pts: int | None) -> tuple[Sampler, bool]:
        """Return the sampler after the next decoded frame, and whether the frame is kept as number `next_frame - 1`."""
        placed = self.timeline.place(pts)
        cell = compute_cell(placed.tick or 0, placed, self.rate)
        if self.cell is not None and cell <= self.cell:
            return replace(self, timeline=placed), False
        return Sampler(placed, self.rate, self.next_frame + 1, cell), True

    def would_keep(self, tick: int) -> bool:
        """Return whether a frame at `tick` would be kept."""
        return self.cell is None or compute_cell(tick, self.timeline, self.rate) > self.cell


def compute_cell(tick: int, placed: Timeline, rate: Fraction | None) -> int:
    """Return the cell of a tick. Without a rate, each tick is a cell."""
    return tick if rate is None else math.floor(placed.seconds_since_start(tick) * rate)


@dataclass(frozen=True, slots=True)
class DecodeFromStart:
    """Decode from the first frame and skip the kept frames with numbers below `next_frame`."""

    next_frame: int


@dataclass(frozen=True, slots=True)
class SeekToPts:
    """Seek to before `last_pts`, find the frame at it with `track_seek`, and continue after it with `sampler`."""

    last_pts: int
    sampler: Sampler


class SeekStatus(Enum):
    """The state of a seek."""

    SEEKING = "under way"
    ARRIVED = "arrived"
    MISSED = "astray"


def track_seek(point: SeekToPts, placed: Timeline, pts: int | None) -> tuple[Timeline, SeekStatus]:
    """Process the next decoded frame after a seek. The first call takes `point.sampler.timeline` as `placed`.

    A seek has arrived only when the stored frame is decoded again, since it may land after that frame, or where frames cannot
    be shown yet. The stored frame must not be the first one decoded, since the seek aimed before it: of two frames with the
    same pts, the second would otherwise pass for the first. The first frame of the video is the exception.
    """
    if pts is None:
        return placed, SeekStatus.MISSED
    is_first, timeline = placed.tick is None, placed.place(pts)
    tick = pts if timeline.tick is None else timeline.tick
    if tick < point.last_pts:
        return timeline, SeekStatus.SEEKING
    arrived = tick == point.last_pts and (not is_first or tick == timeline.origin)
    return timeline, SeekStatus.ARRIVED if arrived else SeekStatus.MISSED


def plan_resume(resume: ResumePoint, start: Sampler, *, seekable: bool) -> DecodeFromStart | SeekToPts:
    """Return where a run that continues from `resume` begins. `start` is the sampler of a run from the first frame.

    The run seeks if pts identify the frame: the source is seekable, its time base is the stored one, and the stored time agrees
    with the stored pts, so the clock had not jumped. Otherwise it counts frames from the start, which is slower and just as
    exact.
    """
    last_pts, origin = resume.last_pts, resume.origin_pts
    time_base = start.timeline.time_base
    if not seekable or not resume.next_frame or last_pts is None or origin is None:
        return DecodeFromStart(resume.next_frame)
    if resume.time_base not in {None, format_time_base(time_base)}:
        return DecodeFromStart(resume.next_frame)
    placed = replace(start.timeline, origin=origin)
    if resume.last_time_s is not None:
        deviation_s = abs(resume.last_time_s - placed.seconds_since_start(last_pts))
        if not deviation_s * 2 < time_base:  # also true for NaN
            return DecodeFromStart(resume.next_frame)
    return SeekToPts(
        last_pts, Sampler(placed, start.rate, resume.next_frame, compute_cell(last_pts, placed, start.rate))
    )


def estimate_frame_count(duration_s: float | None, decoded: int | None, rate: Fraction | None) -> int | None:
    """Return how many frames of a source will be kept, from its stated duration and frame count (None: unknown)."""
    if rate is None:
        return decoded
    if duration_s is None:
        return None
    if not decoded:
        return max(1, math.ceil(Fraction(duration_s) * rate))
    last_begins_s = Fraction(duration_s) * (decoded - 1) / decoded  # the duration includes the last frame
    return min(math.floor(last_begins_s * rate) + 1, decoded)
