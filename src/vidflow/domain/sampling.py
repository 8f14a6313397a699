"""Sampling: which decoded frames are kept at a frame rate, and where a resumed run begins.

A rate of r frames per second asks for the frames nearest to the times k / r after the first frame. Each frame is decided when it
is decoded, without a look at the next one: it represents the time from half a frame duration before it to half a frame duration
after it, and is kept if it is the first that represents a new grid time. Rounded or jittering times therefore neither drop nor
double a frame. The arithmetic is exact (integer ticks and Fractions), so a frame number means the same frame in every attempt.

There are two layers. A Timeline assigns each decoded frame a *tick*, its strictly increasing position in time. A Sampler maps
ticks to cells and counts the kept frames. The tick of a frame is its pts, as long as pts increase, which is the normal case. If
the clock jumps (joined recordings, a counter that wraps, one wild pts), time continues by one frame duration, and returns to the
earlier clock if the pts do. Frames without pts are counted at the stream's nominal rate.
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
DISORDER_FRAMES: Final = 2
"""A step back of pts by at most this many frame durations is disorder among frames; a longer one is a restarted clock."""
LONGEST_PAUSE_S: Final = Fraction(3_600)
"""A longer step forward is a jump of the clock. A recorder that pauses, or a picture that is held, leaves shorter ones."""
LONGEST_BROADCAST_PAUSE_S: Final = Fraction(10)
"""The same for formats whose clock may restart anywhere (MPEG transport and program streams): FFmpeg's own limit for them."""
_HALF: Final = Fraction(1, 2)
NEAR_S: Final = Fraction(1)
"""A frame this soon after the previous one (or within ten frame durations) continues a clock."""


def format_time_base(time_base: Fraction) -> str:
    """Return a time base, in seconds per tick, as it is stored and sent: "1/90000"."""
    return f"{time_base.numerator}/{time_base.denominator}"


@dataclass(frozen=True, slots=True)
class Timeline:
    """The position in time of a stream's decoded frames. Immutable: `place` returns a new one for each frame.

    `time_base`: seconds per tick. `interval_s`: nominal duration of a frame. `longest_pause_s`: a longer step forward is a jump
    of the clock. `origin`: the tick of the first frame, at which time is 0 (None: no frame yet). `tick`: the tick of the last
    frame (None: no frame yet, or none since a seek). `shift`: the correction added to pts since the clock jumped.
    `earlier_shift`: the one before the jump, None once the clock has returned to it. `jumps`: how often the clock has jumped.
    `counted`: the source has no pts, and ticks count frames.
    """

    time_base: Fraction
    interval_s: Fraction
    longest_pause_s: Fraction = LONGEST_PAUSE_S
    origin: int | None = None
    tick: int | None = None
    shift: int = 0
    earlier_shift: int | None = None
    jumps: int = 0
    counted: bool = False

    @property
    def step(self) -> int:
        """Ticks per nominal frame duration, at least 1."""
        return max(1, round(self.interval_s / self.time_base))

    def place(self, pts: int | None) -> Timeline:
        """Return the timeline after the next decoded frame. Its `tick` is that of the frame."""
        if self.origin is None:
            return self._begin(pts)
        if self.tick is None:
            return replace(self, tick=self.origin if pts is None else pts)
        if self.counted or pts is None:
            return replace(self, tick=self.tick + self.step)
        tick = pts + self.shift
        if self.earlier_shift is None and self.tick < tick <= self.tick + self.step:
            return replace(self, tick=tick)  # nearly all frames
        return self._continue_clock(pts, self.tick) or self._place_elsewhere(pts, self.tick)

    def _begin(self, pts: int | None) -> Timeline:
        if pts is not None:
            return replace(self, origin=pts, tick=pts)
        return replace(self, time_base=self.interval_s, origin=0, tick=0, counted=True)

    def _continue_clock(self, pts: int, last: int) -> Timeline | None:
        """Return the timeline if the frame soon follows the last one by the current clock or by the one before the jump."""
        near = last + math.floor(max(NEAR_S, 10 * self.interval_s) / self.time_base)
        shifts = [self.shift] if self.earlier_shift is None else [self.shift, self.earlier_shift]
        continued = [shift for shift in shifts if last < pts + shift <= near]
        if not continued:
            return None
        shift = min(continued)
        returned = shift != self.shift
        return replace(self, tick=pts + shift, shift=shift, earlier_shift=None if returned else self.earlier_shift)

    def _place_elsewhere(self, pts: int, last: int) -> Timeline:
        tick = pts + self.shift
        if last < tick and (tick - last) * self.time_base <= self.longest_pause_s:
            return replace(self, tick=tick)
        if 0 <= last - tick <= DISORDER_FRAMES * self.step:
            return replace(self, tick=last + 1)
        onward = last + self.step
        shift = onward - pts
        # With shift 0 a resumed run could not know of an earlier jump.
        return replace(
            self, tick=onward, shift=shift, earlier_shift=self.shift if shift else None, jumps=self.jumps + 1
        )

    def seconds_since_start(self, tick: int) -> Fraction:
        """Return the exact time from the first frame to `tick`."""
        return (tick - (self.origin or 0)) * self.time_base


def build_timeline(
    time_base: Fraction, nominal_rate: Fraction | None, longest_pause_s: Fraction = LONGEST_PAUSE_S
) -> Timeline:
    """Return the timeline of a stream before its first frame. Without a credible nominal rate, USUAL_RATE is assumed."""
    credible = nominal_rate is not None and SLOWEST_RATE <= nominal_rate <= FASTEST_RATE
    interval_s = 1 / (nominal_rate if nominal_rate is not None and credible else USUAL_RATE)
    return Timeline(time_base, interval_s, max(longest_pause_s, 10 * interval_s))


Cells = tuple[int, int]
"""The number of the grid time that a frame represents, and of the frame at a constant rate. A frame is kept if one is new."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """Decides which frames are kept. Immutable: `sample_frame` returns a new one for each decoded frame.

    `rate`: kept frames per second (None: all). `next_frame`: the number of the next kept frame. `cells`: the cells of the last
    frame that was kept or missing (None: none yet).
    """

    timeline: Timeline
    rate: Fraction | None
    next_frame: int = 0
    cells: Cells | None = None

    @property
    def is_selective(self) -> bool:
        """Whether the rate is lower than that of the source, so that not every frame is wanted."""
        return self.rate is not None and self.rate * self.timeline.interval_s < 1

    def sample_frame(self, pts: int | None) -> tuple[Sampler, bool]:
        """Return the sampler after the next decoded frame, and whether the frame is kept as number `next_frame - 1`."""
        sampler, is_new = self.place_frame(pts).represent_tick()
        return (sampler.number_frame() if is_new else sampler), is_new

    def place_frame(self, pts: int | None) -> Sampler:
        """Return the sampler with the next decoded frame on its timeline. `represent_tick` decides whether the frame is kept."""
        return Sampler(self.timeline.place(pts), self.rate, self.next_frame, self.cells)

    def represent_tick(self, tick: int | None = None) -> tuple[Sampler, bool]:
        """Return the sampler after a frame at `tick` (None: the last one placed), and whether that frame is to be kept.

        Such a frame may be missing. No later frame of its cell takes its place, so kept and missing frames together are those
        that an undamaged source would give. `number_frame` counts it if it is not missing.
        """
        placed = self.timeline
        cells = compute_cells(placed.tick or 0 if tick is None else tick, placed, self.rate)
        if self.cells is not None and cells[0] <= self.cells[0] and cells[1] <= self.cells[1]:
            return self, False
        return Sampler(placed, self.rate, self.next_frame, cells), True

    def find_unwanted_pts(self) -> range:
        """Return pts at which no frame after the last one placed is kept; empty if that is not certain.

        They are the rest of the cell of the last frame that was kept or is missing.
        """
        placed = self.timeline
        if self.rate is None or self.cells is None or not self.is_selective or placed.tick is None:
            return range(0)
        if placed.jumps or placed.counted:
            return range(0)
        end_s = (self.cells[0] + 1) / self.rate - placed.interval_s / 2
        next_cell = (placed.origin or 0) + math.ceil(end_s / placed.time_base)
        return range(placed.tick + 1, next_cell)

    def change_interval(self, interval_s: Fraction) -> Sampler:
        """Return the sampler after the frames of a live source have got another duration. What was kept stays represented."""
        timeline = replace(self.timeline, interval_s=interval_s)
        cells = self.cells
        if cells is not None and timeline.tick is not None:
            cells = cells[0], compute_cells(timeline.tick, timeline, self.rate)[1]
        return Sampler(timeline, self.rate, self.next_frame, cells)

    def number_frame(self) -> Sampler:
        """Return the sampler after it has assigned its `next_frame` to a frame."""
        return Sampler(self.timeline, self.rate, self.next_frame + 1, self.cells)


def compute_cells(tick: int, placed: Timeline, rate: Fraction | None) -> Cells:
    """Return the cells of a tick. Without a rate, each tick is a cell.

    The second one counts only at a rate of at least the source's own, where every frame is wanted: a jittering frame may then
    come so late that it shares a grid time with the next one.
    """
    if rate is None:
        return tick, 0
    time_s = placed.seconds_since_start(tick)
    grid = math.floor((time_s + placed.interval_s / 2) * rate)
    return grid, math.floor(time_s / placed.interval_s + _HALF) if rate * placed.interval_s >= 1 else 0


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
    placed = replace(start.timeline, origin=origin, jumps=int(resume.clock_jumped))
    if resume.last_time_s is not None:
        deviation_s = abs(resume.last_time_s - placed.seconds_since_start(last_pts))
        if not deviation_s * 2 < time_base:  # also true for NaN
            return DecodeFromStart(resume.next_frame)
    return SeekToPts(
        last_pts, Sampler(placed, start.rate, resume.next_frame, compute_cells(last_pts, placed, start.rate))
    )


def estimate_frame_count(duration_s: float | None, decoded: int | None, rate: Fraction | None) -> int | None:
    """Return how many frames of a source will be kept, from its stated duration and frame count (None: unknown)."""
    if rate is None:
        return decoded
    if duration_s is None:
        return None
    if not decoded:
        return max(1, math.ceil(Fraction(duration_s) * rate))
    interval_s = Fraction(duration_s) / decoded
    if rate * interval_s >= 1:
        return decoded
    return min(math.floor((Fraction(duration_s) - interval_s / 2) * rate) + 1, decoded)
