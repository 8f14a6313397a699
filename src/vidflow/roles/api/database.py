"""The api's way to its database: a pooled connection, once the schema is known to be there. No statements."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg

from vidflow.domain.errors import Unavailable
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.postgres.errors import is_away, is_disk_full, is_timed_out
from vidflow.infra.postgres.migrations import wait_for_schema
from vidflow.infra.postgres.pool import Pool, PoolBusy, PoolUsage
from vidflow.infra.process.stopping import Stop
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.outage import format_error, postgres_outage

CONNECTION_TIMEOUT_S: Final = 3.0
"""How long a request waits for a connection before it is told to come again: others may be finding out that theirs are lost."""
BUSY_TIMEOUT_S: Final = 0.05
"""How long it waits where the one before waited in vain: a crowd at the door is told at once, not one after the other."""
STATEMENT_TIMEOUT_S: Final = 5.0
"""Longer than any statement of a request takes on a server that is well."""
_LOG_INTERVAL_S: Final = 60.0
_NOT_READY: Final = "the database is not there yet, or lacks this version's schema (its operator runs: vidflow db migrate); try again soon"
_BUSY: Final = "all {size} connections to the database are busy; try again soon (its operator may raise --pool-size)"
_log = log("api")


class Database:
    """A pool that is used by all requests. Until the schema is there, and while the server is away, requests are told so."""

    def __init__(self, url: str, size: int) -> None:
        self._url = url
        self._pool = Pool(url, name="vidflow api", size=size, statement_timeout_s=STATEMENT_TIMEOUT_S)
        self._outage = postgres_outage()
        self._exhausted = False
        self._disk_full_logged_s = float("-inf")
        self._ready = False

    @contextmanager
    def connection(self, timeout_s: float = CONNECTION_TIMEOUT_S) -> Iterator[Connection]:
        """A connection in autocommit mode, given back at the end.

        Raises Unavailable while the schema is not there or all connections are busy, psycopg.Error where the server is away.
        """
        if not self._ready:
            raise Unavailable(_NOT_READY, code="database_unavailable")
        try:
            with self._pool.connection(BUSY_TIMEOUT_S if self._exhausted else timeout_s) as connection:
                self._exhausted = False
                yield connection
        except PoolBusy as error:
            self._exhausted = True
            raise Unavailable(_BUSY.format(size=self._pool.size), code="database_busy") from error
        except psycopg.Error as error:
            if is_disk_full(error):
                self._log_disk_full(error)
            elif is_away(error) and not is_timed_out(error):
                self._outage.begin(error)
            raise
        self._outage.end()

    def _log_disk_full(self, error: psycopg.Error) -> None:
        """Now and then: the server is there, so this is no outage that has an end to be told."""
        if time.monotonic() - self._disk_full_logged_s > _LOG_INTERVAL_S:
            self._disk_full_logged_s = time.monotonic()
            _log.error(
                "disk_full", error=format_error(error), needs="make room on the database's disk; reads still pass"
            )

    def read_usage(self) -> PoolUsage:
        """How the pool is used at this moment."""
        return self._pool.read_usage()

    def wait_until_ready(self, stop: Stop) -> None:
        """Returns once the server answers and has this version's schema, or at a stop. Requests are served from then on."""
        wait_for_schema(self._url, stop)
        self._ready = not stop.requested

    def close(self) -> None:
        """Closes all connections, those under a request too: it gets an error instead of an answer that may never come."""
        self._pool.close()
