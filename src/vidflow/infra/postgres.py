"""Connections to PostgreSQL, made the one right way, and what its errors mean. No statements."""

from __future__ import annotations

import logging
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from vidflow.domain.errors import SetupError, Unavailable
from vidflow.infra.outage import in_one_line, postgres_outage, require_postgres
from vidflow.infra.stopping import Stop

Connection = psycopg.Connection[TupleRow]
Pool = ConnectionPool[Connection]

FENCED_TRANSACTION_S: Final = 1.0
"""The longest transaction of a lease's holder: below the lease's 2 s, or a frozen holder would block every takeover."""

_LAST_PORT: Final = 65535
_UNREADABLE_URL: Final = (
    "VIDFLOW_DATABASE_URL (or --database-url) cannot be read: write postgresql://host:port/database with user:password@ before "
    "the host, and %40 for an @ in the password and the like"
)
_POOL_TIMEOUT_S: Final = 5.0
# A pool doubles its pauses while it reconnects; given up early, the next caller starts again without one.
_POOL_RECONNECT_S: Final = 3.0
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
# Connection exceptions; insufficient resources (disk, memory, connections); system errors.
_AWAY_CLASSES: Final = frozenset({"08", "53", "58"})
_AWAY_STATES: Final = frozenset({
    "25006",  # read-only: the server is not the primary any more
    "25P03", "25P04",  # idle in transaction or transaction too long: the server has closed the connection
    "57P01", "57P02", "57P03", "57P05",  # shut down by an administrator, crashed, starting up, idle
})  # fmt: skip
_REFUSED_CLASSES: Final = frozenset({"22", "23"})
_PASSING: Final = (
    "starting up", "shutting down", "recovery", "too many clients", "reserved", "not accepting",
    "not currently accepting", "dropped or renamed",  # a restored database takes the place of another
)  # fmt: skip
_CONFLICTS: Final = frozenset({"40001", "40P01"})


def connect(url: str, *, name: str, fenced: bool = False, database: str | None = None) -> Connection:
    """A connection in autocommit mode, seen as `name` in pg_stat_activity; for a transaction, `with it.transaction()`.

    `database`: another one of the same server.
    `fenced`: for the writes of a lease's holder; no transaction of it outlives FENCED_TRANSACTION_S.
    Raises psycopg.OperationalError where the server is away (`is_away`), SetupError where waiting does not help: it lets
    nobody in by this name or password, has no such database, or the URL is none.
    """
    try:
        connection: Connection = psycopg.Connection.connect(
            _conninfo(url, name, database), autocommit=True, prepare_threshold=None
        )
    except psycopg.OperationalError as error:
        if is_away(error):
            raise
        raise SetupError(
            f"PostgreSQL lets nobody in by VIDFLOW_DATABASE_URL (or --database-url): {in_one_line(error)}"
        ) from error
    if fenced:
        connection.execute(f"SET transaction_timeout = {int(FENCED_TRANSACTION_S * 1000)}")
    return connection


@contextmanager
def connected(url: str, *, name: str, database: str | None = None) -> Iterator[Connection]:
    """A connection for a command, which does not wait. Raises Unavailable where the server is away, or goes away in the body."""
    try:
        with connect(url, name=name, database=database) as connection:
            yield connection
    except psycopg.Error as error:
        if not is_away(error):
            raise
        raise Unavailable(
            f"PostgreSQL does not answer: {in_one_line(error)}; start it, or set VIDFLOW_DATABASE_URL (or --database-url)"
        ) from error


def for_programs(url: str, database: str | None = None) -> tuple[str, dict[str, str]]:
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


def while_there(url: str, *, name: str, stop: Stop, pause_s: float, body: Callable[[Connection], None]) -> None:
    """Runs the body on a connection until a stop is requested, again and again where the server goes away. For a loop.

    A connection that is found lost is no outage yet: the server may have been back for long. One that cannot be made is.
    Any other error is the caller's.
    """
    outage, was_there = postgres_outage(), False
    while not stop.requested:
        try:
            with connect(url, name=name) as connection:
                outage.back()
                was_there = True
                body(connection)
        except psycopg.Error as error:
            if not is_away(error):
                raise
            if not was_there:
                outage.away(error)
            was_there = False
            stop.wait(pause_s)


def pool(url: str, *, name: str, size: int) -> Pool:
    """An open pool of at most `size` connections in autocommit mode; a server that is away shows at the first use.

    Raises SetupError where the URL is none.
    """
    # It says each failed attempt; who uses the pool says once what that means.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    return ConnectionPool(
        _conninfo(url, name),
        connection_class=Connection,
        kwargs={"autocommit": True},
        min_size=min(2, size),
        max_size=size,
        name=name,
        timeout=_POOL_TIMEOUT_S,
        reconnect_timeout=_POOL_RECONNECT_S,
        check=_check,
        open=True,
    )


def is_away(error: BaseException) -> bool:
    """Whether the server is away for now (lost, restarting, read-only, out of room), so that waiting helps."""
    if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | psycopg.InternalError):
        return False
    state = error.sqlstate
    if state is None:
        return not isinstance(error, psycopg.InternalError) and not _never_let_in(error)
    return state in _AWAY_STATES or state[:2] in _AWAY_CLASSES


def is_disk_full(error: BaseException) -> bool:
    """Whether the server has no room to store more (53100): it answers, and reads still pass."""
    return isinstance(error, psycopg.errors.DiskFull)


def is_refused(error: BaseException) -> bool:
    """Whether PostgreSQL refused the data itself (SQLSTATE classes 22 and 23): the same again is refused again.

    What the driver refuses to send (a NUL in a text, half a surrogate pair) is refused data too.
    """
    if isinstance(error, psycopg.DataError | UnicodeEncodeError):
        return True
    return isinstance(error, psycopg.Error) and (error.sqlstate or "")[:2] in _REFUSED_CLASSES


def is_conflict(error: BaseException) -> bool:
    """Whether two transactions got into each other's way (40001, 40P01): the same again may well pass."""
    return isinstance(error, psycopg.Error) and error.sqlstate in _CONFLICTS


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


def _never_let_in(error: psycopg.Error) -> bool:
    """Whether the server refused the connection for good: a password or a database name that waiting does not mend.

    libpq gives no SQLSTATE for a connection that was not made, only the server's sentence, which may be translated.
    """
    connection = error.pgconn
    return connection is not None and not _starting(str(error)) and "FATAL" in str(error)


def _starting(text: str) -> bool:
    return any(words in text for words in _PASSING)


def _check(connection: Connection) -> None:
    """Asks a pooled connection for a sign of life only where its socket has something to read: a lost one's has.

    Costs microseconds where a question to the server at each use would cost a round trip, and a look at each return a
    thread of the pool. A server that has become a standby says so unasked: reads would succeed there, writes never.
    """
    waiting = select.poll()
    waiting.register(connection.fileno(), select.POLLIN)
    if waiting.poll(0):
        ConnectionPool.check_connection(connection)
    if connection.info.parameter_status("in_hot_standby") == "on":
        connection.close()
        raise psycopg.OperationalError("the server has become a standby")
