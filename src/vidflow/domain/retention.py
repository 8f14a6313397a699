"""Which partitions of the results to make, and whose time is over, given the time and what there is. Not the SQL, nor its pace.

A uuid of version 7 begins with its time: a range of uuids is a range of time. Times are the database's, in ms since 1970.
Partitions begin and end at multiples of a number of days. They are made ahead, for ranges in which nothing lies yet: what no
range covers lies in the DEFAULT partition, which is looked through at each new range and so has to stay small.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from vidflow.domain.errors import SetupError

DAY_MS: Final = 86_400_000
PARTITIONS_AHEAD: Final = 3
"""How many partitions behind the present one are there before they are needed."""
RESULTS_TABLE: Final = "scenario_results"
DEFAULT_PARTITION: Final = f"{RESULTS_TABLE}_default"
FOREVER_MS: Final = 1 << 48


class RetentionPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """For how long what is kept, in days (None: for ever), and how long the range of a partition is.

    A scenario's results are kept for `results_days`, it itself and its history for `scenarios_days`, counted from its end.
    """

    partition_days: int = 7
    results_days: int | None = None
    scenarios_days: int | None = None

    def validate(self) -> RetentionPolicy:
        """Itself. Raises SetupError where scenarios would go before their results: these would belong to nobody."""
        if self.scenarios_days is not None and (self.results_days is None or self.results_days > self.scenarios_days):
            raise SetupError(
                f"--keep-scenarios-days {self.scenarios_days} needs a --keep-results-days that is no longer: results go first, "
                "or they would belong to no scenario"
            )
        return self


class PartitionRange(msgspec.Struct, frozen=True):
    """A table and the time of the scenarios whose results lie in it: from `from_ms` up to, and without, `to_ms`."""

    table: str
    from_ms: int
    to_ms: int

    @property
    def is_default(self) -> bool:
        """Whether it is a part of the DEFAULT partition, which is emptied and never dropped."""
        return self.table == DEFAULT_PARTITION


def find_missing_partitions(
    existing: Sequence[PartitionRange], default_newest_ms: int | None, now_ms: int, keeping: RetentionPolicy
) -> list[PartitionRange]:
    """The partitions that are missing, up to AHEAD lengths from now.

    `default_newest_ms`: the time of the newest scenario that has a row in the DEFAULT partition, None where that is empty.
    No range begins before it, since such a range could not be attached.
    """
    length_ms = keeping.partition_days * DAY_MS
    begin_ms = max(_floor(now_ms, length_ms), max((one.to_ms for one in existing), default=0))
    if default_newest_ms is not None and default_newest_ms >= begin_ms:
        begin_ms = _floor(default_newest_ms, length_ms) + length_ms
    return list(_split_range(begin_ms, now_ms + PARTITIONS_AHEAD * length_ms, length_ms))


def _split_range(begin_ms: int, until_ms: int, length_ms: int) -> Iterator[PartitionRange]:
    """Each ends at a multiple of the length, also the first behind ranges of another length."""
    while begin_ms < until_ms:
        end_ms = _floor(begin_ms, length_ms) + length_ms
        yield PartitionRange(_name_partition(begin_ms), begin_ms, end_ms)
        begin_ms = end_ms


def _name_partition(from_ms: int) -> str:
    day = datetime.datetime.fromtimestamp(from_ms / 1000, datetime.UTC)
    return f"{RESULTS_TABLE}_{day:%Y%m%d}"


def _floor(at_ms: int, length_ms: int) -> int:
    return at_ms // length_ms * length_ms


def find_expired_ranges(
    existing: Sequence[PartitionRange], default_oldest_ms: int | None, now_ms: int, keeping: RetentionPolicy
) -> list[PartitionRange]:
    """The ranges all of whose scenarios were born longer ago than results are kept, the oldest first.

    Whether these scenarios have ended, and when, is to be looked at as well. Of the DEFAULT partition it is the stretch
    around its oldest row that no partition covers.
    """
    if keeping.results_days is None:
        return []
    over_ms = now_ms - keeping.results_days * DAY_MS
    found = [one for one in existing if one.to_ms <= over_ms]
    if default_oldest_ms is not None:
        from_ms = max((one.to_ms for one in existing if one.to_ms <= default_oldest_ms), default=0)
        next_ms = min((one.from_ms for one in existing if one.from_ms > default_oldest_ms), default=FOREVER_MS)
        to_ms = min(next_ms, _floor(max(over_ms, 0), DAY_MS))
        if default_oldest_ms < to_ms:
            found.append(PartitionRange(DEFAULT_PARTITION, from_ms, to_ms))
    return sorted(found, key=lambda one: one.from_ms)
