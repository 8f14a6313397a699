"""Leases in the database: their statements, and a loop that runs a role's work while it holds a lease.

The holder fences each of its transactions by a key-share lock on the lease row. Because of UNIQUE (name, term), a takeover waits for that
lock and a renewal does not. `transaction_timeout` bounds how long a frozen holder can delay a takeover.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import psycopg

from vidflow.domain.errors import Unavailable
from vidflow.domain.lease import LEASE_S, RENEW_S, STANDBY_POLL_S, compute_trusted_until
from vidflow.infra.postgres.connection import (
    FENCED_RESPONSE_TIMEOUT_S,
    FENCED_TIMEOUT_SETTING,
    Connection,
    ReconnectingConnection,
    connect,
    is_closed_by_server,
)
from vidflow.infra.postgres.errors import is_away
from vidflow.infra.postgres.pipelining import pipelined_transaction
from vidflow.infra.process.stopping import Stop, start_thread
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.outage import format_error, postgres_outage

_log = log("lease")
_RETRY_S = 0.1

LEADER_LEASE: Final = "leader"
SHARD_PREFIX: Final = "outbox/"
"""Prefix of the leases of the outbox's shards. The shard's number follows."""
RELAY_PREFIX: Final = "relay/"
"""Prefix of the leases by which relays announce themselves. The holder follows."""

Terms = Mapping[str, int]
"""Terms of held leases by name."""


class LeaseLost(Unavailable):
    """A lease has another holder, or may have one. Nothing was written. `names` are the names of the lost leases."""

    default_code = "lease_lost"

    def __init__(self, message: str, names: Iterable[str]) -> None:
        super().__init__(message)
        self.names = frozenset(names)


def acquire(tx: Connection, name: str, holder: uuid.UUID) -> int | None:
    """Acquire the lease if it has expired or already belongs to `holder`. Return the new term, or None if another process holds it."""
    row = tx.execute(
        """
        WITH taken AS (
            UPDATE lease
               SET holder = %(holder)s, term = term + 1, expires_at = clock_timestamp() + make_interval(secs => %(lease_s)s)
             WHERE name = %(name)s AND (expires_at <= clock_timestamp() OR holder = %(holder)s)
         RETURNING term
        ), made AS (
            INSERT INTO lease (name, holder, term, expires_at)
            SELECT %(name)s, %(holder)s, 1, clock_timestamp() + make_interval(secs => %(lease_s)s)
             WHERE NOT EXISTS (SELECT FROM lease WHERE name = %(name)s)
                ON CONFLICT DO NOTHING
         RETURNING term
        )
        SELECT term FROM taken
         UNION ALL
        SELECT term FROM made
        """,
        {"name": name, "holder": holder, "lease_s": LEASE_S},
    ).fetchone()
    return row[0] if row else None


def cap_expiry(tx: Connection) -> None:
    """Let every lease expire at most LEASE_S from now. Later expiry times were written before the database clock stepped back.

    Otherwise a dead holder would not be replaced until the clock has caught up. No lease ends before its holder stops trusting it: it was
    renewed earlier and is trusted for less than LEASE_S. Locked rows are skipped, because they are being renewed.
    """
    tx.execute(
        """
        UPDATE lease l
           SET expires_at = clock_timestamp() + make_interval(secs => %(lease_s)s)
          FROM (SELECT name
                  FROM lease
                 WHERE expires_at > clock_timestamp() + make_interval(secs => %(lease_s)s)
                   FOR NO KEY UPDATE SKIP LOCKED) AS late
         WHERE l.name = late.name
        """,
        {"lease_s": LEASE_S},
    )


def renew(tx: Connection, terms: Terms, holder: uuid.UUID) -> set[str]:
    """Renew the leases and return their names. A lease that is not returned has expired or has another holder."""
    rows = tx.execute(
        """
        UPDATE lease l
           SET expires_at = clock_timestamp() + make_interval(secs => %(lease_s)s)
          FROM unnest(%(names)s::text[], %(terms)s::bigint[]) AS h (name, term)
         WHERE l.name = h.name AND l.holder = %(holder)s AND l.term = h.term AND l.expires_at > clock_timestamp()
     RETURNING l.name
        """,
        {"names": list(terms), "terms": list(terms.values()), "holder": holder, "lease_s": LEASE_S},
    ).fetchall()
    return {name for (name,) in rows}


def release(tx: Connection, terms: Terms, holder: uuid.UUID) -> None:
    """Let the leases expire now, so that a standby can take over at once."""
    tx.execute(
        """
        UPDATE lease l
           SET expires_at = clock_timestamp()
          FROM unnest(%(names)s::text[], %(terms)s::bigint[]) AS h (name, term)
         WHERE l.name = h.name AND l.holder = %(holder)s AND l.term = h.term
        """,
        {"names": list(terms), "terms": list(terms.values()), "holder": holder},
    )


def fence(tx: Connection, terms: Terms, holder: uuid.UUID) -> None:
    """Make takeovers of these leases wait until this transaction has ended. Raises LeaseLost if one has been taken over.

    The holder is compared as well, because a database restored to an earlier time may assign the same term again.
    """
    rows = tx.execute(
        """
        SELECT l.name
          FROM lease l
          JOIN unnest(%(names)s::text[], %(terms)s::bigint[]) AS h (name, term) ON h.name = l.name AND h.term = l.term
         WHERE l.holder = %(holder)s
         ORDER BY l.name
           FOR KEY SHARE OF l
        """,
        {"names": list(terms), "terms": list(terms.values()), "holder": holder},
    ).fetchall()
    lost = set(terms) - {name for (name,) in rows}
    if lost:
        leases = ", ".join(f"{name} (term {terms[name]})" for name in sorted(lost))
        raise LeaseLost(f"Lease held by another process: {leases}", lost)


def read_live_names(tx: Connection) -> list[str]:
    """Return the names of all leases that are held."""
    rows = tx.execute(
        """
        SELECT name
          FROM lease
         WHERE expires_at > clock_timestamp()
        """
    ).fetchall()
    return [name for (name,) in rows]


def delete_dead_relays(tx: Connection) -> None:
    """Delete the announcements of relays that ended, since each start of a relay adds one."""
    tx.execute(
        """
        DELETE FROM lease
         WHERE starts_with(name, %(prefix)s) AND expires_at < clock_timestamp() - interval '1 minute'
        """,
        {"prefix": RELAY_PREFIX},
    )


class Lease:
    """A lease that this process has acquired. The work checks `is_held` and writes in `fenced` transactions."""

    def __init__(self, url: str, name: str, holder: uuid.UUID, term: int, attempted_s: float) -> None:
        self.name = name
        self.holder = holder
        self.term = term
        self.terms: Terms = {name: term}
        self._url = url
        self._trusted_until_s = compute_trusted_until(attempted_s)
        self._over = threading.Event()
        self._writer = ReconnectingConnection(url, name=f"vidflow {name}")

    def is_held(self) -> bool:
        """Return whether this process may act as the holder, judged by its own clock."""
        return not self._over.is_set() and time.monotonic() < self._trusted_until_s

    @contextmanager
    def fenced(self) -> Iterator[Connection]:
        """Run the body in a pipelined transaction that commits only if the lease is still held.

        Raises LeaseLost. The transaction must end within FENCED_TRANSACTION_S.
        """
        if not self.is_held():
            raise LeaseLost(f"Lease not renewed in time: {self.name} (term {self.term})", [self.name])
        with pipelined_transaction(self._writer.connection()) as tx:
            tx.execute(f"SET LOCAL {FENCED_TIMEOUT_SETTING}")
            try:
                fence(tx, self.terms, self.holder)
            except LeaseLost:
                self._over.set()
                raise
            yield tx

    def renew_until_over(self, connection: Connection) -> None:
        """Renew the lease every RENEW_S until it is lost or closed. Runs on its own thread, since a step of the work may take longer.

        `connection` is replaced by a new one if the server closes it.
        """
        replacement: Connection | None = None
        wait_s = RENEW_S
        while not self._over.wait(wait_s):
            if is_closed_by_server(replacement or connection):
                if replacement is not None:
                    replacement.close()
                replacement = self._try_reconnect()
            wait_s = RENEW_S if self._try_renew(replacement or connection) else _RETRY_S
            if not self.is_held():
                self._over.set()
        if replacement is not None:
            replacement.close()

    def _try_renew(self, connection: Connection) -> bool:
        attempted_s = time.monotonic()
        try:
            if renew(connection, self.terms, self.holder):
                self._trusted_until_s = compute_trusted_until(attempted_s)
                return True
        except psycopg.Error as error:
            write = _log.debug if is_away(error) else _log.warning  # the work that it stops reports an outage
            write("renewal_failed", lease=self.name, term=self.term, error=format_error(error))
        else:
            self._over.set()
        return False

    def _try_reconnect(self) -> Connection | None:
        """Return a new connection for renewals, or None if the server is away. The caller retries while it trusts the lease."""
        try:
            return connect(self._url, name=f"vidflow {self.name} lease", response_timeout_s=FENCED_RESPONSE_TIMEOUT_S)
        except psycopg.Error as error:
            _log.debug("reconnect_failed", lease=self.name, error=str(error).strip())
            return None

    def close(self) -> None:
        """Stop trusting the lease and close the connection for writes."""
        self._over.set()
        self._writer.close()


def run_as_holder(url: str, name: str, stop: Stop, work: Callable[[Lease], None]) -> None:
    """Wait for the lease and run `work` each time it is acquired, until a stop is requested.

    `work` must return once `lease.is_held()` is False or a stop is requested. If it raises LeaseLost or an error that means that the
    database is away, this process waits for the lease again. Other errors are raised.
    """
    holder = uuid.uuid4()
    outage = postgres_outage()
    while not stop.requested:
        try:
            with connect(url, name=f"vidflow {name} lease", response_timeout_s=FENCED_RESPONSE_TIMEOUT_S) as connection:
                outage.end()
                _stand_by(connection, url, name, holder, stop, work)
        except LeaseLost as lost:
            _log.warning("lease_lost", lease=name, reason=lost.message)
        except psycopg.Error as error:
            if not is_away(error):
                raise
            outage.begin(error)
            stop.wait(STANDBY_POLL_S)


def _stand_by(
    connection: Connection, url: str, name: str, holder: uuid.UUID, stop: Stop, work: Callable[[Lease], None]
) -> None:  # fmt: skip
    while not stop.requested:
        cap_expiry(connection)
        attempted_s = time.monotonic()
        term = acquire(connection, name, holder)
        if term is None:
            stop.wait(STANDBY_POLL_S)
            continue
        _hold(connection, Lease(url, name, holder, term, attempted_s), stop, work)


def _hold(connection: Connection, lease: Lease, stop: Stop, work: Callable[[Lease], None]) -> None:
    _log.info("lease_acquired", lease=lease.name, term=lease.term)
    renewer = start_thread(f"lease {lease.name}", lambda: lease.renew_until_over(connection), stop)
    try:
        work(lease)
    finally:
        lease.close()
        renewer.join()
        _log.info("lease_ended", lease=lease.name, term=lease.term)
        _try_release(connection, lease)


def _try_release(connection: Connection, lease: Lease) -> None:
    """Release the lease if the database is reachable. Otherwise it expires."""
    if connection.closed:
        return
    try:
        release(connection, lease.terms, lease.holder)
    except psycopg.Error as error:
        _log.debug("give_up_failed", lease=lease.name, term=lease.term, error=str(error).strip())
