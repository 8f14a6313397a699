"""The frame duration of a live source, measured: cameras often state none, or one that was true before it got dark."""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from statistics import fmean, median
from typing import Final

from vidflow.domain.frame_rate import FASTEST_RATE
from vidflow.domain.sampling import SLOWEST_RATE, USUAL_RATE

MEASURED_STEPS: Final = 16
"""The duration is the median of the last so many steps from frame to frame. A stated one is believed until then."""
BUNCH: Final = 8
"""Steps between arrivals are averaged in groups of so many: a busy machine takes some frames at once and the next ones late."""
MEASURED_BUNCHES: Final = 3
"""The duration is the median of the last so many averages, as one of them may contain a pause."""
STEADY: Final = Fraction(2, 5)
"""Steps that differ from their median by no more than this share are those of a constant rate."""
TOLERANCE: Final = Fraction(1, 50)
"""A measured duration that differs by no more than this share confirms the stated one."""
_SNAP: Final = Fraction(1, 500)
_NTSC: Final = Fraction(1000, 1001)
_US: Final = 1_000_000


class FrameInterval:
    """Measures the duration of a frame, `interval_s`. `stated_rate`: frames per second according to the source (None: unknown).

    `earlier_s`: the duration that an earlier connection had (None: there was none). `is_timed`: frames have times of their own, so
    steps are exact. `is_steady`: the frames before the last step had a constant rate, so a longer step means that frames are missing.
    """

    def __init__(
        self, stated_rate: Fraction | None, earlier_s: Fraction | None = None, *, is_timed: bool = True
    ) -> None:
        is_credible = stated_rate is not None and SLOWEST_RATE <= stated_rate <= FASTEST_RATE
        self._stated_s = 1 / stated_rate if stated_rate is not None and is_credible else None
        self._is_timed = is_timed
        self._is_guess = self._stated_s is None and earlier_s is None
        self._needed_steps = MEASURED_STEPS if is_timed else BUNCH * MEASURED_BUNCHES
        self._steps_us: deque[int] = deque(maxlen=self._needed_steps)
        self._new_steps = 0
        self.interval_s = self._stated_s or earlier_s or 1 / USUAL_RATE
        self.is_steady = False

    def note_step(self, step_us: int) -> None:
        """Record the time from a frame to the next one, in microseconds."""
        self.is_steady = self._has_constant_rate()
        self._steps_us.append(step_us)
        self._new_steps += 1
        if self._new_steps >= self._needed_steps:
            self._new_steps, self._is_guess = 0, False
            self.interval_s = self._choose_interval_s(self._measure_us())
        elif self._is_guess:
            self.interval_s = self._choose_interval_s(self._guess_us())

    def _measure_us(self) -> int:
        steps_us = list(self._steps_us)
        if self._is_timed:
            return round(median(steps_us))
        return round(median(fmean(steps_us[first : first + BUNCH]) for first in range(0, len(steps_us), BUNCH)))

    def _guess_us(self) -> int:
        """Return the duration by fewer steps. Frames that arrive at once do not have a higher rate than the usual one."""
        if self._is_timed:
            return round(median(self._steps_us))
        return max(round(fmean(self._steps_us)), round(1 / USUAL_RATE * _US))

    def _has_constant_rate(self) -> bool:
        if not self._is_timed or len(self._steps_us) < self._needed_steps:
            return False
        usual_us = median(self._steps_us)
        return all(abs(step_us - usual_us) <= STEADY * usual_us for step_us in self._steps_us)

    def _choose_interval_s(self, measured_us: int) -> Fraction:
        measured_s = min(max(Fraction(measured_us, _US), 1 / FASTEST_RATE), 1 / SLOWEST_RATE)
        if self._stated_s is not None and abs(measured_s - self._stated_s) <= self._stated_s * TOLERANCE:
            return self._stated_s
        return _snap(measured_s)


def _snap(interval_s: Fraction) -> Fraction:
    """Return the duration at the usual rate that this one is meant to be: whole frames per second, or NTSC's."""
    whole = Fraction(max(1, round(1 / interval_s)))
    nearest = min((1 / whole, 1 / (whole * _NTSC)), key=lambda usual_s: abs(usual_s - interval_s))
    return nearest if abs(nearest - interval_s) <= interval_s * _SNAP else interval_s
