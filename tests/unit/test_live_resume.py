"""A live source is read on after what is stored: the last frame, or the gaps after it."""

from __future__ import annotations

from fractions import Fraction

import pytest

from vidflow.domain.live_stream import compute_covered_us
from vidflow.domain.messages import ResumePoint

STARTED_US = 1_800_000_000_000_000


@pytest.mark.parametrize(
    ("gap_until_s", "covered_s"),
    [(None, 10.0), (10.2, 10.0), (17.0, 16.8), (9.0, 10.0)],
    ids=["no gap", "an empty gap", "a gap", "a gap before the frame"],
)
def test_frames_in_stored_gaps_are_not_reported_again(gap_until_s: float | None, covered_s: float) -> None:
    resume = ResumePoint(8, STARTED_US, "1/1000000", STARTED_US + 10_000_000, 10.0, gap_until_s=gap_until_s)
    assert compute_covered_us(resume, Fraction(1, 5)) == STARTED_US + round(covered_s * 1e6)


def test_nothing_is_covered_before_the_first_frame() -> None:
    assert compute_covered_us(ResumePoint(gap_until_s=3.0), Fraction(1, 5)) is None
