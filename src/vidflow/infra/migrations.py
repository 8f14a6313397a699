"""Brings a database to the schema that this version of vidflow needs: plain SQL files in order, applied by yoyo.

What yoyo lacks is here: one migrates at a time (an advisory lock, which a dead process cannot keep), and a file that was
changed after it was applied is told by its checksum instead of being believed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from vidflow.domain.errors import SetupError
from vidflow.infra.outage import postgres_outage, require_postgres
from vidflow.infra.postgres import connect, connected, is_away
from vidflow.infra.stopping import Stop
from vidflow.infra.telemetry import log

LOOK_S = 0.3
_log = log("migrations")
LOCK = 0x76_69_64_66_6C_6F_77  # "vidflow": the key of the advisory lock under which one process migrates


def sql_folder() -> Path:
    """Where the SQL files are: inside the installed package, or beside src/ in a checkout."""
    packed = Path(__file__).parent.parent / "sql"
    return packed if packed.is_dir() else Path(__file__).parents[3] / "sql"


def files() -> dict[str, Path]:
    """The migrations by name, in their order; schema.sql, which is for reading, is none of them."""
    return {path.stem: path for path in sorted(sql_folder().glob("[0-9]*.sql"))}


def migrate(url: str, say: Callable[[str], None]) -> None:
    """Applies what is missing. Raises SetupError where an applied file was changed since, Unavailable without a server."""
    import yoyo  # noqa: PLC0415 - the roles wait for the schema and migrate nothing

    with _locked(url) as connection:
        missing = pending(connection)
        if not missing:
            return
        backend = yoyo.get_backend(_yoyo_url(url))
        try:
            migrations = yoyo.read_migrations(str(sql_folder())).filter(lambda migration: migration.id in missing)
            unapplied = backend.to_apply(migrations)
            for migration in migrations:
                # A death between the two steps leaves a file applied and its checksum unwritten: then only that is made good.
                if migration in unapplied:
                    say(f"applying {migration.id}")
                    backend.apply_one(migration)
                connection.execute(
                    "INSERT INTO schema_checksums (name, sha256) VALUES (%s, %s)",
                    (migration.id, _sha256(files()[migration.id])),
                )
        finally:
            backend.connection.close()


def pending(connection: psycopg.Connection) -> list[str]:
    """The names of the migrations that this database lacks, in order."""
    applied = _applied(connection)
    for name, path in files().items():
        if name in applied and applied[name] != _sha256(path):
            raise SetupError(
                f"migration {name} was changed after it was applied; restore the file and add a new migration instead"
            )
    return [name for name in files() if name not in applied]


def status(url: str) -> list[tuple[str, bool]]:
    """Each migration and whether it is applied. Raises Unavailable without a server."""
    with connected(url, name="vidflow db status") as connection:
        missing = set(pending(connection))
    return [(name, name not in missing) for name in files()]


def wait_for_schema(url: str, stop: Stop) -> None:
    """Returns once the database is there with this version's schema, or a stop is requested; says once what it waits for.

    Raises SetupError without a URL, or where waiting does not help (a wrong password).
    """
    require_postgres(url)
    outage = postgres_outage()
    told = False
    while not stop.requested:
        try:
            with connect(url, name="vidflow waits for the schema") as connection:
                outage.back()
                missing = pending(connection)
        except psycopg.Error as error:
            if not is_away(error):
                raise
            outage.away(error)
        else:
            if not missing:
                return
            if not told:
                _log.warning("schema_missing", migrations=", ".join(missing), needs="run: vidflow db migrate")
                told = True
        stop.wait(LOOK_S)


def _applied(connection: psycopg.Connection) -> dict[str, str]:
    if connection.execute("SELECT to_regclass('schema_checksums')").fetchone() == (None,):
        return {}
    return dict(connection.execute("SELECT name, sha256 FROM schema_checksums").fetchall())


@contextmanager
def _locked(url: str) -> Iterator[psycopg.Connection]:
    with connected(url, name="vidflow db migrate") as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
        connection.execute(
            """
            CREATE TABLE IF NOT EXISTS schema_checksums (
                name       text        PRIMARY KEY,
                sha256     text        NOT NULL,
                applied_at timestamptz NOT NULL DEFAULT now()
            )
            """
        )
        yield connection


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _yoyo_url(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://", 1).replace("postgres://", "postgresql+psycopg://", 1)
