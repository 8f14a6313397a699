"""The api's database access: pooled connections, once the schema exists. The statements are in infra/postgres."""

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
"""How long a request waits for a connection before it gets a 503. Meanwhile other requests may find that theirs are lost."""
BUSY_TIMEOUT_S: Final = 0.05
"""How long it waits if the previous request waited in vain, so that many requests get their 503 at once, not one after another."""
STATEMENT_TIMEOUT_S: Final = 5.0
"""Longer than any statement of a request takes on a healthy server."""
_LOG_INTERVAL_S: Final = 60.0
_NOT_READY: Final = "The database is unavailable, or lacks this version's schema (the operator runs: vidflow db migrate). Try again soon."
_BUSY: Final = (
    "All {size} connections to the database are busy. Try again soon, or ask the operator to raise --pool-size."
)
_log = log("api")


class Database:
    """A connection pool shared by all requests. Until the schema exists, it gives out no connection."""

    def __init__(self, url: str, size: int) -> None:
        self._url = url
        self._pool = Pool(url, name="vidflow api", size=size, statement_timeout_s=STATEMENT_TIMEOUT_S)
        self._outage = postgres_outage()
        self._exhausted = False
        self._disk_full_logged_s = float("-inf")
        self._ready = False

    @contextmanager
    def connection(self, timeout_s: float = CONNECTION_TIMEOUT_S) -> Iterator[Connection]:
        """Yield a connection in autocommit mode, and return it to the pool after the block.

        Raises Unavailable if the schema does not exist yet or all connections are busy, psycopg.Error if the server is away.
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
        """Log a full disk, at most once a minute. The server still answers, so this is not an outage whose end is logged."""
        if time.monotonic() - self._disk_full_logged_s > _LOG_INTERVAL_S:
            self._disk_full_logged_s = time.monotonic()
            _log.error(
                "disk_full", error=format_error(error), needs="make room on the database's disk; reads still work"
            )

    def read_usage(self) -> PoolUsage:
        """Return the pool's current usage."""
        return self._pool.read_usage()

    def wait_until_ready(self, stop: Stop) -> None:
        """Wait until the server answers and has this version's schema, or a stop is requested. From then on requests are served."""
        wait_for_schema(self._url, stop)
        self._ready = not stop.requested

    def close(self) -> None:
        """Close all connections, even those in use. Their requests get an error instead of waiting for a result that may never come."""
        self._pool.close()
