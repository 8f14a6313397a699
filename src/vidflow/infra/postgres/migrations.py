"""Brings a database to the schema that this version of vidflow needs: plain SQL files in order, applied by yoyo.

What yoyo lacks is here: one migrates at a time (an advisory lock, which a dead process cannot keep), a file that was
changed after it was applied is told by its checksum instead of being believed, a statement that gets no lock in time makes way
and is tried again, and files come in two phases: `pre` only adds, and is applied before the roles are replaced; `post` takes away
what the older roles needed, and is applied behind them.
"""

from __future__ import annotations

import datetime
import getpass
import hashlib
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

import psycopg
from psycopg import errors

from vidflow.domain.errors import SetupError, Unavailable
from vidflow.infra.postgres.connection import RESPONSE_TIMEOUT_S, Connection, connect, connected, require_direct
from vidflow.infra.postgres.errors import is_away, is_conflict
from vidflow.infra.process.stopping import Stop
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.outage import postgres_outage, require_postgres

Phase = Literal["pre", "post", "all"]
LOCK_WAIT_S: Final = 0.5
"""How long a statement waits for a lock: what comes behind it, reads too, waits as long."""
PAUSE_S: Final = 1.0
ATTEMPTS: Final = 60
SCHEMA_POLL_S = 0.3
GROUP_ROLES: Final = ("vidflow_api", "vidflow_relay", "vidflow_orchestrator", "vidflow_inbox")
"""The group roles of sql/roles.sql, one for each process."""
_log = log("migrations")
LOCK = 0x76_69_64_66_6C_6F_77  # "vidflow": the key of the advisory lock under which one process migrates


def sql_folder() -> Path:
    """Where the SQL files are: inside the installed package, or beside src/ in a checkout."""
    packed = Path(__file__).parents[2] / "sql"
    return packed if packed.is_dir() else Path(__file__).parents[4] / "sql"


def files() -> dict[str, Path]:
    """The migrations by name, in their order; schema.sql, which is for reading, is none of them."""
    return {path.stem: path for path in sorted(sql_folder().glob("[0-9]*.sql"))}


def migrate(url: str, notify: Callable[[str], None], phase: Phase = "all") -> None:
    """Applies what is missing of the phase.

    Raises SetupError where an applied file was changed since, or the other phase comes first; Unavailable without a server, or
    where a lock is not to be had.
    """
    import yoyo  # noqa: PLC0415 - the roles wait for the schema and migrate nothing

    with _locked(url) as connection:
        missing = filter_by_phase(list_pending_migrations(connection), phase)
        if not missing:
            return
        backend = yoyo.get_backend(_yoyo_url(url))
        backend.get_log_data = _log_data
        try:
            migrations = yoyo.read_migrations(str(sql_folder())).filter(lambda migration: migration.id in missing)
            unapplied = backend.to_apply(migrations)
            for migration in migrations:
                # A death between the two steps leaves a file applied and its checksum unwritten: then only that is made good.
                if migration in unapplied:
                    notify(f"applying {migration.id}")
                    _apply(backend, migration, notify)
                connection.execute(
                    "INSERT INTO schema_checksums (name, sha256) VALUES (%s, %s)",
                    (migration.id, _sha256(files()[migration.id])),
                )
        finally:
            backend.connection.close()
        grant_existing_roles(connection)


def grant_existing_roles(tables: Connection) -> None:
    """Grant the group roles what this schema needs (sql/roles.sql), where somebody has made them: `vidflow db roles`."""
    [(there,)] = tables.execute(
        "SELECT count(*) FROM pg_roles WHERE rolname = ANY (%s)", (list(GROUP_ROLES),)
    ).fetchall()
    if there == len(GROUP_ROLES):
        tables.execute((sql_folder() / "roles.sql").read_bytes())


def _log_data(migration: Any = None, operation: str = "apply") -> dict[str, Any]:  # noqa: ANN401 - yoyo has no types
    """What yoyo writes to its log of a step. Its own version asks DNS for this machine's name."""
    return {
        "id": str(uuid.uuid4()),
        "migration_id": migration.id if migration else None,
        "migration_hash": migration.hash if migration else None,
        "username": getpass.getuser(),
        "hostname": socket.gethostname(),
        "created_at_utc": datetime.datetime.now(datetime.UTC).replace(tzinfo=None),
        "operation": operation,
    }


def _apply(backend: Any, migration: Any, say: Callable[[str], None]) -> None:  # noqa: ANN401 - yoyo has no types
    """Applies one file. Where it gets no lock in time it makes way for those who waited behind it, and tries again."""
    for _ in range(ATTEMPTS):
        try:
            backend.apply_one(migration)
        except psycopg.Error as error:
            if not (isinstance(error, errors.LockNotAvailable) or is_conflict(error)):
                raise
            say(f"{migration.id} waits for a lock")
            time.sleep(PAUSE_S)
        else:
            return
    raise Unavailable(
        f"{migration.id} got no lock in {ATTEMPTS} attempts: a transaction stays open on a table that it changes; look for it in "
        "pg_stat_activity, end it, then run this again"
    )


def filter_by_phase(missing: list[str], phase: Phase) -> list[str]:
    """What is to be applied now of the missing files. Raises SetupError where a file of the other phase comes before one of it."""
    if phase == "all":
        return missing
    wanted = [name for name in missing if _phase(name) == phase]
    others = [name for name in missing if _phase(name) != phase]
    if wanted and others and others[0] < wanted[-1]:
        other = "post" if phase == "pre" else "pre"
        raise SetupError(
            f"{others[0]} comes before {wanted[-1]}: apply it first (vidflow db migrate --phase {other}), once all roles are of a "
            "version that allows it"
        )
    return wanted


def _phase(name: str) -> str:
    return name.rpartition(".")[2]


def list_pending_migrations(connection: psycopg.Connection) -> list[str]:
    """The names of the migrations that this database lacks, in order."""
    applied = _read_applied(connection)
    for name, path in files().items():
        if name in applied and applied[name] != _sha256(path):
            raise SetupError(
                f"migration {name} was changed after it was applied; restore the file and add a new migration instead"
            )
    return [name for name in files() if name not in applied]


def list_migrations(url: str) -> list[tuple[str, bool]]:
    """Each migration and whether it is applied. Raises Unavailable without a server."""
    with connected(url, name="vidflow db status") as connection:
        missing = set(list_pending_migrations(connection))
    return [(name, name not in missing) for name in files()]


def wait_for_schema(url: str, stop: Stop) -> None:
    """Returns once the database has what this version needs, or a stop is requested; says once what it waits for.

    What a newer version has added does not matter, and what this one is to take away may be there still. Raises SetupError
    without a URL, or where waiting does not help: a wrong password, a newer version that has taken away what this one needs.
    """
    require_postgres(url)
    outage = postgres_outage()
    told = False
    while not stop.requested:
        try:
            with connect(url, name="vidflow waits for the schema", response_timeout_s=RESPONSE_TIMEOUT_S) as connection:
                outage.end()
                missing = [name for name in list_pending_migrations(connection) if _phase(name) == "pre"]
                _refuse_newer(connection)
        except psycopg.Error as error:
            if not is_away(error):
                raise
            outage.begin(error)
        else:
            if not missing:
                return
            if not told:
                _log.warning("schema_missing", migrations=", ".join(missing), needs="run: vidflow db migrate")
                told = True
        stop.wait(SCHEMA_POLL_S)


def _refuse_newer(connection: psycopg.Connection) -> None:
    newer = [name for name in _read_applied(connection) if name not in files() and _phase(name) == "post"]
    if newer:
        raise SetupError(f"the database is of a newer version ({', '.join(sorted(newer))}): upgrade this process")


def _read_applied(connection: psycopg.Connection) -> dict[str, str]:
    if connection.execute("SELECT to_regclass('schema_checksums')").fetchone() == (None,):
        return {}
    return dict(connection.execute("SELECT name, sha256 FROM schema_checksums").fetchall())


@contextmanager
def _locked(url: str) -> Iterator[Connection]:
    with connected(url, name="vidflow db migrate") as connection:
        require_direct(connection, "a migration")
        # A statement that waits for the lock would hold a snapshot, for which an index that is built CONCURRENTLY waits.
        while connection.execute("SELECT pg_try_advisory_lock(%s)", (LOCK,)).fetchone() == (False,):
            time.sleep(SCHEMA_POLL_S)
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
    """The URL as yoyo takes it. Each file gets a connection of its own, so what is to hold in it stands in the URL."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    query["options"] = f"{query.get('options', '')} -c lock_timeout={int(LOCK_WAIT_S * 1000)}".strip()
    return parts._replace(scheme="postgresql+psycopg", query=urlencode(query)).geturl()
