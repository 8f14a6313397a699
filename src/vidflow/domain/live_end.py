"""Where a live scenario ends, and what is missing when it ends. Times are capture times in microseconds since 1970."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Self

from vidflow.domain.live_clock import CAPTURE_TIME_BASE
from vidflow.domain.messages import GapReason, Parameters
from vidflow.domain.newest_frames import LiveGap

MAX_LATENESS_S: Final = 0.5
"""How much later than the frames before it a frame may arrive. Until then it may still come, although its time is over."""
_EPOCH: Final = datetime.datetime.fromtimestamp(0, datetime.UTC)
_MICROSECOND: Final = datetime.timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class LiveLimits:
    """When a live scenario ends by itself. A value is None if there is no such limit.

    `duration_us`: so long after the scenario's first frame. `end_at_us`: at this time. `give_up_after_s`: after so long without a
    frame, with the source's error.
    """

    duration_us: int | None = None
    end_at_us: int | None = None
    give_up_after_s: float | None = None

    @classmethod
    def from_parameters(cls, parameters: Parameters) -> Self:
        """Return the limits of a scenario."""
        duration_us = None if parameters.duration_s is None else round(parameters.duration_s / CAPTURE_TIME_BASE)
        end_at_us = None if parameters.end_at is None else (parameters.end_at - _EPOCH) // _MICROSECOND
        return cls(duration_us, end_at_us, parameters.give_up_after_s)

    def compute_end_us(self, origin_us: int | None) -> int | None:
        """Return the time of the end, given that of the first frame (None: none yet). None: it is not limited."""
        after_first = None if self.duration_us is None or origin_us is None else origin_us + self.duration_us
        return min((end_us for end_us in (after_first, self.end_at_us) if end_us is not None), default=None)


@dataclass(frozen=True, slots=True)
class LastKeptFrame:
    """The last frame that sampling kept, `time_s` after the scenario's first one.

    `rate`: kept frames a second (None: all). `interval_s`: the source's duration of a frame (None: unknown, as the source was not
    connected since the scenario was redeployed).
    """

    time_s: Fraction
    rate: Fraction | None
    interval_s: Fraction | None

    def find_missing(self, until_s: Fraction, reason: GapReason) -> LiveGap | None:
        """Return the gap from the frame that should have followed up to `until_s`, None if none is missing before that."""
        samples = self.rate is not None and (self.interval_s is None or self.rate * self.interval_s < 1)
        step_s = 1 / self.rate if samples and self.rate is not None else self.interval_s
        from_s = self.time_s + (step_s or 0)
        if from_s >= until_s:
            return None
        frames = None if step_s is None else self._count(until_s, step_s, on_grid=samples)
        return None if frames == 0 else LiveGap(float(from_s), float(until_s), frames, reason)

    def _count(self, until_s: Fraction, step_s: Fraction, *, on_grid: bool) -> int:
        """Count the frames from the following one on that begin before `until_s`."""
        if on_grid:  # the frame stands for the grid time k * step_s that is nearest to it
            return max(0, math.ceil(until_s / step_s) - 1 - round(self.time_s / step_s))
        return max(0, round((until_s - self.time_s) / step_s) - 1)
