"""Classify PostgreSQL errors: wait, retry, give up, or tell the operator what to correct."""

from __future__ import annotations

import re
from typing import Final

import psycopg

from vidflow.domain.errors import SetupError
from vidflow.infra.telemetry.outage import TIMED_OUT_STATES, format_error

OLDEST_VERSION: Final = 180000
"""Oldest supported server, as `server_version_num`. uuidv7() was added in PostgreSQL 18."""
FIRST_OF_TWO_PARTS: Final = 100000
"""PostgreSQL 10, as `server_version_num`. Earlier versions have three parts."""

# Connection exceptions; insufficient resources (disk, memory, connections); system errors.
_AWAY_CLASSES: Final = frozenset({"08", "53", "58"})
_AWAY_STATES: Final = frozenset({
    "25006",  # read_only_sql_transaction: the server is no longer the primary
    "25P03",  # idle_in_transaction_session_timeout: the server has closed the connection
    "57P01", "57P02", "57P03", "57P05",  # admin_shutdown, crash_shutdown, cannot_connect_now, idle_session_timeout
}) | TIMED_OUT_STATES  # fmt: skip
_DATA_ERROR_CLASSES: Final = frozenset({"22", "23"})
_CONFLICTS: Final = frozenset({"40001", "40P01"})
_TRANSIENT_TEXTS: Final = (
    "starting up", "shutting down", "recovery", "too many clients", "reserved", "not accepting",
    "not currently accepting", "dropped or renamed",  # `vidflow db restore` renames databases
    # PgBouncer, while its server is away.
    "login has been failing", "cannot connect to server", "query_wait_timeout", "no more connections allowed",
    "client_login_timeout", "server conn crashed",
)  # fmt: skip
# libpq's own messages are not translated. A connection lost during the handshake ("SSL SYSCALL", "EOF") means that the server is away.
_TLS: Final = re.compile(
    r"certificate|private key|does not support SSL|SSL error: (?!.*eof)|SSL was required|sslmode",
    re.IGNORECASE,
)
_INVALID_CONNINFO: Final = re.compile(r"^connection is bad: (?!connection to server|.*no error details)")


def is_away(error: BaseException) -> bool:
    """Return whether waiting helps: the server is unreachable, restarting, read-only or out of resources, or a server timeout expired."""
    if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | psycopg.InternalError):
        return False
    state = error.sqlstate
    if state is None:
        return not isinstance(error, psycopg.InternalError) and not _is_permanent(error)
    return state in _AWAY_STATES or state[:2] in _AWAY_CLASSES


def is_timed_out(error: BaseException) -> bool:
    """Return whether a server timeout expired: `statement_timeout`, `transaction_timeout` or `lock_timeout`."""
    return isinstance(error, psycopg.Error) and error.sqlstate in TIMED_OUT_STATES


def is_disk_full(error: BaseException) -> bool:
    """Return whether the server's disk is full (53100). Reads still succeed."""
    return isinstance(error, psycopg.errors.DiskFull)


def is_data_error(error: BaseException) -> bool:
    """Return whether the data itself was rejected, so that a retry fails too.

    True for SQLSTATE classes 22 and 23, and for values that the driver cannot send: text with a NUL or with a lone surrogate.
    """
    if isinstance(error, psycopg.DataError | UnicodeEncodeError):
        return True
    return isinstance(error, psycopg.Error) and (error.sqlstate or "")[:2] in _DATA_ERROR_CLASSES


def is_conflict(error: BaseException) -> bool:
    """Return whether a serialization failure (40001) or a deadlock (40P01) occurred, so that a retry may succeed."""
    return isinstance(error, psycopg.Error) and error.sqlstate in _CONFLICTS


def is_tls(error: psycopg.Error) -> bool:
    """Return whether a connection failed because of TLS or a certificate. The server is not away then."""
    return error.sqlstate is None and _TLS.search(str(error)) is not None


def build_connection_error(error: psycopg.Error, detail: str | None = None) -> SetupError:
    """Return a one-line error for a connection attempt that cannot succeed by waiting. `detail` says why the certificate was rejected."""
    text = format_error(error).removeprefix("connection failed: ").removeprefix("connection is bad: ")
    if is_tls(error):
        reason = f" ({detail})" if detail else ""
        return SetupError(
            f"TLS to PostgreSQL failed: {text}{reason}. Check sslmode and sslrootcert in VIDFLOW_DATABASE_URL (or --database-url), "
            "and the issuer, host name and dates of the server's certificate."
        )
    if _INVALID_CONNINFO.search(str(error)) or isinstance(error, psycopg.ProgrammingError):
        return SetupError(
            f"VIDFLOW_DATABASE_URL (or --database-url) has a setting that libpq does not accept: {text}. Correct it."
        )
    return SetupError(
        f"PostgreSQL rejected the connection of VIDFLOW_DATABASE_URL (or --database-url): {text}. Check the user, password and "
        "database, and the server's pg_hba.conf, which may require sslmode=require."
    )


def require_version(version: int, server: str) -> None:
    """Raise SetupError if the server is older than vidflow supports. `version` is its `server_version_num`."""
    if version < OLDEST_VERSION:
        minor = f"{version % 10000}" if version >= FIRST_OF_TWO_PARTS else f"{version // 100 % 100}.{version % 100}"
        raise SetupError(
            f"PostgreSQL at {server} is version {version // 10000}.{minor}; vidflow needs {OLDEST_VERSION // 10000} or "
            "newer. Upgrade the server, or set VIDFLOW_DATABASE_URL (or --database-url) to a newer one."
        )


def _is_permanent(error: psycopg.Error) -> bool:
    """Return whether a connection was rejected permanently.

    libpq provides no SQLSTATE for a failed connection attempt, only a message. The server's part of it may be translated.
    """
    text = str(error)
    if error.pgconn is None or any(words in text for words in _TRANSIENT_TEXTS):
        return False
    return "FATAL" in text or is_tls(error) or _INVALID_CONNINFO.search(text) is not None
