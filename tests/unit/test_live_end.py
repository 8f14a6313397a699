"""Where a live scenario ends, and what is missing when it ends."""

from __future__ import annotations

import datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidflow.domain.live_end import LastKeptFrame, LiveLimits
from vidflow.domain.messages import GapReason, Parameters
from vidflow.domain.newest_frames import LiveGap
from vidflow.domain.sampling import Sampler, Timeline

US = 1_000_000
INTERVAL_S = Fraction(1, 25)


def gap(from_s: float, to_s: float, frames: int | None) -> LiveGap:
    return LiveGap(from_s, to_s, frames, GapReason.RECONNECTING)


def missing(
    time_s: str, until_s: str, rate: int | None = None, interval_s: Fraction | None = INTERVAL_S
) -> LiveGap | None:
    frame = LastKeptFrame(Fraction(time_s), None if rate is None else Fraction(rate), interval_s)
    return frame.find_missing(Fraction(until_s), GapReason.RECONNECTING)


def test_a_scenario_without_limits_never_ends() -> None:
    assert LiveLimits.from_parameters(Parameters()).compute_end_us(5) is None


def test_a_duration_counts_from_the_first_frame() -> None:
    limits = LiveLimits.from_parameters(Parameters(duration_s=2.5))
    assert limits.compute_end_us(None) is None
    assert limits.compute_end_us(100) == 2_500_100


def test_the_earlier_limit_counts() -> None:
    end_at = datetime.datetime(1970, 1, 1, 1, 0, 3, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))
    limits = LiveLimits.from_parameters(Parameters(duration_s=2, end_at=end_at))
    assert limits.compute_end_us(None) == 3 * US
    assert limits.compute_end_us(0) == 2 * US
    assert limits.compute_end_us(2 * US) == 3 * US


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (missing("9.96", "10"), None),
        (missing("9.0", "10"), gap(9.04, 10, 24)),
        (missing("9.0", "9.05"), None),
        (missing("9.8", "10", rate=5), None),
        (missing("9.79", "10", rate=5), None),
        (missing("7.0", "10", rate=1), gap(8, 10, 2)),
        (missing("7.0", "10.01", rate=1), gap(8, 10.01, 3)),
        (missing("9.0", "10", rate=30), gap(9.04, 10, 24)),
        (missing("7.0", "10", rate=1, interval_s=None), gap(8, 10, 2)),
        (missing("7.0", "10", interval_s=None), gap(7, 10, None)),
        (missing("10.0", "10", interval_s=None), None),
    ],
)
def test_what_is_missing_at_the_end(found: LiveGap | None, expected: LiveGap | None) -> None:
    assert found == expected


@given(
    st.sampled_from([Fraction(1), Fraction(2), Fraction(5), Fraction(15, 2), Fraction(25), Fraction(30), None]),
    st.integers(min_value=1, max_value=100),
    st.integers(min_value=0, max_value=100),
)
def test_frames_until_an_outage_and_those_missing_after_it_are_all_that_sampling_keeps(
    rate: Fraction | None, total: int, seen: int
) -> None:
    seen = min(seen + 1, total)
    sampler = Sampler(Timeline(Fraction(1, US), INTERVAL_S), rate)
    kept: list[Fraction] = []
    for number in range(total):
        sampler, is_kept = sampler.sample_frame(number * 40_000)
        if is_kept:
            kept.append(number * INTERVAL_S)
    before = [time_s for time_s in kept if time_s < seen * INTERVAL_S]
    lost = LastKeptFrame(before[-1], rate, INTERVAL_S).find_missing(total * INTERVAL_S, GapReason.STALLED)
    frames = 0 if lost is None else lost.frames
    assert frames is not None
    # A grid time just before the end is represented by a frame after it.
    assert len(kept) <= len(before) + frames <= len(kept) + 1
    assert lost is None or before[-1] < lost.from_s < lost.to_s == float(total * INTERVAL_S)
