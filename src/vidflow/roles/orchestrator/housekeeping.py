"""The leader's housekeeping: partitions are made ahead, and what has outlived its time goes. On a thread and a connection of its own.

Each step is a transaction under the lease's fence, short enough for it, and can be given again. A lock that is not to be had at
once is left for the next round: nobody waits long behind a statement that waits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg
from psycopg import errors

from vidflow.domain.retention import (
    DAY_MS,
    PartitionRange,
    RetentionPolicy,
    find_expired_ranges,
    find_missing_partitions,
)
from vidflow.infra.postgres import lease as leases
from vidflow.infra.postgres import retention
from vidflow.infra.postgres.connection import Connection, connect, fenced_transaction
from vidflow.infra.postgres.lease import Lease, LeaseLost
from vidflow.infra.process.stopping import Stop
from vidflow.infra.telemetry import metrics
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.outage import format_error

ROUND_S: Final = 60.0
RETENTION_ANSWER_LIMIT_S: Final = 60.0
"""How long one of its statements may take: a look at a partition that must be read from the disk takes its time."""
LEASE_CHECK_INTERVAL_S: Final = 0.2
DELETE_BATCH_ROWS: Final = 2000
"""How many rows of the DEFAULT partition go in one transaction."""
EXPIRED_SCAN_ROWS: Final = 500
ENDED_SCAN_ROWS: Final = 5000
MAX_SCANS_PER_ROUND: Final = 20
"""How often a round looks for scenarios to remove where it finds none: the next round goes on from there."""
_log = log("keeping")
_LOCK_ERRORS: Final = (errors.LockNotAvailable, errors.DeadlockDetected, errors.TransactionTimeout)


def create_missing_partitions(url: str, lease: Lease, keeping: RetentionPolicy) -> None:
    """Makes the partitions that are missing, before anything is deployed whose results belong in them."""
    with (
        _log_failures(),
        connect(url, name="vidflow leader keeps", response_timeout_s=RETENTION_ANSWER_LIMIT_S) as tables,
    ):
        RetentionRound(tables, lease, keeping).create_partitions()


def run_retention(url: str, lease: Lease, keeping: RetentionPolicy, stop: Stop, round_s: float = ROUND_S) -> None:
    """Round after round, until the lease is lost or a stop is requested."""
    due_s, seen = 0.0, ScanCursors()
    while lease.is_held() and not stop.requested:
        if time.monotonic() >= due_s:
            more = run_round(url, lease, keeping, seen)
            due_s = time.monotonic() + (0 if more else round_s)
        stop.wait(LEASE_CHECK_INTERVAL_S)


def run_round(url: str, lease: Lease, keeping: RetentionPolicy, seen: ScanCursors | None = None) -> bool:
    """Makes what is missing and lets go of a part of what is over; whether there is more of that."""
    with (
        _log_failures(),
        connect(url, name="vidflow leader keeps", response_timeout_s=RETENTION_ANSWER_LIMIT_S) as tables,
    ):
        keeper = RetentionRound(tables, lease, keeping, seen)
        keeper.create_partitions()
        return keeper.remove_expired()
    return False


@contextmanager
def _log_failures() -> Iterator[None]:
    """Log and count what goes wrong. It is tried again in the next round; the lifecycle goes on without it."""
    try:
        yield
    except LeaseLost as lost:
        _log.debug("not_kept", reason=lost.message)  # the next leader's matter
    except psycopg.Error as error:
        metrics.RETENTION_FAILURES.inc()
        _log.warning("retention_failed", error=format_error(error), needs=_needs(error))


def _needs(error: psycopg.Error) -> str:
    if isinstance(error, _LOCK_ERRORS):
        return "nothing yet: a backup or a long query holds a lock; tried again each minute"
    if isinstance(error, errors.InsufficientPrivilege):
        return "give the orchestrator's user its rights: vidflow db roles"
    return "nothing yet: tried again each minute"


class ScanCursors:
    """How far earlier rounds have looked, so that no round looks at everything that is stored.

    `ended`: of a range, the uuid up to which all scenarios have ended long ago. `scenarios`: where the look for scenarios whose
    time is over goes on; it begins again behind the last.
    """

    def __init__(self) -> None:
        self.ended: dict[tuple[str, int], str] = {}
        self.scenarios = retention.MIN_UUID


class RetentionRound:
    """One round's connection, and the lease under which it writes."""

    def __init__(
        self, tables: Connection, lease: Lease, keeping: RetentionPolicy, seen: ScanCursors | None = None
    ) -> None:
        self._cursors = seen or ScanCursors()
        self._tables = tables
        self._lease = lease
        self._policy = keeping
        self._now_ms = retention.read_database_ms(tables)

    def create_partitions(self) -> None:
        """Makes the partitions that are missing, each in its own transaction."""
        there, span = retention.list_partitions(self._tables), retention.default_span_ms(self._tables)
        for new in find_missing_partitions(there, span[1] if span else None, self._now_ms, self._policy):
            try:
                with self._fenced() as tx:
                    retention.make_partition(tx, new)
            except errors.CheckViolation:
                # A row of the range has just gone into the DEFAULT partition: the next round begins behind it.
                _log.warning("partition_not_made", partition=new.table, reason="its rows lie in the DEFAULT partition")
                return
            _log.info("partition_made", partition=new.table)

    def remove_expired(self) -> bool:
        """Removes some of what has outlived its time; whether there may be more."""
        self._drop_detached()
        more_results = self._remove_results()
        more_scenarios = self._remove_scenarios()
        return more_results or more_scenarios

    def _drop_detached(self) -> None:
        for table in retention.list_detached_partitions(self._tables):
            with self._fenced() as tx:
                retention.drop_partition(tx, table)
            _log.info("partition_dropped", partition=table)

    def _remove_results(self) -> bool:
        there, span = retention.list_partitions(self._tables), retention.default_span_ms(self._tables)
        for one in find_expired_ranges(there, span[0] if span else None, self._now_ms, self._policy):
            ended_ms = self._now_ms - (self._policy.results_days or 0) * DAY_MS
            if self._all_ended(one, ended_ms):
                return self._remove(one)
        return False

    def _all_ended(self, one: PartitionRange, ended_ms: int) -> bool:
        """Whether all scenarios of the range ended before then; each is looked at once in a leadership, but for the first that did not."""
        key, all_ended = (one.table, one.from_ms), None
        while all_ended is None and self._lease.is_held():
            after = self._cursors.ended.get(key, retention.MIN_UUID)
            self._cursors.ended[key], all_ended = retention.find_ended_up_to(
                self._tables, one, ended_ms, after, ENDED_SCAN_ROWS
            )
        return all_ended is True

    def _remove(self, one: PartitionRange) -> bool:
        """Notes and removes in one transaction: nobody ever finds the results gone and no note of it."""
        with self._fenced() as tx:
            retention.note_removed(tx, one)
            if one.is_default:
                return retention.delete_from_default(tx, one, DELETE_BATCH_ROWS) > 0
            retention.detach_partition(tx, one)
        _log.info("results_removed", partition=one.table, from_ms=one.from_ms, to_ms=one.to_ms)
        self._drop_detached()
        return True

    def _remove_scenarios(self) -> bool:
        """Looks at some of those that are old enough and removes some; whether there may be more to remove."""
        if self._policy.scenarios_days is None:
            return False
        ended_ms = self._now_ms - self._policy.scenarios_days * DAY_MS
        for _ in range(MAX_SCANS_PER_ROUND):
            over, after = retention.find_expired_scenarios(
                self._tables, ended_ms, self._cursors.scenarios, EXPIRED_SCAN_ROWS
            )
            self._cursors.scenarios = after or retention.MIN_UUID
            if over:
                with self._fenced() as tx:
                    removed = retention.delete_scenarios(tx, over)
                _log.info("scenarios_removed", scenarios=removed)
                return True
            if after is None:
                return False
        return False

    @contextmanager
    def _fenced(self) -> Iterator[Connection]:
        """A transaction that commits only under the lease, beside those of the leader's tick. Raises LeaseLost.

        Reads are not in it: they may take longer than a fenced transaction.
        """
        with fenced_transaction(self._tables) as tx:
            leases.fence(tx, self._lease.terms, self._lease.holder)
            yield tx
