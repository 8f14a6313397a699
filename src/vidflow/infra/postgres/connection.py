"""Connections to PostgreSQL, made the one right way. No statements; what an error means is postgres_errors.py.

Nothing here or elsewhere depends on the state of a session, so that a pooler may give each transaction another one (PgBouncer
in transaction mode): no prepared statements, no SET but SET LOCAL, no session locks, no LISTEN.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, LiteralString, TypeVar

import psycopg
from psycopg import errors
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.rows import TupleRow

from vidflow.domain.errors import SetupError, Unavailable
from vidflow.infra.postgres.errors import (
    build_connection_error,
    is_away,
    is_conflict,
    is_data_error,
    is_disk_full,
    is_timed_out,
    is_tls,
    require_version,
)
from vidflow.infra.postgres.tls import diagnose_certificate
from vidflow.infra.process.stopping import Stop
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.outage import format_error, postgres_outage, require_postgres

__all__ = [
    "FENCED_RESPONSE_TIMEOUT_S",
    "FENCED_TIMEOUT_SETTING",
    "RESPONSE_TIMEOUT_S",
    "Connection",
    "ReconnectingConnection",
    "connect",
    "connected",
    "database_name",
    "fenced_transaction",
    "is_away",
    "is_behind_pooler",
    "is_closed_by_server",
    "is_conflict",
    "is_data_error",
    "is_disk_full",
    "is_responsive",
    "is_timed_out",
    "require_direct",
    "run_with_reconnect",
    "split_secrets",
    "transaction",
]  # fmt: skip

Connection = psycopg.Connection[TupleRow]
RV = TypeVar("RV")

FENCED_TRANSACTION_S: Final = 1.0
"""The longest transaction of a lease's holder: below the lease's 2 s, or a frozen holder would block every takeover."""
FENCED_RESPONSE_TIMEOUT_S: Final = 3.0
"""For a lease and for fenced writes: by then the server has ended the transaction, and only its word was lost."""
RESPONSE_TIMEOUT_S: Final = 15.0
"""The network may lose an answer without a word; where that does not show otherwise, a role goes on after this time."""
FENCED_TIMEOUT_SETTING: Final[LiteralString] = f"transaction_timeout = {int(FENCED_TRANSACTION_S * 1000)}"
_LAST_PORT: Final = 65535
_UNREADABLE_URL: Final = (
    "VIDFLOW_DATABASE_URL (or --database-url) cannot be read: write postgresql://host:port/database with user:password@ before "
    "the host, and %40 for an @ in the password and the like"
)
_LOG_INTERVAL_S: Final = 60.0
_LOOK_S: Final = 0.1
_CONNECTION: Final[dict[str, Any]] = {
    "connect_timeout": 5,
    # A server that vanished without a word is noticed within some seconds rather than hours. A system that has no
    # TCP_USER_TIMEOUT (macOS) ignores it and has the keepalives.
    "keepalives": 1,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
    # Of several servers, the one that can be written to; after a fail-over never the old one.
    "target_session_attrs": "read-write",
}
_log = log("postgres")


class _LimitedConnection(psycopg.Connection[TupleRow]):
    """A connection that does not wait for an answer for ever."""

    response_timeout_s: float | None = None

    def wait(self, gen: PQGen[RV], interval: float = _LOOK_S, timeout: float | None = None) -> RV:
        """As psycopg's; where it gives no limit of its own, raise OperationalError once this connection's has passed."""
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, self.response_timeout_s)
        except errors._WaitTimeout as error:  # noqa: SLF001 - psycopg has no other name for it
            self.close()
            raise psycopg.OperationalError(f"no answer within {self.response_timeout_s:g} s") from error


def connect(url: str, *, name: str, database: str | None = None, response_timeout_s: float | None = None) -> Connection:
    """Return a connection in autocommit mode, seen as `name` in pg_stat_activity.

    `database`: another one of the same server. `response_timeout_s`: a statement whose answer takes longer fails, and the connection
    is closed; None: no limit.
    Raises psycopg.OperationalError where the server is away (`is_away`), SetupError where waiting does not help: a wrong user,
    password, database or setting, a certificate that is not accepted, or a server that is too old.
    """
    conninfo = _conninfo(url, name, database)
    try:
        connection = _LimitedConnection.connect(conninfo, autocommit=True, prepare_threshold=None)
    except psycopg.Error as error:
        if is_away(error):
            raise
        raise build_connection_error(error, diagnose_certificate(conninfo, error) if is_tls(error) else None) from error
    try:
        require_version(connection.info.server_version, f"{connection.info.host}:{connection.info.port}")
    except SetupError:
        connection.close()
        raise
    connection.response_timeout_s = response_timeout_s
    return connection


@contextmanager
def connected(url: str, *, name: str, database: str | None = None) -> Iterator[Connection]:
    """A connection for a command, which does not wait. Raises Unavailable where the server is away, or goes away in the body."""
    try:
        with connect(url, name=name, database=database) as connection:
            yield connection
    except psycopg.Error as error:
        if is_timed_out(error):
            raise Unavailable(
                f"PostgreSQL ended a statement by a time limit of its own: {format_error(error)}; raise the limit for this user, or "
                "try again when the server is less busy"
            ) from error
        if not is_away(error):
            raise
        raise Unavailable(
            f"PostgreSQL does not answer: {format_error(error)}; start it, or set VIDFLOW_DATABASE_URL (or --database-url)"
        ) from error


@contextmanager
def transaction(connection: Connection, *settings: LiteralString) -> Iterator[Connection]:
    """Run the body in a transaction with settings of its own (`name = value`), begun in one round trip.

    Works on a pooled session too: SET LOCAL ends with the transaction.
    """
    connection.execute("; SET LOCAL ".join(["BEGIN", *settings]))
    try:
        yield connection
    except BaseException:
        if not connection.closed and connection.pgconn.status == ConnStatus.OK:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextmanager
def fenced_transaction(connection: Connection, *settings: LiteralString) -> Iterator[Connection]:
    """A transaction of a lease's holder: it does not outlive FENCED_TRANSACTION_S, whatever becomes of this process."""
    with transaction(connection, FENCED_TIMEOUT_SETTING, *settings):
        yield connection


def is_closed_by_server(connection: Connection) -> bool:
    """Whether the server has closed an idle connection. Asks the socket alone; a silent loss does not show (`is_responsive`)."""
    if connection.closed:
        return True
    waiting = select.poll()
    waiting.register(connection.fileno(), select.POLLIN)
    return bool(waiting.poll(0))


def is_responsive(connection: Connection, within_s: float) -> bool:
    """Whether an idle connection answers an empty statement in time. One that does not must be closed: its answer may still come.

    libpq itself would wait without a limit where the network drops packets silently.
    """
    pgconn, until_s = connection.pgconn, time.monotonic() + within_s
    try:
        pgconn.send_query(b"")
        ok = True
        while True:
            while pgconn.flush() or pgconn.is_busy():
                waiting = select.poll()
                waiting.register(pgconn.socket, select.POLLIN)
                if not waiting.poll(max(0.0, until_s - time.monotonic()) * 1000):
                    return False
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                return ok and pgconn.status == ConnStatus.OK
            ok = ok and result.status == ExecStatus.EMPTY_QUERY
    except (psycopg.Error, OSError):
        return False


def is_behind_pooler(connection: Connection) -> bool:
    """Whether a pooler stands before the server: it makes up the process id that a client is told at the start."""
    [(pid,)] = connection.execute("SELECT pg_backend_pid()").fetchall()
    return int(pid) != connection.info.backend_pid


def require_direct(connection: Connection, what: str) -> None:
    """Raise SetupError where a pooler stands between: `what` needs a session of its own."""
    if is_behind_pooler(connection):
        raise SetupError(
            f"{what} needs a connection to PostgreSQL itself, and VIDFLOW_DATABASE_URL (or --database-url) leads to a pooler such as "
            "PgBouncer: give the server's own host and port"
        )


class ReconnectingConnection:
    """One connection for fenced writes, made again where the server has closed it. Not for several threads at once."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._connection: Connection | None = None

    def connection(self) -> Connection:
        """The connection. A lost one is replaced before a statement is sent, so nothing fails by a loss between two writes."""
        if self._connection is not None and is_closed_by_server(self._connection):
            self._connection.close()
            self._connection = None
        if self._connection is None:
            self._connection = connect(self._url, name=self._name, response_timeout_s=FENCED_RESPONSE_TIMEOUT_S)
        return self._connection

    def close(self) -> None:
        """Close it, if there is one."""
        if self._connection is not None:
            self._connection.close()


def split_secrets(url: str, database: str | None = None) -> tuple[str, dict[str, str]]:
    """The URL as PostgreSQL's own programs take it: a connection string that may be seen, and the environment with its secrets.

    `database`: another one of the same server.
    """
    parts = _parts(url) | ({"dbname": database} if database else {})
    secrets = {"PGPASSWORD": parts.pop("password", None), "PGSSLPASSWORD": parts.pop("sslpassword", None)}
    return make_conninfo(**parts), {name: str(value) for name, value in secrets.items() if value}


def database_name(url: str) -> str:
    """The name of the database that the URL is for: libpq takes the user's where it names none."""
    parts = _parts(url)
    return str(parts.get("dbname") or parts.get("user") or "postgres")


def run_with_reconnect(
    url: str,
    *,
    name: str,
    stop: Stop,
    pause_s: float,
    body: Callable[[Connection], None],
    response_timeout_s: float = RESPONSE_TIMEOUT_S,
) -> None:
    """Runs the body on a connection until a stop is requested, again and again where the server goes away. For a loop.

    A connection that is found lost is no outage yet: the server may have been back for long. One that cannot be made is.
    Any other error is the caller's.
    """
    outage, was_there, said_s = postgres_outage(), False, float("-inf")
    while not stop.requested:
        try:
            with connect(url, name=name, response_timeout_s=response_timeout_s) as connection:
                outage.end()
                was_there = True
                body(connection)
        except psycopg.Error as error:
            if not is_away(error):
                raise
            if not was_there:
                outage.begin(error)
            elif is_timed_out(error) and time.monotonic() - said_s > _LOG_INTERVAL_S:
                said_s = time.monotonic()
                _log.warning(
                    "timed_out",
                    connection=name,
                    error=format_error(error),
                    needs="trying again; look at pg_stat_activity",
                )
            was_there = False
            stop.wait(pause_s)


def _conninfo(url: str, name: str, database: str | None = None) -> str:
    """The URL with what every connection has, as far as the URL does not set it itself."""
    other = {"dbname": database} if database else {}
    return make_conninfo(**{**_CONNECTION, "application_name": name, **_parts(url), **other})


def _parts(url: str) -> dict[str, Any]:
    """What the URL says. Raises SetupError, in our words alone: the library's repeat a part of it, which may be the password."""
    require_postgres(url)
    try:
        parts = conninfo_to_dict(url)
        ports = [int(port) for port in str(parts.get("port", "")).split(",") if port]
    except (psycopg.ProgrammingError, ValueError):
        raise SetupError(_UNREADABLE_URL) from None
    if not all(0 < port <= _LAST_PORT for port in ports):
        raise SetupError(_UNREADABLE_URL)
    return parts
