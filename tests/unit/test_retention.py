"""Which partitions of the results are made and which are over, given the time and what there is."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidflow.domain.errors import SetupError
from vidflow.domain.retention import AHEAD, DAY_MS, DEFAULT, Keeping, Range, outlived, to_make

NOW_MS = 20_000 * DAY_MS + 5 * 3_600_000
WEEKLY = Keeping()
DAILY = Keeping(partition_days=1)


def days(first: int, last: int) -> Range:
    return Range(f"scenario_results_{first}", first * DAY_MS, last * DAY_MS)


def test_a_new_database_gets_the_present_range_and_those_ahead() -> None:
    made = to_make([], None, NOW_MS, DAILY)
    assert [(one.from_ms // DAY_MS, one.to_ms // DAY_MS) for one in made] == [
        (20_000 + n, 20_001 + n) for n in range(AHEAD + 1)
    ]
    assert made[0].table == "scenario_results_20241004"


def test_nothing_is_made_that_is_there() -> None:
    made = to_make([], None, NOW_MS, WEEKLY)
    assert to_make(made, None, NOW_MS, WEEKLY) == []
    assert to_make(made[:-1], None, NOW_MS, WEEKLY) == made[-1:]


def test_no_range_begins_before_a_row_of_the_default_partition() -> None:
    made = to_make([], NOW_MS, NOW_MS, DAILY)
    assert made[0].from_ms == 20_001 * DAY_MS


def test_a_range_that_was_missed_is_left_to_the_default_partition() -> None:
    """Nobody led for a while: the ranges go on at the present one, or behind what was stored without a range."""
    there = [days(19_900, 19_901)]
    assert to_make(there, None, NOW_MS, DAILY)[0].from_ms == 20_000 * DAY_MS
    assert to_make(there, NOW_MS - DAY_MS, NOW_MS, DAILY)[0].from_ms == 20_000 * DAY_MS


def test_another_length_goes_on_where_the_ranges_of_the_former_end() -> None:
    there = to_make([], None, NOW_MS, DAILY)
    longer = to_make(there, None, NOW_MS, WEEKLY)
    assert longer[0].from_ms == there[-1].to_ms
    assert all(one.to_ms % (7 * DAY_MS) == 0 for one in longer)


@given(
    now_days=st.lists(st.integers(19_000, 19_400), min_size=1, max_size=8).map(sorted),
    lengths=st.lists(st.integers(1, 31), min_size=8, max_size=8),
    newest_days=st.lists(st.none() | st.integers(0, 300), min_size=8, max_size=8),
)
def test_ranges_never_overlap_whatever_the_lengths_and_pauses(
    now_days: list[int], lengths: list[int], newest_days: list[int | None]
) -> None:
    there: list[Range] = []
    newest_ms: int | None = None
    for now_day, length, age in zip(now_days, lengths, newest_days, strict=False):
        now_ms = now_day * DAY_MS
        if age is not None and (not there or there[-1].to_ms <= now_ms - age * DAY_MS):
            newest_ms = max(newest_ms or 0, now_ms - age * DAY_MS)
        keeping = Keeping(partition_days=length)
        there += to_make(there, newest_ms, now_ms, keeping)
        assert to_make(there, newest_ms, now_ms, keeping) == []
        assert there[-1].to_ms >= now_ms + AHEAD * length * DAY_MS
    for before, after in pairwise(there):
        assert before.from_ms < before.to_ms <= after.from_ms
    assert len({one.table for one in there}) == len(there)


def test_nothing_is_over_unless_it_is_asked_for() -> None:
    assert outlived([days(1, 2)], 0, NOW_MS, Keeping()) == []


def test_a_range_is_over_once_its_last_moment_is() -> None:
    there = [days(19_900, 19_970), days(19_970, 19_971), days(20_000, 20_001)]
    keeping = Keeping(results_days=30)
    assert outlived(there, None, NOW_MS, keeping) == there[:1]
    assert outlived(there, None, NOW_MS + DAY_MS, keeping) == there[:2]


def test_of_the_default_partition_only_what_no_partition_covers_is_over() -> None:
    there = [days(19_900, 19_910), days(19_950, 19_960)]
    keeping = Keeping(results_days=30)
    oldest_ms = 19_920 * DAY_MS + 1
    assert outlived(there, oldest_ms, NOW_MS, keeping) == [
        there[0], Range(DEFAULT, 19_910 * DAY_MS, 19_950 * DAY_MS), there[1]
    ]  # fmt: skip
    young_ms = NOW_MS - 29 * DAY_MS
    assert outlived(there, young_ms, NOW_MS, keeping) == there
    assert outlived([], oldest_ms, NOW_MS, keeping) == [Range(DEFAULT, 0, 19_970 * DAY_MS)]


@pytest.mark.parametrize("results_days", [None, 31])
def test_scenarios_are_not_removed_before_their_results(results_days: int | None) -> None:
    with pytest.raises(SetupError, match="--keep-scenarios-days 30 needs a --keep-results-days"):
        Keeping(results_days=results_days, scenarios_days=30).checked()
    assert Keeping(results_days=30, scenarios_days=30).checked().scenarios_days == 30
