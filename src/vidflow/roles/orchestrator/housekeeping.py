"""The leader's housekeeping: create partitions ahead of time, remove expired results and scenarios.

It has its own thread and connection. Each step is one short fenced transaction that can be repeated. A lock that is not
available at once is left to the next round, because other statements queue up after a waiting DDL statement.
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
    RetentionPolicy,
    TimeRange,
    find_expired_ranges,
    find_missing_ranges,
)
from vidflow.infra.postgres import audit, idempotency, retention
from vidflow.infra.postgres import lease as leases
from vidflow.infra.postgres.connection import Connection, connect, fenced_transaction
from vidflow.infra.postgres.lease import LeaseLost
from vidflow.infra.postgres.lease_holder import Lease
from vidflow.infra.process.stopping import Stop
from vidflow.infra.telemetry import metrics
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.outage import format_error

ROUND_S: Final = 60.0
RETENTION_RESPONSE_TIMEOUT_S: Final = 60.0
"""Response timeout of a statement. Reading a partition from disk takes long."""
LEASE_CHECK_INTERVAL_S: Final = 0.2
DELETE_BATCH_ROWS: Final = 2000
"""Rows of a table deleted per transaction."""
MAX_DELETIONS_PER_ROUND: Final = 50
"""Transactions in a round for scenarios that clients have deleted. The next round follows at once if there is more."""
EXPIRED_SCAN_ROWS: Final = 500
ENDED_SCAN_ROWS: Final = 5000
MAX_SCANS_PER_ROUND: Final = 20
"""Scans for expired scenarios in a round that finds none. The next round continues from there."""
_CONNECTION_NAME: Final = "vidflow leader retention"
_log = log("retention")
_LOCK_ERRORS: Final = (errors.LockNotAvailable, errors.DeadlockDetected, errors.TransactionTimeout)


def create_missing_partitions(url: str, lease: Lease, policy: RetentionPolicy) -> None:
    """Create the missing partitions. Call it before deploying scenarios whose results belong in them."""
    with (
        _log_failures(),
        connect(url, name=_CONNECTION_NAME, response_timeout_s=RETENTION_RESPONSE_TIMEOUT_S) as connection,
    ):
        RetentionRound(connection, lease, policy).create_partitions()


def run_retention(url: str, lease: Lease, policy: RetentionPolicy, stop: Stop, round_s: float = ROUND_S) -> None:
    """Run a round every `round_s` seconds until the lease is lost or a stop is requested.

    The next round starts at once if the last one left something to remove.
    """
    due_s, cursors = 0.0, ScanCursors()
    while lease.is_held() and not stop.requested:
        if time.monotonic() >= due_s:
            unfinished = run_round(url, lease, policy, cursors)
            due_s = time.monotonic() + (0 if unfinished else round_s)
        stop.wait(LEASE_CHECK_INTERVAL_S)


def run_round(url: str, lease: Lease, policy: RetentionPolicy, cursors: ScanCursors | None = None) -> bool:
    """Create missing partitions and remove a bounded part of what has expired. Return whether more may have expired."""
    with (
        _log_failures(),
        connect(url, name=_CONNECTION_NAME, response_timeout_s=RETENTION_RESPONSE_TIMEOUT_S) as connection,
    ):
        current_round = RetentionRound(connection, lease, policy, cursors)
        current_round.create_partitions()
        return current_round.remove_expired()
    return False


@contextmanager
def _log_failures() -> Iterator[None]:
    """Log and count errors instead of raising them. The next round tries again, and scenarios run on meanwhile."""
    try:
        yield
    except LeaseLost as lost:
        _log.debug("retention_interrupted", reason=lost.message)  # the next leader does it
    except psycopg.Error as error:
        metrics.RETENTION_FAILURES.inc()
        _log.warning("retention_failed", error=format_error(error), needs=_needs(error))


def _needs(error: psycopg.Error) -> str:
    if isinstance(error, _LOCK_ERRORS):
        return "nothing yet: a backup or a long query holds a lock; retried every minute"
    if isinstance(error, errors.InsufficientPrivilege):
        return "grant the orchestrator's user its privileges: vidflow db roles"
    return "nothing yet: retried every minute"


class ScanCursors:
    """How far earlier rounds have scanned, so that no round scans everything that is stored.

    `ended`: the uuid up to which all scenarios of a range ended long enough ago, by the beginning of the range. `scenarios`: the uuid
    after which the scan for expired scenarios continues; it restarts at the lowest uuid when it reaches the end.
    """

    def __init__(self) -> None:
        self.ended: dict[int, str] = {}
        self.scenarios = retention.MIN_UUID


class RetentionRound:
    """One round: its connection, and the lease that fences its writes."""

    def __init__(
        self, connection: Connection, lease: Lease, policy: RetentionPolicy, cursors: ScanCursors | None = None
    ) -> None:
        self._cursors = cursors or ScanCursors()
        self._connection = connection
        self._lease = lease
        self._policy = policy
        self._now_ms = retention.read_database_ms(connection)

    def create_partitions(self) -> None:
        """Create the missing partitions, each in its own transaction."""
        existing = [partition.time_range for partition in retention.list_partitions(self._connection)]
        span = retention.default_span_ms(self._connection)
        for missing in find_missing_ranges(existing, span[1] if span else None, self._now_ms, self._policy):
            partition = retention.name_partition(missing)
            try:
                with self._fenced() as tx:
                    retention.make_partition(tx, partition)
            except errors.CheckViolation:
                # A row of the range has just entered the DEFAULT partition. The next round begins after it.
                _log.warning(
                    "partition_not_created",
                    partition=partition.table,
                    reason="the DEFAULT partition has rows of its range",
                )
                return
            _log.info("partition_created", partition=partition.table)

    def remove_expired(self) -> bool:
        """Remove a bounded part of what has expired. Return whether more may have expired."""
        self._drop_detached()
        more_results = self._remove_results()
        more_scenarios = self._remove_scenarios()
        more_deleted = self._remove_deleted()
        more_records = self._remove_records()
        return more_results or more_scenarios or more_deleted or more_records

    def _remove_deleted(self) -> bool:
        """Remove some of what is left of scenarios that clients have deleted. Return whether there is more."""
        for _ in range(MAX_DELETIONS_PER_ROUND):
            scenario_uuid = retention.find_deleted_scenario(self._connection)
            if scenario_uuid is None:
                return False
            with self._fenced() as tx:
                more = retention.delete_rest(tx, scenario_uuid, DELETE_BATCH_ROWS)
            if not more:
                _log.info("scenario_deleted", scenario_uuid=scenario_uuid)
        return True

    def _remove_records(self) -> bool:
        """Remove expired entries of the audit and expired answers to requests with an Idempotency-Key."""
        with self._fenced() as tx:
            entries = audit.delete_expired(tx, self._policy.audit_days)
        with self._fenced() as tx:
            answers = idempotency.delete_expired(tx)
        return entries == audit.EXPIRED_BATCH_ROWS or answers == idempotency.EXPIRED_BATCH_ROWS

    def _drop_detached(self) -> None:
        for table in retention.list_detached_partitions(self._connection):
            with self._fenced() as tx:
                retention.drop_partition(tx, table)
            _log.info("partition_dropped", partition=table)

    def _remove_results(self) -> bool:
        partitions = {partition.time_range: partition for partition in retention.list_partitions(self._connection)}
        span = retention.default_span_ms(self._connection)
        for expired in find_expired_ranges(list(partitions), span[0] if span else None, self._now_ms, self._policy):
            ended_ms = self._now_ms - (self._policy.results_days or 0) * DAY_MS
            if self._all_ended(expired, ended_ms):
                return self._remove(expired, partitions.get(expired))
        return False

    def _all_ended(self, created: TimeRange, ended_ms: int) -> bool:
        """Return whether all scenarios of the range ended before `ended_ms`.

        A leader scans each scenario once, except the first that has not ended, where the next scan starts.
        """
        all_ended = None
        while all_ended is None and self._lease.is_held():
            after = self._cursors.ended.get(created.from_ms, retention.MIN_UUID)
            self._cursors.ended[created.from_ms], all_ended = retention.find_ended_up_to(
                self._connection, created, ended_ms, after, ENDED_SCAN_ROWS
            )
        return all_ended is True

    def _remove(self, created: TimeRange, partition: retention.Partition | None) -> bool:
        """Record and remove the results in one transaction, so that readers never miss results without a record of it.

        Without a partition of the range, its rows are in the DEFAULT partition and are deleted in batches.
        """
        with self._fenced() as tx:
            retention.note_removed(tx, created)
            if partition is None:
                return retention.delete_from_default(tx, created, DELETE_BATCH_ROWS) > 0
            retention.detach_partition(tx, partition)
        _log.info("results_removed", partition=partition.table, from_ms=created.from_ms, to_ms=created.to_ms)
        self._drop_detached()
        return True

    def _remove_scenarios(self) -> bool:
        """Scan some of the scenarios that are old enough and delete the expired ones. Return whether more may have expired."""
        if self._policy.scenarios_days is None:
            return False
        ended_ms = self._now_ms - self._policy.scenarios_days * DAY_MS
        for _ in range(MAX_SCANS_PER_ROUND):
            expired, after = retention.find_expired_scenarios(
                self._connection, ended_ms, self._cursors.scenarios, EXPIRED_SCAN_ROWS
            )
            self._cursors.scenarios = after or retention.MIN_UUID
            if expired:
                with self._fenced() as tx:
                    removed = retention.delete_scenarios(tx, expired)
                _log.info("scenarios_removed", scenarios=removed)
                return True
            if after is None:
                return False
        return False

    @contextmanager
    def _fenced(self) -> Iterator[Connection]:
        """Open a transaction that commits only under the lease, concurrently with those of the tick. Raises LeaseLost.

        Keep reads out of it: they may take longer than a fenced transaction is allowed to.
        """
        with fenced_transaction(self._connection) as tx:
            leases.fence(tx, self._lease.terms, self._lease.holder)
            yield tx
