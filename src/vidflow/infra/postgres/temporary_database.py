"""Create a temporary database on a server, and replace another database with it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, LiteralString

import psycopg
from psycopg import errors
from psycopg.sql import SQL, Identifier

from vidflow.domain.errors import SetupError, Unavailable
from vidflow.infra.postgres.connection import Connection, connected, database_name
from vidflow.infra.telemetry.outage import format_error

_TERMINATE_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.02
_MAX_NAME_LENGTH: Final = 40  # leaves room for the suffix in PostgreSQL's limit of 63 bytes


@contextmanager
def create_temporary_database(url: str) -> Iterator[str]:
    """Create an empty database with the owner and locale of the URL's database and yield its name.

    It is dropped at the end unless `replace_database` has renamed it. Raises SetupError if the user may not create databases.
    """
    name = f"vidflow_restore_{uuid.uuid4().hex[:12]}"
    with _translate_privilege_errors(), _maintenance(url) as server:
        server.execute(_creation(server, database_name(url), name))
        try:
            yield name
        finally:
            server.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))


def replace_database(url: str, name: str, *, keep: bool) -> str | None:
    """Replace the URL's database with the database `name` in one transaction. Sessions of the replaced database are terminated.

    Return the name under which the replaced database is kept, or None if it was dropped because `keep` is False.
    """
    target = database_name(url)
    old_name = f"{target[:_MAX_NAME_LENGTH]}_before_{time.strftime('%Y%m%d_%H%M%S', time.gmtime())}"
    with _translate_privilege_errors(), _maintenance(url) as server:
        _allow_connections(server, target, "false")  # otherwise clients reconnect before the rename
        try:
            _terminate_sessions(server, target)
            with server.transaction():
                server.execute(SQL("ALTER DATABASE {} RENAME TO {}").format(Identifier(target), Identifier(old_name)))
                server.execute(SQL("ALTER DATABASE {} RENAME TO {}").format(Identifier(name), Identifier(target)))
        except psycopg.Error:
            _allow_connections(server, target, "true")
            raise
        if keep:
            _allow_connections(server, old_name, "true")
            return old_name
        server.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(old_name)))
    return None


@contextmanager
def _translate_privilege_errors() -> Iterator[None]:
    try:
        yield
    except errors.InsufficientPrivilege as error:
        raise SetupError(
            f"The user may not create, rename or drop databases ({format_error(error)}). Use the user that owns the database and give "
            "it CREATEDB (ALTER ROLE)."
        ) from error


@contextmanager
def _maintenance(url: str) -> Iterator[Connection]:
    """Connect to another database of the server. A database with sessions can be neither renamed nor dropped."""
    other = "postgres" if database_name(url) != "postgres" else "template1"
    with connected(url, name="vidflow db restore", database=other) as server:
        yield server


def _creation(server: Connection, like: str, name: str) -> bytes:
    [(statement,)] = server.execute(
        """
        SELECT format(
                   'CREATE DATABASE %%I OWNER %%I TEMPLATE template0 ENCODING %%L LC_COLLATE %%L LC_CTYPE %%L LOCALE_PROVIDER %%s',
                   %(name)s::text, pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, datctype,
                   CASE datlocprovider WHEN 'i' THEN format('icu ICU_LOCALE %%L', datlocale)
                                       WHEN 'b' THEN format('builtin BUILTIN_LOCALE %%L', datlocale)
                                       ELSE 'libc' END)
          FROM pg_database
         WHERE datname = %(like)s
        """,
        {"name": name, "like": like},
    ).fetchall()
    return str(statement).encode()


def _allow_connections(server: Connection, name: str, allowed: LiteralString) -> None:
    server.execute(SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(Identifier(name), SQL(allowed)))


def _terminate_sessions(server: Connection, name: str) -> None:
    deadline_s = time.monotonic() + _TERMINATE_TIMEOUT_S
    while True:
        sessions = server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
        ).fetchall()
        if not sessions:
            return
        if time.monotonic() > deadline_s:
            raise Unavailable(
                f"{len(sessions)} sessions of the database {name} could not be terminated. End them, then try again."
            )
        time.sleep(_POLL_S)
