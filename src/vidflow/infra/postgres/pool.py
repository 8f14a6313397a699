"""A thread-safe connection pool that checks connections before it hands them out.

Connections are opened by the thread that needs one, so that an outage and its end are noticed at once.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, LiteralString

import msgspec
import psycopg
from psycopg.pq import TransactionStatus

from vidflow.domain.errors import Unavailable
from vidflow.infra.postgres.connection import (
    Connection,
    connect,
    is_behind_pooler,
    is_closed_by_server,
    is_responsive,
    transaction,
)

UNCHECKED_IDLE_S: Final = 0.01
"""A connection used more recently than this is not checked, which saves a round trip per request under load."""
LIVENESS_TIMEOUT_S: Final = 1.0
"""How long a check may take before the connection counts as lost. Much longer than a round trip."""
MAX_IDLE_S: Final = 600.0
MAX_AGE_S: Final = 3600.0
"""Age at which a connection is replaced, so that clients move on after a failover or when a load balancer distributes them."""


class PoolBusy(Unavailable):
    """All connections are in use."""

    default_code = "database_busy"


class PoolUsage(msgspec.Struct, frozen=True):
    """Usage of a pool: its size, the open connections, those in use, and the callers that wait for one."""

    limit: int
    connected: int
    in_use: int
    waiting: int


class _PooledConnection:
    """A connection with its times. `timeout_setting` is the setting for each transaction, or None if the session has it."""

    def __init__(self, connection: Connection, timeout_setting: LiteralString | None) -> None:
        self.connection = connection
        self.timeout_setting = timeout_setting
        self.created_s = self.used_s = time.monotonic()


class Pool:
    """A pool of at most `size` connections on which no statement runs longer than `statement_timeout_s`."""

    def __init__(self, url: str, *, name: str, size: int, statement_timeout_s: float) -> None:
        self.size = size
        self._url = url
        self._name = name
        self._timeout_s = statement_timeout_s
        self._timeout_setting: LiteralString = f"statement_timeout = {int(statement_timeout_s * 1000)}"
        self._permits = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._idle: list[_PooledConnection] = []
        self._in_use: set[_PooledConnection] = set()
        self._distrusted_s = float("-inf")
        self._closed = False
        self._waiting = 0

    def read_usage(self) -> PoolUsage:
        """Return the current usage."""
        with self._lock:
            in_use = len(self._in_use)
            return PoolUsage(self.size, len(self._idle) + in_use, in_use, self._waiting)

    @contextmanager
    def connection(self, timeout_s: float) -> Iterator[Connection]:
        """Provide a connection in autocommit mode for the body. Behind a pooler the body is one transaction.

        Raises PoolBusy if no connection becomes free in time, and psycopg.OperationalError if the server is away.
        """
        if not self._acquire_permit(timeout_s):
            raise PoolBusy(f"All {self.size} connections to the database are in use. Try again, or use a larger pool.")
        try:
            pooled = self._check_out()
            try:
                with _statement_timeout(pooled):
                    yield pooled.connection
            except psycopg.errors.ReadOnlySqlTransaction:
                pooled.connection.close()  # the server is no longer the primary, which only writes show
                raise
            finally:
                self._check_in(pooled)
        finally:
            self._permits.release()

    def close(self) -> None:
        """Close idle connections and interrupt those in use. A thread that uses one gets an error and closes it when it returns it."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            in_use = tuple(self._in_use)
        for pooled in idle:
            pooled.connection.close()
        for pooled in in_use:
            _shut_down_socket(pooled.connection)

    def _acquire_permit(self, timeout_s: float) -> bool:
        with self._lock:
            self._waiting += 1
        try:
            return self._permits.acquire(timeout=timeout_s)
        finally:
            with self._lock:
                self._waiting -= 1

    def _check_out(self) -> _PooledConnection:
        """Return the most recently used idle connection that is usable, or a new one."""
        while (pooled := self._pop()) is not None:
            if self._is_usable(pooled):
                return self._mark_in_use(pooled)
            pooled.connection.close()
        return self._mark_in_use(self._open())

    def _pop(self) -> _PooledConnection | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _mark_in_use(self, pooled: _PooledConnection) -> _PooledConnection:
        with self._lock:
            pooled.used_s = time.monotonic()
            self._in_use.add(pooled)
        return pooled

    def _is_usable(self, pooled: _PooledConnection) -> bool:
        """Return whether an idle connection can be used.

        If it does not respond, all connections that were not used after this check began are distrusted, too.
        """
        now_s = time.monotonic()
        if (
            pooled.used_s < self._distrusted_s
            or now_s - pooled.created_s > MAX_AGE_S
            or is_closed_by_server(pooled.connection)
        ):
            return False
        if now_s - pooled.used_s < UNCHECKED_IDLE_S:
            return True
        if not is_responsive(pooled.connection, LIVENESS_TIMEOUT_S):
            self._distrusted_s = now_s
            return False
        # After a failover the server may be a standby, where reads succeed and writes fail.
        return pooled.connection.info.parameter_status("in_hot_standby") != "on"

    def _open(self) -> _PooledConnection:
        connection = connect(self._url, name=self._name, response_timeout_s=self._timeout_s + LIVENESS_TIMEOUT_S)
        try:
            _require_answer(connection)
            if is_behind_pooler(connection):
                return _PooledConnection(connection, self._timeout_setting)
            connection.execute(f"SET {self._timeout_setting}")
        except BaseException:
            connection.close()
            raise
        return _PooledConnection(connection, None)

    def _check_in(self, pooled: _PooledConnection) -> None:
        """Return a connection to the pool, or close it if it cannot be used again. Close connections that were idle for too long."""
        now_s = time.monotonic()
        pooled.used_s = now_s
        is_reusable = not pooled.connection.closed and (
            pooled.connection.info.transaction_status == TransactionStatus.IDLE
        )
        with self._lock:
            self._in_use.discard(pooled)
            discarded = [idle for idle in self._idle if now_s - idle.used_s > MAX_IDLE_S]
            self._idle = [idle for idle in self._idle if now_s - idle.used_s <= MAX_IDLE_S]
            if is_reusable and not self._closed:
                self._idle.append(pooled)
            else:
                discarded.append(pooled)
        for old in discarded:
            old.connection.close()


@contextmanager
def _statement_timeout(pooled: _PooledConnection) -> Iterator[None]:
    if pooled.timeout_setting is None:
        yield
    else:
        with transaction(pooled.connection, pooled.timeout_setting):
            yield


def _require_answer(connection: Connection) -> None:
    """Raise OperationalError if a new connection does not respond. A pooler accepts clients even while the server is away."""
    if not is_responsive(connection, LIVENESS_TIMEOUT_S):
        raise psycopg.OperationalError(f"no answer within {LIVENESS_TIMEOUT_S:g} s on a new connection")


def _shut_down_socket(connection: Connection) -> None:
    """Wake up the thread that waits on a connection. Calling `close` from this thread would not."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as raw_socket:
        raw_socket.shutdown(socket.SHUT_RDWR)
