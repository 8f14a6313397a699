"""What an error of PostgreSQL means: wait, try again, give up, or tell the operator what to correct. No connections."""

from __future__ import annotations

import re
from typing import Final

import psycopg

from vidflow.domain.errors import SetupError
from vidflow.infra.telemetry.outage import TIMED_OUT_STATES, format_error

OLDEST_VERSION: Final = 180000
"""As `server_version_num` has it: uuidv7() came with 18."""
FIRST_OF_TWO_PARTS: Final = 100000
"""Before 10, a version had three parts."""

# Connection exceptions; insufficient resources (disk, memory, connections); system errors.
_AWAY_CLASSES: Final = frozenset({"08", "53", "58"})
_AWAY_STATES: Final = frozenset({
    "25006",  # read-only: the server is not the primary any more
    "25P03",  # idle in transaction: the server has closed the connection
    "57P01", "57P02", "57P03", "57P05",  # shut down by an administrator, crashed, starting up, idle
}) | TIMED_OUT_STATES  # fmt: skip
_DATA_ERROR_CLASSES: Final = frozenset({"22", "23"})
_CONFLICTS: Final = frozenset({"40001", "40P01"})
_TRANSIENT_TEXTS: Final = (
    "starting up", "shutting down", "recovery", "too many clients", "reserved", "not accepting",
    "not currently accepting", "dropped or renamed",  # a restored database takes the place of another
    # PgBouncer, which answers while the server behind it is away.
    "login has been failing", "cannot connect to server", "query_wait_timeout", "no more connections allowed",
    "client_login_timeout", "server conn crashed",
)  # fmt: skip
# Texts of libpq itself, which are not translated. A connection that ends during the handshake ("SSL SYSCALL", "EOF") is away.
_TLS: Final = re.compile(
    r"certificate|private key|does not support SSL|SSL error: (?!.*eof)|SSL was required|sslmode",
    re.IGNORECASE,
)
_INVALID_CONNINFO: Final = re.compile(r"^connection is bad: (?!connection to server|.*no error details)")


def is_away(error: BaseException) -> bool:
    """Whether waiting helps: the server is lost, restarting, read-only or out of room, or a time limit of its own ended the work."""
    if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | psycopg.InternalError):
        return False
    state = error.sqlstate
    if state is None:
        return not isinstance(error, psycopg.InternalError) and not _is_permanent(error)
    return state in _AWAY_STATES or state[:2] in _AWAY_CLASSES


def is_timed_out(error: BaseException) -> bool:
    """Whether a limit of the server (`statement_timeout`, `transaction_timeout`, `lock_timeout`) ended a statement."""
    return isinstance(error, psycopg.Error) and error.sqlstate in TIMED_OUT_STATES


def is_disk_full(error: BaseException) -> bool:
    """Whether the server has no room to store more (53100): it answers, and reads still pass."""
    return isinstance(error, psycopg.errors.DiskFull)


def is_data_error(error: BaseException) -> bool:
    """Whether PostgreSQL refused the data itself (SQLSTATE classes 22 and 23): the same again is refused again.

    What the driver refuses to send (a NUL in a text, half a surrogate pair) is refused data too.
    """
    if isinstance(error, psycopg.DataError | UnicodeEncodeError):
        return True
    return isinstance(error, psycopg.Error) and (error.sqlstate or "")[:2] in _DATA_ERROR_CLASSES


def is_conflict(error: BaseException) -> bool:
    """Whether two transactions got into each other's way (40001, 40P01): the same again may well pass."""
    return isinstance(error, psycopg.Error) and error.sqlstate in _CONFLICTS


def is_tls(error: psycopg.Error) -> bool:
    """Whether a connection failed for its encryption or a certificate: no server is away then."""
    return error.sqlstate is None and _TLS.search(str(error)) is not None


def build_connection_error(error: psycopg.Error, detail: str | None = None) -> SetupError:
    """The error of a connection that waiting does not help, in one line. `detail`: why the certificate was not accepted."""
    text = format_error(error).removeprefix("connection failed: ").removeprefix("connection is bad: ")
    if is_tls(error):
        reason = f" ({detail})" if detail else ""
        return SetupError(
            f"TLS to PostgreSQL failed: {text}{reason}. Check sslmode and sslrootcert in VIDFLOW_DATABASE_URL (or --database-url), "
            "and the server's certificate: its issuer, its host name and its dates"
        )
    if _INVALID_CONNINFO.search(str(error)) or isinstance(error, psycopg.ProgrammingError):
        return SetupError(
            f"VIDFLOW_DATABASE_URL (or --database-url) has a setting that libpq does not take: {text}. Correct it"
        )
    return SetupError(
        f"PostgreSQL lets nobody in by VIDFLOW_DATABASE_URL (or --database-url): {text}. Correct its user, password or database, "
        "or the server's pg_hba.conf (which may ask for sslmode=require)"
    )


def require_version(version: int, server: str) -> None:
    """Raise SetupError where the server is older than vidflow needs. `version` is its `server_version_num`."""
    if version < OLDEST_VERSION:
        minor = f"{version % 10000}" if version >= FIRST_OF_TWO_PARTS else f"{version // 100 % 100}.{version % 100}"
        raise SetupError(
            f"PostgreSQL at {server} is version {version // 10000}.{minor}; vidflow needs {OLDEST_VERSION // 10000} or "
            "newer. Upgrade the server, or set VIDFLOW_DATABASE_URL (or --database-url) to a newer one"
        )


def _is_permanent(error: psycopg.Error) -> bool:
    """Whether a connection was refused for good.

    libpq gives no SQLSTATE for a connection that was not made, only a sentence; the server's part of it may be translated.
    """
    text = str(error)
    if error.pgconn is None or any(words in text for words in _TRANSIENT_TEXTS):
        return False
    return "FATAL" in text or is_tls(error) or _INVALID_CONNINFO.search(text) is not None
