"""Which ranges of results are created, and which have expired."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidflow.domain.errors import SetupError
from vidflow.domain.retention import (
    DAY_MS,
    RANGES_AHEAD,
    RetentionPolicy,
    TimeRange,
    find_expired_ranges,
    find_missing_ranges,
)
from vidflow.infra.postgres import retention

NOW_MS = 20_000 * DAY_MS + 5 * 3_600_000
WEEKLY = RetentionPolicy()
DAILY = RetentionPolicy(partition_days=1)


def days(first: int, last: int) -> TimeRange:
    return TimeRange(first * DAY_MS, last * DAY_MS)


def test_a_new_database_gets_the_current_range_and_those_ahead() -> None:
    missing = find_missing_ranges([], None, NOW_MS, DAILY)
    assert [(created.from_ms // DAY_MS, created.to_ms // DAY_MS) for created in missing] == [
        (20_000 + n, 20_001 + n) for n in range(RANGES_AHEAD + 1)
    ]


def test_a_partition_is_named_after_the_first_day_of_its_range() -> None:
    assert retention.name_partition(days(20_000, 20_007)).table == "scenario_results_20241004"


def test_existing_ranges_are_not_created_again() -> None:
    missing = find_missing_ranges([], None, NOW_MS, WEEKLY)
    assert find_missing_ranges(missing, None, NOW_MS, WEEKLY) == []
    assert find_missing_ranges(missing[:-1], None, NOW_MS, WEEKLY) == missing[-1:]


def test_no_range_begins_before_results_outside_all_ranges() -> None:
    missing = find_missing_ranges([], NOW_MS, NOW_MS, DAILY)
    assert missing[0].from_ms == 20_001 * DAY_MS


def test_a_range_that_was_missed_is_not_created_later() -> None:
    """After a time without a leader, ranges continue at the current one, or after the rows stored without a range."""
    existing = [days(19_900, 19_901)]
    assert find_missing_ranges(existing, None, NOW_MS, DAILY)[0].from_ms == 20_000 * DAY_MS
    assert find_missing_ranges(existing, NOW_MS - DAY_MS, NOW_MS, DAILY)[0].from_ms == 20_000 * DAY_MS


def test_a_new_length_continues_where_the_previous_ranges_end() -> None:
    existing = find_missing_ranges([], None, NOW_MS, DAILY)
    longer = find_missing_ranges(existing, None, NOW_MS, WEEKLY)
    assert longer[0].from_ms == existing[-1].to_ms
    assert all(created.to_ms % (7 * DAY_MS) == 0 for created in longer)


@given(
    now_days=st.lists(st.integers(19_000, 19_400), min_size=1, max_size=8).map(sorted),
    lengths=st.lists(st.integers(1, 31), min_size=8, max_size=8),
    newest_days=st.lists(st.none() | st.integers(0, 300), min_size=8, max_size=8),
)
def test_ranges_never_overlap_whatever_the_lengths_and_pauses(
    now_days: list[int], lengths: list[int], newest_days: list[int | None]
) -> None:
    existing: list[TimeRange] = []
    newest_ms: int | None = None
    for now_day, length, age in zip(now_days, lengths, newest_days, strict=False):
        now_ms = now_day * DAY_MS
        if age is not None and (not existing or existing[-1].to_ms <= now_ms - age * DAY_MS):
            newest_ms = max(newest_ms or 0, now_ms - age * DAY_MS)
        policy = RetentionPolicy(partition_days=length)
        existing += find_missing_ranges(existing, newest_ms, now_ms, policy)
        assert find_missing_ranges(existing, newest_ms, now_ms, policy) == []
        assert existing[-1].to_ms >= now_ms + RANGES_AHEAD * length * DAY_MS
    for earlier, later in pairwise(existing):
        assert earlier.from_ms < earlier.to_ms <= later.from_ms


def test_nothing_expires_by_default() -> None:
    assert find_expired_ranges([days(1, 2)], 0, NOW_MS, RetentionPolicy()) == []


def test_a_range_expires_when_its_end_does() -> None:
    existing = [days(19_900, 19_970), days(19_970, 19_971), days(20_000, 20_001)]
    policy = RetentionPolicy(results_days=30)
    assert find_expired_ranges(existing, None, NOW_MS, policy) == existing[:1]
    assert find_expired_ranges(existing, None, NOW_MS + DAY_MS, policy) == existing[:2]


def test_of_results_outside_all_ranges_only_the_uncovered_range_expires() -> None:
    existing = [days(19_900, 19_910), days(19_950, 19_960)]
    policy = RetentionPolicy(results_days=30)
    oldest_ms = 19_920 * DAY_MS + 1
    assert find_expired_ranges(existing, oldest_ms, NOW_MS, policy) == [
        existing[0], TimeRange(19_910 * DAY_MS, 19_950 * DAY_MS), existing[1]
    ]  # fmt: skip
    young_ms = NOW_MS - 29 * DAY_MS
    assert find_expired_ranges(existing, young_ms, NOW_MS, policy) == existing
    assert find_expired_ranges([], oldest_ms, NOW_MS, policy) == [TimeRange(0, 19_970 * DAY_MS)]


@pytest.mark.parametrize("results_days", [None, 31])
def test_scenarios_are_not_removed_before_their_results(results_days: int | None) -> None:
    with pytest.raises(SetupError, match="--keep-scenarios-days 30 needs --keep-results-days of at most 30"):
        RetentionPolicy(results_days=results_days, scenarios_days=30).validate()
    assert RetentionPolicy(results_days=30, scenarios_days=30).validate().scenarios_days == 30
