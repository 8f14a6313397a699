"""Connections to PostgreSQL and transactions on them. Errors are classified in errors.py.

No code depends on session state, so that PgBouncer in transaction mode may use a different session for each transaction: no SET other than
SET LOCAL, no session locks, no LISTEN, and prepared statements only on direct connections.
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
    "discard_plans",
    "fenced_transaction",
    "is_away",
    "is_behind_pooler",
    "is_closed_by_server",
    "is_conflict",
    "is_data_error",
    "is_disk_full",
    "is_responsive",
    "is_timed_out",
    "prepare_repeated_statements",
    "require_direct",
    "run_with_reconnect",
    "split_secrets",
    "transaction",
]  # fmt: skip

Connection = psycopg.Connection[TupleRow]
RV = TypeVar("RV")

FENCED_TRANSACTION_S: Final = 1.0
"""Longest transaction of a lease holder. Below the lease's 2 s, so that a frozen holder does not block a takeover."""
FENCED_RESPONSE_TIMEOUT_S: Final = 3.0
"""Response timeout for leases and fenced writes. By then the server has ended the transaction and only its answer was lost."""
RESPONSE_TIMEOUT_S: Final = 15.0
"""Response timeout of a role's other connections, for networks that drop packets silently."""
FENCED_TIMEOUT_SETTING: Final[LiteralString] = f"transaction_timeout = {int(FENCED_TRANSACTION_S * 1000)}"
_LAST_PORT: Final = 65535
_UNREADABLE_URL: Final = (
    "VIDFLOW_DATABASE_URL (or --database-url) cannot be parsed. Write postgresql://host:port/database with user:password@ before the "
    "host, and percent-encode special characters in the password (@ is %40)."
)
_LOG_INTERVAL_S: Final = 60.0
_WAIT_INTERVAL_S: Final = 0.1
_PREPARE_THRESHOLD: Final = 5
"""Executions of a statement before it is prepared."""
_DEFAULTS: Final[dict[str, Any]] = {
    "connect_timeout": 5,
    # Detect a silently vanished server within seconds instead of hours. Systems without TCP_USER_TIMEOUT (macOS) ignore it and
    # rely on the keepalives.
    "keepalives": 1,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
    # Use the primary if the URL names several servers, and never the old primary after a failover.
    "target_session_attrs": "read-write",
}
_log = log("postgres")


class _LimitedConnection(psycopg.Connection[TupleRow]):
    """A connection with an optional timeout for each response of the server."""

    response_timeout_s: float | None = None

    def wait(self, gen: PQGen[RV], interval: float = _WAIT_INTERVAL_S, timeout: float | None = None) -> RV:
        """Wait as psycopg does. Without `timeout`, raise OperationalError after this connection's response timeout."""
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, self.response_timeout_s)
        except errors._WaitTimeout as error:  # noqa: SLF001 - psycopg has no other name for it
            self.close()
            raise psycopg.OperationalError(f"no answer within {self.response_timeout_s:g} s") from error


def connect(url: str, *, name: str, database: str | None = None, response_timeout_s: float | None = None) -> Connection:
    """Return a connection in autocommit mode with `name` as its application name.

    `database` replaces the URL's database. A statement whose response takes longer than `response_timeout_s` fails and closes the
    connection; None means no limit.

    Raises psycopg.OperationalError if the server is away (see `is_away`), and SetupError if waiting does not help: a wrong user,
    password, database or setting, an untrusted certificate, or a server that is too old.
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
    """Connect for a command, which does not wait for the server. Raises Unavailable if the server is away or goes away in the body."""
    try:
        with connect(url, name=name, database=database) as connection:
            yield connection
    except psycopg.Error as error:
        if is_timed_out(error):
            raise Unavailable(
                f"PostgreSQL cancelled a statement after a timeout: {format_error(error)}. Raise the timeout for this user, or try "
                "again when the server is less busy."
            ) from error
        if not is_away(error):
            raise
        raise Unavailable(
            f"PostgreSQL does not answer: {format_error(error)}. Start it, or set VIDFLOW_DATABASE_URL (or --database-url)."
        ) from error


@contextmanager
def transaction(connection: Connection, *settings: LiteralString) -> Iterator[Connection]:
    """Run the body in a transaction with local settings (`name = value`). BEGIN and the settings take one round trip.

    SET LOCAL ends with the transaction, so this also works behind a pooler.
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
    """Run the body in a lease holder's transaction. The server ends it after FENCED_TRANSACTION_S, even if this process freezes."""
    with transaction(connection, FENCED_TIMEOUT_SETTING, *settings):
        yield connection


def is_closed_by_server(connection: Connection) -> bool:
    """Return whether the server has closed an idle connection, by looking at the socket only.

    A silently dropped connection is not detected; see `is_responsive`.
    """
    if connection.closed:
        return True
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLIN)
    return bool(poller.poll(0))


def is_responsive(connection: Connection, timeout_s: float) -> bool:
    """Return whether an idle connection answers an empty statement in time.

    Close the connection otherwise, since the answer may still arrive. libpq itself would wait without a limit if the network drops
    packets silently.
    """
    pgconn, deadline_s = connection.pgconn, time.monotonic() + timeout_s
    try:
        pgconn.send_query(b"")
        ok = True
        while True:
            while pgconn.flush() or pgconn.is_busy():
                poller = select.poll()
                poller.register(pgconn.socket, select.POLLIN)
                if not poller.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
                    return False
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                return ok and pgconn.status == ConnStatus.OK
            ok = ok and result.status == ExecStatus.EMPTY_QUERY
    except (psycopg.Error, OSError):
        return False


def is_behind_pooler(connection: Connection) -> bool:
    """Return whether the connection goes through a pooler. A pooler sends its clients a process id that is not the server's."""
    [(pid,)] = connection.execute("SELECT pg_backend_pid()").fetchall()
    return int(pid) != connection.info.backend_pid


def prepare_repeated_statements(connection: Connection) -> None:
    """Let the server keep the plans of repeated statements, unless the connection goes through a pooler.

    Use it only for statements that name their columns: the server rejects a prepared `SELECT *` after a migration has added a column.
    Call `discard_plans` each second.
    """
    if not is_behind_pooler(connection):
        connection.prepare_threshold = _PREPARE_THRESHOLD


def discard_plans(connection: Connection) -> None:
    """Let the server plan prepared statements again. It does not notice by itself that a small table has grown."""
    if connection.prepare_threshold is not None:
        connection.execute("DISCARD PLANS")


def require_direct(connection: Connection, operation: str) -> None:
    """Raise SetupError if the connection goes through a pooler, for an operation that needs its own session."""
    if is_behind_pooler(connection):
        raise SetupError(
            f"{operation} needs a direct connection to PostgreSQL, but VIDFLOW_DATABASE_URL (or --database-url) leads to a pooler such "
            "as PgBouncer. Use the server's own host and port."
        )


class ReconnectingConnection:
    """A connection for fenced writes that is replaced when the server has closed it. Not thread-safe."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._connection: Connection | None = None

    def connection(self) -> Connection:
        """Return the connection, replacing a lost one, so that a loss between two writes does not make the second one fail."""
        if self._connection is not None and is_closed_by_server(self._connection):
            self._connection.close()
            self._connection = None
        if self._connection is None:
            self._connection = connect(self._url, name=self._name, response_timeout_s=FENCED_RESPONSE_TIMEOUT_S)
        return self._connection

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


def split_secrets(url: str, database: str | None = None) -> tuple[str, dict[str, str]]:
    """Return a connection string without secrets, and the environment variables that pass the secrets to PostgreSQL's programs.

    `database` replaces the URL's database.
    """
    parts = _parse_url(url) | ({"dbname": database} if database else {})
    secrets = {"PGPASSWORD": parts.pop("password", None), "PGSSLPASSWORD": parts.pop("sslpassword", None)}
    return make_conninfo(**parts), {name: str(value) for name, value in secrets.items() if value}


def database_name(url: str) -> str:
    """Return the name of the URL's database. As in libpq, it defaults to the user name."""
    parts = _parse_url(url)
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
    """Run `body` on a connection until a stop is requested. Reconnect and run it again when the server goes away.

    A failed connection attempt is reported as an outage. A lost connection alone is not, since the server may be back already.
    Any other error is raised.
    """
    outage, was_connected, logged_s = postgres_outage(), False, float("-inf")
    while not stop.requested:
        try:
            with connect(url, name=name, response_timeout_s=response_timeout_s) as connection:
                outage.end()
                was_connected = True
                body(connection)
        except psycopg.Error as error:
            if not is_away(error):
                raise
            if not was_connected:
                outage.begin(error)
            elif is_timed_out(error) and time.monotonic() - logged_s > _LOG_INTERVAL_S:
                logged_s = time.monotonic()
                _log.warning(
                    "timed_out",
                    connection=name,
                    error=format_error(error),
                    needs="retrying; look for slow statements and locks in pg_stat_activity",
                )
            was_connected = False
            stop.wait(pause_s)


def _conninfo(url: str, name: str, database: str | None = None) -> str:
    """Return the URL as a connection string, with vidflow's settings as defaults."""
    override = {"dbname": database} if database else {}
    return make_conninfo(**{**_DEFAULTS, "application_name": name, **_parse_url(url), **override})


def _parse_url(url: str) -> dict[str, Any]:
    """Return the URL's parameters.

    The SetupError does not quote libpq's message, which repeats a part of the URL that may be the password.
    """
    require_postgres(url)
    try:
        parts = conninfo_to_dict(url)
        ports = [int(port) for port in str(parts.get("port", "")).split(",") if port]
    except (psycopg.ProgrammingError, ValueError):
        raise SetupError(_UNREADABLE_URL) from None
    if not all(0 < port <= _LAST_PORT for port in ports):
        raise SetupError(_UNREADABLE_URL)
    return parts
