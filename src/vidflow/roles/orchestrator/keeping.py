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

from vidflow.domain.retention import DAY_MS, Keeping, Range, outlived, to_make
from vidflow.infra.postgres import lease as leases
from vidflow.infra.postgres import retention
from vidflow.infra.postgres.connection import Connection, connect, fenced_transaction
from vidflow.infra.postgres.lease import Lease, LeaseLost
from vidflow.infra.process.stopping import Stop
from vidflow.infra.telemetry import metrics
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.outage import in_one_line

ROUND_S: Final = 60.0
KEEPS_S: Final = 60.0
"""How long one of its statements may take: a look at a partition that must be read from the disk takes its time."""
LOOK_S: Final = 0.2
ROWS: Final = 2000
"""How many rows of the DEFAULT partition go in one transaction."""
SCENARIOS: Final = 500
LOOKED_AT: Final = 5000
LOOKS: Final = 20
"""How often a round looks for scenarios to remove where it finds none: the next round goes on from there."""
_log = log("keeping")
_LOCKED: Final = (errors.LockNotAvailable, errors.DeadlockDetected, errors.TransactionTimeout)


def prepare(url: str, lease: Lease, keeping: Keeping) -> None:
    """Makes the partitions that are missing, before anything is deployed whose results belong in them."""
    with _reported(), connect(url, name="vidflow leader keeps", answer_limit_s=KEEPS_S) as tables:
        Keeper(tables, lease, keeping).make_partitions()


def keep_tables(url: str, lease: Lease, keeping: Keeping, stop: Stop, round_s: float = ROUND_S) -> None:
    """Round after round, until the lease is lost or a stop is requested."""
    due_s, seen = 0.0, Seen()
    while lease.held() and not stop.requested:
        if time.monotonic() >= due_s:
            more = one_round(url, lease, keeping, seen)
            due_s = time.monotonic() + (0 if more else round_s)
        stop.wait(LOOK_S)


def one_round(url: str, lease: Lease, keeping: Keeping, seen: Seen | None = None) -> bool:
    """Makes what is missing and lets go of a part of what is over; whether there is more of that."""
    with _reported(), connect(url, name="vidflow leader keeps", answer_limit_s=KEEPS_S) as tables:
        keeper = Keeper(tables, lease, keeping, seen)
        keeper.make_partitions()
        return keeper.let_go()
    return False


@contextmanager
def _reported() -> Iterator[None]:
    """Log and count what goes wrong. It is tried again in the next round; the lifecycle goes on without it."""
    try:
        yield
    except LeaseLost as lost:
        _log.debug("not_kept", reason=lost.message)  # the next leader's matter
    except psycopg.Error as error:
        metrics.RETENTION_FAILURES.inc()
        _log.warning("retention_failed", error=in_one_line(error), needs=_needs(error))


def _needs(error: psycopg.Error) -> str:
    if isinstance(error, _LOCKED):
        return "nothing yet: a backup or a long query holds a lock; tried again each minute"
    if isinstance(error, errors.InsufficientPrivilege):
        return "give the orchestrator's user its rights: vidflow db roles"
    return "nothing yet: tried again each minute"


class Seen:
    """How far earlier rounds have looked, so that no round looks at everything that is stored.

    `ended`: of a range, the uuid up to which all scenarios have ended long ago. `scenarios`: where the look for scenarios whose
    time is over goes on; it begins again behind the last.
    """

    def __init__(self) -> None:
        self.ended: dict[tuple[str, int], str] = {}
        self.scenarios = retention.BEFORE_ALL


class Keeper:
    """One round's connection, and the lease under which it writes."""

    def __init__(self, tables: Connection, lease: Lease, keeping: Keeping, seen: Seen | None = None) -> None:
        self._seen = seen or Seen()
        self._tables = tables
        self._lease = lease
        self._keeping = keeping
        self._now_ms = retention.database_ms(tables)

    def make_partitions(self) -> None:
        """Makes the partitions that are missing, each in its own transaction."""
        there, span = retention.partitions(self._tables), retention.default_span_ms(self._tables)
        for new in to_make(there, span[1] if span else None, self._now_ms, self._keeping):
            try:
                with self._fenced() as tx:
                    retention.make_partition(tx, new)
            except errors.CheckViolation:
                # A row of the range has just gone into the DEFAULT partition: the next round begins behind it.
                _log.warning("partition_not_made", partition=new.table, reason="its rows lie in the DEFAULT partition")
                return
            _log.info("partition_made", partition=new.table)

    def let_go(self) -> bool:
        """Removes some of what has outlived its time; whether there may be more."""
        self._drop_detached()
        more_results = self._remove_results()
        more_scenarios = self._remove_scenarios()
        return more_results or more_scenarios

    def _drop_detached(self) -> None:
        for table in retention.detached(self._tables):
            with self._fenced() as tx:
                retention.drop(tx, table)
            _log.info("partition_dropped", partition=table)

    def _remove_results(self) -> bool:
        there, span = retention.partitions(self._tables), retention.default_span_ms(self._tables)
        for one in outlived(there, span[0] if span else None, self._now_ms, self._keeping):
            ended_ms = self._now_ms - (self._keeping.results_days or 0) * DAY_MS
            if self._all_ended(one, ended_ms):
                return self._remove(one)
        return False

    def _all_ended(self, one: Range, ended_ms: int) -> bool:
        """Whether all scenarios of the range ended before then; each is looked at once in a leadership, but for the first that did not."""
        key, all_ended = (one.table, one.from_ms), None
        while all_ended is None and self._lease.held():
            after = self._seen.ended.get(key, retention.BEFORE_ALL)
            self._seen.ended[key], all_ended = retention.ended_up_to(self._tables, one, ended_ms, after, LOOKED_AT)
        return all_ended is True

    def _remove(self, one: Range) -> bool:
        """Notes and removes in one transaction: nobody ever finds the results gone and no note of it."""
        with self._fenced() as tx:
            retention.note_removed(tx, one)
            if one.is_default:
                return retention.delete_from_default(tx, one, ROWS) > 0
            retention.detach(tx, one)
        _log.info("results_removed", partition=one.table, from_ms=one.from_ms, to_ms=one.to_ms)
        self._drop_detached()
        return True

    def _remove_scenarios(self) -> bool:
        """Looks at some of those that are old enough and removes some; whether there may be more to remove."""
        if self._keeping.scenarios_days is None:
            return False
        ended_ms = self._now_ms - self._keeping.scenarios_days * DAY_MS
        for _ in range(LOOKS):
            over, after = retention.outlived_scenarios(self._tables, ended_ms, self._seen.scenarios, SCENARIOS)
            self._seen.scenarios = after or retention.BEFORE_ALL
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
