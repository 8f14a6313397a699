"""Which partitions of the results table to create, and which have expired.

A version 7 uuid begins with its time, so a range of uuids is a range of time. Times are milliseconds since 1970 by the database
clock. Partitions begin and end at multiples of a number of days. They are created ahead of time, while their range is still
empty. Rows outside all ranges go to the DEFAULT partition. PostgreSQL scans it whenever a range is added, so it must stay small.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from vidflow.domain.errors import SetupError

DAY_MS: Final = 86_400_000
PARTITIONS_AHEAD: Final = 3
"""Number of partitions created ahead of the current one."""
RESULTS_TABLE: Final = "scenario_results"
DEFAULT_PARTITION: Final = f"{RESULTS_TABLE}_default"
FOREVER_MS: Final = 1 << 48


class RetentionPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Retention periods in days (None: forever), and the length of a partition's range.

    The results of a scenario are kept for `results_days` after its end, the scenario and its history for `scenarios_days`.
    """

    partition_days: int = 7
    results_days: int | None = None
    scenarios_days: int | None = None

    def validate(self) -> RetentionPolicy:
        """Return the policy itself. Raises SetupError if scenarios would be removed before their results."""
        if self.scenarios_days is not None and (self.results_days is None or self.results_days > self.scenarios_days):
            raise SetupError(
                f"--keep-scenarios-days {self.scenarios_days} needs --keep-results-days of at most {self.scenarios_days}, "
                "since results are removed before their scenario."
            )
        return self


class PartitionRange(msgspec.Struct, frozen=True):
    """A partition and the creation times of the scenarios whose results it holds: `from_ms` (inclusive) to `to_ms` (exclusive)."""

    table: str
    from_ms: int
    to_ms: int

    @property
    def is_default(self) -> bool:
        """Whether it is a range of the DEFAULT partition, from which rows are deleted instead of dropping the table."""
        return self.table == DEFAULT_PARTITION


def find_missing_partitions(
    existing: Sequence[PartitionRange], default_newest_ms: int | None, now_ms: int, policy: RetentionPolicy
) -> list[PartitionRange]:
    """Return the missing partitions, up to PARTITIONS_AHEAD lengths from now.

    `default_newest_ms` is the time of the newest scenario with a row in the DEFAULT partition (None: the partition is empty).
    No range begins before it, since PostgreSQL could not attach such a range.
    """
    length_ms = policy.partition_days * DAY_MS
    begin_ms = max(_floor(now_ms, length_ms), max((partition.to_ms for partition in existing), default=0))
    if default_newest_ms is not None and default_newest_ms >= begin_ms:
        begin_ms = _floor(default_newest_ms, length_ms) + length_ms
    return list(_split_range(begin_ms, now_ms + PARTITIONS_AHEAD * length_ms, length_ms))


def _split_range(begin_ms: int, until_ms: int, length_ms: int) -> Iterator[PartitionRange]:
    """Yield ranges up to `until_ms`. Each ends at a multiple of the length, even if `begin_ms` is not one."""
    while begin_ms < until_ms:
        end_ms = _floor(begin_ms, length_ms) + length_ms
        yield PartitionRange(_name_partition(begin_ms), begin_ms, end_ms)
        begin_ms = end_ms


def _name_partition(from_ms: int) -> str:
    day = datetime.datetime.fromtimestamp(from_ms / 1000, datetime.UTC)
    return f"{RESULTS_TABLE}_{day:%Y%m%d}"


def _floor(time_ms: int, length_ms: int) -> int:
    return time_ms // length_ms * length_ms


def find_expired_ranges(
    existing: Sequence[PartitionRange], default_oldest_ms: int | None, now_ms: int, policy: RetentionPolicy
) -> list[PartitionRange]:
    """Return the ranges whose scenarios were all created before the retention period of results, the oldest first.

    The caller must also check that these scenarios ended long enough ago. The range of the DEFAULT partition is the one around
    its oldest row that no other partition covers.
    """
    if policy.results_days is None:
        return []
    expired_ms = now_ms - policy.results_days * DAY_MS
    expired = [partition for partition in existing if partition.to_ms <= expired_ms]
    if default_oldest_ms is not None:
        ends_ms = (partition.to_ms for partition in existing if partition.to_ms <= default_oldest_ms)
        starts_ms = (partition.from_ms for partition in existing if partition.from_ms > default_oldest_ms)
        from_ms = max(ends_ms, default=0)
        to_ms = min(min(starts_ms, default=FOREVER_MS), _floor(max(expired_ms, 0), DAY_MS))
        if default_oldest_ms < to_ms:
            expired.append(PartitionRange(DEFAULT_PARTITION, from_ms, to_ms))
    return sorted(expired, key=lambda partition: partition.from_ms)
