"""A database beside another one of the same server, for as long as it is needed, and how it takes the other's place."""

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

_LEAVE_S: Final = 10.0
_LOOK_S: Final = 0.02
_LONGEST: Final = 40  # of 63: what PostgreSQL leaves of a name, less what is put behind it


@contextmanager
def create_temporary_database(url: str) -> Iterator[str]:
    """An empty database with the locale and owner of the URL's; dropped at the end, unless it took the other's place.

    Raises SetupError where the user may make none.
    """
    name = f"vidflow_restore_{uuid.uuid4().hex[:12]}"
    with _translate_privilege_errors(), _maintenance(url) as server:
        server.execute(_creation(server, database_name(url), name))
        try:
            yield name
        finally:
            server.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))


def replace_database(url: str, name: str, *, keep: bool) -> str | None:
    """Gives the database the name of the URL's, in one transaction, while all who are connected to that one are sent away.

    Returns the name under which the former one is kept; None where it is not to be.
    """
    former = database_name(url)
    aside = f"{former[:_LONGEST]}_before_{time.strftime('%Y%m%d_%H%M%S', time.gmtime())}"
    with _translate_privilege_errors(), _maintenance(url) as server:
        _allow_connections(server, former, "false")  # or they would be back within the time that a renaming takes
        try:
            _terminate_sessions(server, former)
            with server.transaction():
                server.execute(SQL("ALTER DATABASE {} RENAME TO {}").format(Identifier(former), Identifier(aside)))
                server.execute(SQL("ALTER DATABASE {} RENAME TO {}").format(Identifier(name), Identifier(former)))
        except psycopg.Error:
            _allow_connections(server, former, "true")
            raise
        if keep:
            _allow_connections(server, aside, "true")
            return aside
        server.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(aside)))
    return None


@contextmanager
def _translate_privilege_errors() -> Iterator[None]:
    try:
        yield
    except errors.InsufficientPrivilege as error:
        raise SetupError(
            f"the user may not make, rename or drop a database beside the other ({format_error(error)}): give it CREATEDB "
            "(ALTER ROLE), and take the user that owns the database"
        ) from error


@contextmanager
def _maintenance(url: str) -> Iterator[Connection]:
    """A connection to a database that is none of ours: one that has sessions can neither be renamed nor dropped."""
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
    until_s = time.monotonic() + _LEAVE_S
    while True:
        left = server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
        ).fetchall()
        if not left:
            return
        if time.monotonic() > until_s:
            raise Unavailable(f"{len(left)} sessions do not leave the database {name}; end them, then try again")
        time.sleep(_LOOK_S)
