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
AHEAD: Final = 3
"""How many partitions behind the present one are there before they are needed."""
TABLE: Final = "scenario_results"
DEFAULT: Final = f"{TABLE}_default"
FOREVER_MS: Final = 1 << 48


class Keeping(msgspec.Struct, frozen=True, kw_only=True):
    """For how long what is kept, in days (None: for ever), and how long the range of a partition is.

    A scenario's results are kept for `results_days`, it itself and its history for `scenarios_days`, counted from its end.
    """

    partition_days: int = 7
    results_days: int | None = None
    scenarios_days: int | None = None

    def checked(self) -> Keeping:
        """Itself. Raises SetupError where scenarios would go before their results: these would belong to nobody."""
        if self.scenarios_days is not None and (self.results_days is None or self.results_days > self.scenarios_days):
            raise SetupError(
                f"--keep-scenarios-days {self.scenarios_days} needs a --keep-results-days that is no longer: results go first, "
                "or they would belong to no scenario"
            )
        return self


class Range(msgspec.Struct, frozen=True):
    """A table and the time of the scenarios whose results lie in it: from `from_ms` up to, and without, `to_ms`."""

    table: str
    from_ms: int
    to_ms: int

    @property
    def is_default(self) -> bool:
        """Whether it is a part of the DEFAULT partition, which is emptied and never dropped."""
        return self.table == DEFAULT


def to_make(there: Sequence[Range], default_newest_ms: int | None, now_ms: int, keeping: Keeping) -> list[Range]:
    """The partitions that are missing, up to AHEAD lengths from now.

    `default_newest_ms`: the time of the newest scenario that has a row in the DEFAULT partition, None where that is empty.
    No range begins before it, since such a range could not be attached.
    """
    length_ms = keeping.partition_days * DAY_MS
    begin_ms = max(_floor(now_ms, length_ms), max((one.to_ms for one in there), default=0))
    if default_newest_ms is not None and default_newest_ms >= begin_ms:
        begin_ms = _floor(default_newest_ms, length_ms) + length_ms
    return list(_ranges(begin_ms, now_ms + AHEAD * length_ms, length_ms))


def _ranges(begin_ms: int, until_ms: int, length_ms: int) -> Iterator[Range]:
    """Each ends at a multiple of the length, also the first behind ranges of another length."""
    while begin_ms < until_ms:
        end_ms = _floor(begin_ms, length_ms) + length_ms
        yield Range(_name(begin_ms), begin_ms, end_ms)
        begin_ms = end_ms


def _name(from_ms: int) -> str:
    day = datetime.datetime.fromtimestamp(from_ms / 1000, datetime.UTC)
    return f"{TABLE}_{day:%Y%m%d}"


def _floor(at_ms: int, length_ms: int) -> int:
    return at_ms // length_ms * length_ms


def outlived(there: Sequence[Range], default_oldest_ms: int | None, now_ms: int, keeping: Keeping) -> list[Range]:
    """The ranges all of whose scenarios were born longer ago than results are kept, the oldest first.

    Whether these scenarios have ended, and when, is to be looked at as well. Of the DEFAULT partition it is the stretch
    around its oldest row that no partition covers.
    """
    if keeping.results_days is None:
        return []
    over_ms = now_ms - keeping.results_days * DAY_MS
    found = [one for one in there if one.to_ms <= over_ms]
    if default_oldest_ms is not None:
        from_ms = max((one.to_ms for one in there if one.to_ms <= default_oldest_ms), default=0)
        next_ms = min((one.from_ms for one in there if one.from_ms > default_oldest_ms), default=FOREVER_MS)
        to_ms = min(next_ms, _floor(max(over_ms, 0), DAY_MS))
        if default_oldest_ms < to_ms:
            found.append(Range(DEFAULT, from_ms, to_ms))
    return sorted(found, key=lambda one: one.from_ms)
