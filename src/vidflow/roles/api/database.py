"""The api's way to its database: a pooled connection, once the schema is known to be there. No statements."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import psycopg

from vidflow.domain.errors import Unavailable
from vidflow.infra.migrations import wait_for_schema
from vidflow.infra.outage import postgres_outage
from vidflow.infra.postgres import Connection, is_away, pool
from vidflow.infra.stopping import Stop

CONNECTION_TIMEOUT_S: Final = 2.0
"""How long a request waits for a connection before it is told to come again."""
_NOT_READY: Final = "the database is not there yet, or lacks this version's schema (its operator runs: vidflow db migrate); try again soon"


class Database:
    """A pool that is used by all requests. Until the schema is there, and while the server is away, requests are told so."""

    def __init__(self, url: str, size: int) -> None:
        self._url = url
        self._pool = pool(url, name="vidflow api", size=size)
        self._outage = postgres_outage()
        self._in_use: set[Connection] = set()
        self._ready = False

    @contextmanager
    def connection(self, timeout_s: float = CONNECTION_TIMEOUT_S) -> Iterator[Connection]:
        """A connection in autocommit mode, given back at the end.

        Raises Unavailable while the schema is not there, psycopg.Error where the server is away.
        """
        if not self._ready:
            raise Unavailable(_NOT_READY, code="database_unavailable")
        try:
            with self._pool.connection(timeout_s) as connection:
                self._in_use.add(connection)
                try:
                    yield connection
                finally:
                    self._in_use.discard(connection)
        except psycopg.Error as error:
            if is_away(error):
                self._outage.away(error)
            raise
        self._outage.back()

    def wait_until_ready(self, stop: Stop) -> None:
        """Returns once the server answers and has this version's schema, or at a stop. Requests are served from then on."""
        wait_for_schema(self._url, stop)
        self._ready = not stop.requested

    def close(self) -> None:
        """Closes all connections, those under a request too: it gets an error instead of an answer that may never come."""
        self._pool.close(timeout=0)
        for connection in tuple(self._in_use):
            _cut(connection)


def _cut(connection: Connection) -> None:
    """Wakes the thread that waits on a connection; `close` of another thread would not."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)
