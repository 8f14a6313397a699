"""A lease that this process holds, and a loop that runs a role's work while it holds it. The statements are in lease.py."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from vidflow.domain.lease import RENEW_S, STANDBY_POLL_S, compute_trusted_until
from vidflow.infra.postgres.connection import (
    FENCED_RESPONSE_TIMEOUT_S,
    FENCED_TIMEOUT_SETTING,
    Connection,
    ReconnectingConnection,
    connect,
    is_closed_by_server,
)
from vidflow.infra.postgres.errors import is_away
from vidflow.infra.postgres.lease import LeaseLost, Terms, acquire, cap_expiry, fence, release, renew
from vidflow.infra.postgres.pipelining import pipelined_transaction
from vidflow.infra.process.stopping import Stop, start_thread
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.outage import format_error, postgres_outage

_log = log("lease")
_RETRY_S = 0.1


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
