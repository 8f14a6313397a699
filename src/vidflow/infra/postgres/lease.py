"""A lease in the database: its statements, and a keeper that runs a role's work while it holds one. Not what the work is.

A holder's every write is fenced in its own transaction. UNIQUE (name, term) makes a takeover wait for a fenced transaction
and lets a renewal pass beside it; `transaction_timeout` bounds how long a frozen holder can make a takeover wait.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

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


Terms = Mapping[str, int]
"""Leases that are held: the term of each by its name."""


class LeaseLost(Unavailable):
    """A lease is another holder's, or may be: what was to be written is not. `names`: which."""

    default_code = "lease_lost"

    def __init__(self, message: str, names: Iterable[str]) -> None:
        super().__init__(message)
        self.names = frozenset(names)


def acquire(tx: Connection, name: str, holder: uuid.UUID) -> int | None:
    """Takes the lease where it is over (or this holder's own already); the new term, or None where another has it."""
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
    """Lets no lease end later than a whole one from now: those that do were set before the database's clock went back.

    Else a holder that died then would be replaced when the clock is where it was. None ends sooner than its holder trusts it:
    it was renewed before this, and its holder trusts it for less than a whole one. Waits for nobody: who holds the row
    renews it.
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
    """Sets the leases' ends anew; returns their names, less those that are over or another's: these are lost."""
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
    """Ends the leases now, so that nobody need wait for their end."""
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
    """Lets no takeover of these leases commit before this transaction has ended. Raises LeaseLost where one has.

    The holder is compared too: a database restored to an earlier moment may give out the same term again.
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
        raise LeaseLost(f"held by another: {', '.join(f'{name} (term {terms[name]})' for name in sorted(lost))}", lost)


class Lease:
    """A lease that is held: what the work of a role looks at, and writes through."""

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
        """Whether this process may act as the holder, by its own clock alone."""
        return not self._over.is_set() and time.monotonic() < self._trusted_until_s

    @contextmanager
    def fenced(self) -> Iterator[Connection]:
        """A pipelined transaction that commits only under this lease. Raises LeaseLost; it must end within a second."""
        if not self.is_held():
            raise LeaseLost(f"not renewed in time: {self.name} (term {self.term})", [self.name])
        with pipelined_transaction(self._writer.connection()) as tx:
            tx.execute(f"SET LOCAL {FENCED_TIMEOUT_SETTING}")
            try:
                fence(tx, self.terms, self.holder)
            except LeaseLost:
                self._over.set()
                raise
            yield tx

    def renew_until_over(self, connection: Connection) -> None:
        """Renews each half second, on a thread of its own: the work may take longer than that. Returns once it is lost."""
        own: Connection | None = None
        wait_s = RENEW_S
        while not self._over.wait(wait_s):
            if is_closed_by_server(own or connection):
                if own is not None:
                    own.close()
                own = self._try_reconnect()
            wait_s = RENEW_S if self._try_renew(own or connection) else _RETRY_S
            if not self.is_held():
                self._over.set()
        if own is not None:
            own.close()

    def _try_renew(self, connection: Connection) -> bool:
        attempted_s = time.monotonic()
        try:
            if renew(connection, self.terms, self.holder):
                self._trusted_until_s = compute_trusted_until(attempted_s)
                return True
        except psycopg.Error as error:
            say = _log.debug if is_away(error) else _log.warning  # the outage itself is said by whom it stops
            say("renewal_failed", lease=self.name, term=self.term, error=format_error(error))
        else:
            self._over.set()
        return False

    def _try_reconnect(self) -> Connection | None:
        """A new connection for renewals; None where there is none yet: tried again while the lease may be trusted."""
        try:
            return connect(self._url, name=f"vidflow {self.name} lease", response_timeout_s=FENCED_RESPONSE_TIMEOUT_S)
        except psycopg.Error as error:
            _log.debug("reconnect_failed", lease=self.name, error=str(error).strip())
            return None

    def close(self) -> None:
        """Trusts it no more, from now on."""
        self._over.set()
        self._writer.close()


def run_as_holder(url: str, name: str, stop: Stop, work: Callable[[Lease], None]) -> None:
    """Stands by for the lease, and runs `work` each time it is held, until a stop is requested.

    `work` returns once `lease.is_held()` is False or a stop is requested. Where it raises LeaseLost, or an error by which the
    database is away, this process stands by again; any other error is the caller's.
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
    connection: Connection, url: str, name: str, holder: uuid.UUID, stop: Stop, lead: Callable[[Lease], None]
) -> None:  # fmt: skip
    while not stop.requested:
        cap_expiry(connection)
        attempted_s = time.monotonic()
        term = acquire(connection, name, holder)
        if term is None:
            stop.wait(STANDBY_POLL_S)
            continue
        _hold(connection, Lease(url, name, holder, term, attempted_s), stop, lead)


def _hold(connection: Connection, lease: Lease, stop: Stop, lead: Callable[[Lease], None]) -> None:
    _log.info("lease_acquired", lease=lease.name, term=lease.term)
    renewing = start_thread(f"lease {lease.name}", lambda: lease.renew_until_over(connection), stop)
    try:
        lead(lease)
    finally:
        lease.close()
        renewing.join()
        _log.info("lease_ended", lease=lease.name, term=lease.term)
        _try_release(connection, lease)


def _try_release(connection: Connection, lease: Lease) -> None:
    """Gives the lease up where the database can be asked to; else it runs out by itself."""
    if connection.closed:
        return
    try:
        release(connection, lease.terms, lease.holder)
    except psycopg.Error as error:
        _log.debug("give_up_failed", lease=lease.name, term=lease.term, error=str(error).strip())
