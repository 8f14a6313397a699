"""A pool of connections for many threads, none of which is ever given one that has died. What an outage means to a client is not here.

A connection is made by the thread that needs it, so a server that is back is used at once, and one that is away shows at once.
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
"""A connection that was used so lately is not asked whether it lives: under load none is asked, and no request waits twice."""
LIVENESS_TIMEOUT_S: Final = 1.0
"""How long an idle connection may take to answer before it counts as lost: far more than any round trip."""
MAX_IDLE_S: Final = 600.0
MAX_AGE_S: Final = 3600.0
"""After a fail-over, or where a pooler shares out its clients, connections move on within this time."""


class PoolBusy(Unavailable):
    """All connections are in use."""

    default_code = "database_busy"


class PoolUsage(msgspec.Struct, frozen=True):
    """Connections of a pool: how many there may be, are, and are in use; and how many callers wait for one."""

    limit: int
    connected: int
    in_use: int
    waiting: int


class _PooledConnection:
    """A connection and what is known of it. `timeout_setting`: the setting for each transaction, None where the session has it."""

    def __init__(self, connection: Connection, limit: LiteralString | None) -> None:
        self.connection = connection
        self.timeout_setting = limit
        self.created_s = self.used_s = time.monotonic()


class Pool:
    """At most `size` connections. No statement on them runs longer than `statement_timeout_s`."""

    def __init__(self, url: str, *, name: str, size: int, statement_timeout_s: float) -> None:
        self.size = size
        self._url = url
        self._name = name
        self._timeout_s = statement_timeout_s
        self._timeout_setting: LiteralString = f"statement_timeout = {int(statement_timeout_s * 1000)}"
        self._places = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._idle: list[_PooledConnection] = []
        self._in_use: set[_PooledConnection] = set()
        self._distrusted_s = float("-inf")
        self._closed = False
        self._waiting = 0

    def read_usage(self) -> PoolUsage:
        """Return how the pool is used at this moment."""
        with self._lock:
            in_use = len(self._in_use)
            return PoolUsage(self.size, len(self._idle) + in_use, in_use, self._waiting)

    @contextmanager
    def connection(self, timeout_s: float) -> Iterator[Connection]:
        """A connection in autocommit mode, given back at the end. Behind a pooler the body is one transaction.

        Raises PoolBusy where none is free in time, psycopg.OperationalError where the server is away.
        """
        if not self._acquire_permit(timeout_s):
            raise PoolBusy(f"all {self.size} connections to the database are busy")
        try:
            pooled = self._check_out()
            try:
                with _statement_timeout(pooled):
                    yield pooled.connection
            except psycopg.errors.ReadOnlySqlTransaction:
                pooled.connection.close()  # the server is not the primary any more, and says so at writes alone
                raise
            finally:
                self._check_in(pooled)
        finally:
            self._places.release()

    def close(self) -> None:
        """Close all connections. A thread that waits on one gets an error; it closes its own when it gives it back."""
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
            return self._places.acquire(timeout=timeout_s)
        finally:
            with self._lock:
                self._waiting -= 1

    def _check_out(self) -> _PooledConnection:
        """One that lives: an idle one, the last used first, or a new one."""
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
        """Whether it can be used. A silent one makes all others suspect that have not been used since it was asked."""
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
        # It has become a standby: reads would succeed there, writes never.
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
        """Keep it where it is in order; close it, and those that nobody has needed for long, where not."""
        now_s = time.monotonic()
        pooled.used_s = now_s
        in_order = not pooled.connection.closed and (
            pooled.connection.info.transaction_status == TransactionStatus.IDLE
        )
        with self._lock:
            self._in_use.discard(pooled)
            old = [one for one in self._idle if now_s - one.used_s > MAX_IDLE_S]
            self._idle = [one for one in self._idle if now_s - one.used_s <= MAX_IDLE_S]
            if in_order and not self._closed:
                self._idle.append(pooled)
            else:
                old.append(pooled)
        for one in old:
            one.connection.close()


@contextmanager
def _statement_timeout(pooled: _PooledConnection) -> Iterator[None]:
    if pooled.timeout_setting is None:
        yield
    else:
        with transaction(pooled.connection, pooled.timeout_setting):
            yield


def _require_answer(connection: Connection) -> None:
    """A pooler lets its clients in while the server is away."""
    if not is_responsive(connection, LIVENESS_TIMEOUT_S):
        raise psycopg.OperationalError(f"no answer within {LIVENESS_TIMEOUT_S:g} s, though the connection was made")


def _shut_down_socket(connection: Connection) -> None:
    """Wake the thread that waits on a connection; `close` of another thread would not."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)
