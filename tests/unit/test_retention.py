"""Which partitions of the results are made and which are over, given the time and what there is."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidflow.domain.errors import SetupError
from vidflow.domain.retention import (
    DAY_MS,
    DEFAULT_PARTITION,
    PARTITIONS_AHEAD,
    PartitionRange,
    RetentionPolicy,
    find_expired_ranges,
    find_missing_partitions,
)

NOW_MS = 20_000 * DAY_MS + 5 * 3_600_000
WEEKLY = RetentionPolicy()
DAILY = RetentionPolicy(partition_days=1)


def days(first: int, last: int) -> PartitionRange:
    return PartitionRange(f"scenario_results_{first}", first * DAY_MS, last * DAY_MS)


def test_a_new_database_gets_the_present_range_and_those_ahead() -> None:
    made = find_missing_partitions([], None, NOW_MS, DAILY)
    assert [(one.from_ms // DAY_MS, one.to_ms // DAY_MS) for one in made] == [
        (20_000 + n, 20_001 + n) for n in range(PARTITIONS_AHEAD + 1)
    ]
    assert made[0].table == "scenario_results_20241004"


def test_nothing_is_made_that_is_there() -> None:
    made = find_missing_partitions([], None, NOW_MS, WEEKLY)
    assert find_missing_partitions(made, None, NOW_MS, WEEKLY) == []
    assert find_missing_partitions(made[:-1], None, NOW_MS, WEEKLY) == made[-1:]


def test_no_range_begins_before_a_row_of_the_default_partition() -> None:
    made = find_missing_partitions([], NOW_MS, NOW_MS, DAILY)
    assert made[0].from_ms == 20_001 * DAY_MS


def test_a_range_that_was_missed_is_left_to_the_default_partition() -> None:
    """Nobody led for a while: the ranges go on at the present one, or behind what was stored without a range."""
    there = [days(19_900, 19_901)]
    assert find_missing_partitions(there, None, NOW_MS, DAILY)[0].from_ms == 20_000 * DAY_MS
    assert find_missing_partitions(there, NOW_MS - DAY_MS, NOW_MS, DAILY)[0].from_ms == 20_000 * DAY_MS


def test_another_length_goes_on_where_the_ranges_of_the_former_end() -> None:
    there = find_missing_partitions([], None, NOW_MS, DAILY)
    longer = find_missing_partitions(there, None, NOW_MS, WEEKLY)
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
    there: list[PartitionRange] = []
    newest_ms: int | None = None
    for now_day, length, age in zip(now_days, lengths, newest_days, strict=False):
        now_ms = now_day * DAY_MS
        if age is not None and (not there or there[-1].to_ms <= now_ms - age * DAY_MS):
            newest_ms = max(newest_ms or 0, now_ms - age * DAY_MS)
        keeping = RetentionPolicy(partition_days=length)
        there += find_missing_partitions(there, newest_ms, now_ms, keeping)
        assert find_missing_partitions(there, newest_ms, now_ms, keeping) == []
        assert there[-1].to_ms >= now_ms + PARTITIONS_AHEAD * length * DAY_MS
    for before, after in pairwise(there):
        assert before.from_ms < before.to_ms <= after.from_ms
    assert len({one.table for one in there}) == len(there)


def test_nothing_is_over_unless_it_is_asked_for() -> None:
    assert find_expired_ranges([days(1, 2)], 0, NOW_MS, RetentionPolicy()) == []


def test_a_range_is_over_once_its_last_moment_is() -> None:
    there = [days(19_900, 19_970), days(19_970, 19_971), days(20_000, 20_001)]
    keeping = RetentionPolicy(results_days=30)
    assert find_expired_ranges(there, None, NOW_MS, keeping) == there[:1]
    assert find_expired_ranges(there, None, NOW_MS + DAY_MS, keeping) == there[:2]


def test_of_the_default_partition_only_what_no_partition_covers_is_over() -> None:
    there = [days(19_900, 19_910), days(19_950, 19_960)]
    keeping = RetentionPolicy(results_days=30)
    oldest_ms = 19_920 * DAY_MS + 1
    assert find_expired_ranges(there, oldest_ms, NOW_MS, keeping) == [
        there[0], PartitionRange(DEFAULT_PARTITION, 19_910 * DAY_MS, 19_950 * DAY_MS), there[1]
    ]  # fmt: skip
    young_ms = NOW_MS - 29 * DAY_MS
    assert find_expired_ranges(there, young_ms, NOW_MS, keeping) == there
    assert find_expired_ranges([], oldest_ms, NOW_MS, keeping) == [
        PartitionRange(DEFAULT_PARTITION, 0, 19_970 * DAY_MS)
    ]


@pytest.mark.parametrize("results_days", [None, 31])
def test_scenarios_are_not_removed_before_their_results(results_days: int | None) -> None:
    with pytest.raises(SetupError, match="--keep-scenarios-days 30 needs a --keep-results-days"):
        RetentionPolicy(results_days=results_days, scenarios_days=30).validate()
    assert RetentionPolicy(results_days=30, scenarios_days=30).validate().scenarios_days == 30
