"""The measured frame duration of a live source."""

from __future__ import annotations

from fractions import Fraction

import pytest

from vidflow.domain.frame_interval import MEASURED_STEPS, FrameInterval


def measure(
    stated: Fraction | None, *steps_us: int, earlier_s: Fraction | None = None, is_timed: bool = True
) -> Fraction:
    interval = FrameInterval(stated, earlier_s, is_timed=is_timed)
    for step_us in steps_us:
        interval.note_step(step_us)
    return interval.interval_s


def test_a_source_that_states_no_rate_has_the_usual_one_until_two_frames_are_known() -> None:
    assert measure(None) == Fraction(1, 25)
    assert measure(None, 66_667) == Fraction(1, 15)
    assert measure(Fraction(90_000), 66_667) == Fraction(1, 15)  # not credible


@pytest.mark.parametrize(
    ("step_us", "rate"),
    [(33_367, Fraction(30_000, 1001)), (33_333, 30), (40_000, 25), (100_000, 10), (10_000_000, Fraction(1, 10))],
)
def test_a_measured_rate_is_exact(step_us: int, rate: Fraction) -> None:
    assert measure(None, step_us) == 1 / Fraction(rate)


def test_a_stated_rate_is_believed_until_enough_frames_contradict_it() -> None:
    steps = [66_667] * MEASURED_STEPS
    assert measure(Fraction(25), *steps[1:]) == Fraction(1, 25)
    assert measure(Fraction(25), *steps) == Fraction(1, 15)
    assert measure(Fraction(25), *steps, *([40_000] * MEASURED_STEPS)) == Fraction(1, 25)


def test_a_measured_rate_that_confirms_the_stated_one_does_not_change_it() -> None:
    assert measure(Fraction(30_000, 1001), *[33_300] * MEASURED_STEPS) == Fraction(1001, 30_000)


def test_jitter_lost_frames_and_pauses_do_not_matter() -> None:
    steps = [40_000, 20_000, 60_000, 40_000, 120_000, 40_000, 40_000, 2_000_000, 40_000, 38_000, 42_000]
    assert measure(None, *steps) == Fraction(1, 25)


def test_frames_that_arrive_at_once_have_a_duration() -> None:
    assert measure(None, *[1] * MEASURED_STEPS) == Fraction(1, 1000)


def test_arrivals_in_bunches_have_the_rate_of_the_frames() -> None:
    bunch = [1_000, 1_000, 118_000, 200, 300, 1_500, 158_000, 40_000]
    pause = [40_000, 3_000_000, *[40_000] * 6]
    assert measure(None, *bunch, *bunch, *bunch, is_timed=False) == Fraction(1, 25)
    assert measure(None, *bunch, *pause, *bunch, is_timed=False) == Fraction(1, 25)
    assert measure(None, 1_000, 2_000, is_timed=False) == Fraction(1, 25)  # stored before the connection
    assert measure(None, 1_000, 1_999_000, is_timed=False) == 1


def test_a_connection_begins_with_the_duration_of_the_one_before_unless_the_source_states_one() -> None:
    assert measure(None, 500, 500, earlier_s=Fraction(1, 10), is_timed=False) == Fraction(1, 10)
    assert measure(None, 40_000, 40_000, earlier_s=Fraction(1, 10)) == Fraction(1, 10)
    assert measure(None, *[40_000] * MEASURED_STEPS, earlier_s=Fraction(1, 10)) == Fraction(1, 25)
    assert measure(Fraction(25), 40_000, earlier_s=Fraction(1, 10)) == Fraction(1, 25)
