"""Which ranges of time the results need, and which have expired.

Results are stored by the time at which their scenario was created, in milliseconds since 1970 by the database clock. Ranges begin and
end at multiples of a number of days. They are created ahead of time, while they are still empty. Results outside all ranges are stored
separately. Creating a range scans all of those, so there must be few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from vidflow.domain.errors import SetupError

DAY_MS: Final = 86_400_000
RANGES_AHEAD: Final = 3
"""Number of ranges created ahead of the current one."""


class RetentionPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Retention periods in days (None: forever), and the length of a range of results.

    The results of a scenario are kept for `results_days` after its end, the scenario and its history for `scenarios_days`. Entries of
    the audit are kept for `audit_days`.
    """

    partition_days: int = 7
    results_days: int | None = None
    scenarios_days: int | None = None
    audit_days: int = 90

    def validate(self) -> RetentionPolicy:
        """Return the policy itself. Raises SetupError if scenarios would be removed before their results."""
        if self.scenarios_days is not None and (self.results_days is None or self.results_days > self.scenarios_days):
            raise SetupError(
                f"--keep-scenarios-days {self.scenarios_days} needs --keep-results-days of at most {self.scenarios_days}, "
                "since results are removed before their scenario."
            )
        return self


class TimeRange(msgspec.Struct, frozen=True):
    """A range of time: `from_ms` (inclusive) to `to_ms` (exclusive)."""

    from_ms: int
    to_ms: int


def find_missing_ranges(
    existing: Sequence[TimeRange], uncovered_newest_ms: int | None, now_ms: int, policy: RetentionPolicy
) -> list[TimeRange]:
    """Return the missing ranges, up to RANGES_AHEAD lengths from now.

    `uncovered_newest_ms` is the time of the newest scenario with results outside all ranges, or None if there are no such results. No range
    begins before it, since a range cannot be created around results that exist.
    """
    length_ms = policy.partition_days * DAY_MS
    begin_ms = max(_floor(now_ms, length_ms), max((time_range.to_ms for time_range in existing), default=0))
    if uncovered_newest_ms is not None and uncovered_newest_ms >= begin_ms:
        begin_ms = _floor(uncovered_newest_ms, length_ms) + length_ms
    return list(_split_range(begin_ms, now_ms + RANGES_AHEAD * length_ms, length_ms))


def _split_range(begin_ms: int, until_ms: int, length_ms: int) -> Iterator[TimeRange]:
    """Yield ranges up to `until_ms`. Each ends at a multiple of the length, even if `begin_ms` is not one."""
    while begin_ms < until_ms:
        end_ms = _floor(begin_ms, length_ms) + length_ms
        yield TimeRange(begin_ms, end_ms)
        begin_ms = end_ms


def _floor(time_ms: int, length_ms: int) -> int:
    return time_ms // length_ms * length_ms


def find_expired_ranges(
    existing: Sequence[TimeRange], uncovered_oldest_ms: int | None, now_ms: int, policy: RetentionPolicy
) -> list[TimeRange]:
    """Return the ranges whose scenarios were all created before the retention period of results, the oldest first.

    The caller must also check that these scenarios ended long enough ago. In addition to existing ranges, the result may contain the range
    around `uncovered_oldest_ms`, the time of the oldest scenario with results outside all ranges.
    """
    if policy.results_days is None:
        return []
    expired_ms = now_ms - policy.results_days * DAY_MS
    expired = [time_range for time_range in existing if time_range.to_ms <= expired_ms]
    if uncovered_oldest_ms is not None:
        ends_ms = (time_range.to_ms for time_range in existing if time_range.to_ms <= uncovered_oldest_ms)
        starts_ms = (time_range.from_ms for time_range in existing if time_range.from_ms > uncovered_oldest_ms)
        to_ms = min([_floor(max(expired_ms, 0), DAY_MS), *starts_ms])
        if uncovered_oldest_ms < to_ms:
            expired.append(TimeRange(max(ends_ms, default=0), to_ms))
    return sorted(expired, key=lambda time_range: time_range.from_ms)
