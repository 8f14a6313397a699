"""Migrate a database to the schema of this version, by plain SQL files that yoyo applies in order.

This module adds to yoyo: an advisory lock, so that one process migrates at a time and a dead one keeps no lock; checksums, so that a file
that was changed after it was applied is reported; a lock timeout with retries; and two phases. `pre` files only add to the schema and are
applied before the roles are upgraded. `post` files remove what older roles needed and are applied after the upgrade.
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
"""How long a statement waits for a lock. Statements queued after it, including reads, wait as long."""
PAUSE_S: Final = 1.0
ATTEMPTS: Final = 60
SCHEMA_POLL_S = 0.3
GROUP_ROLES: Final = ("vidflow_api", "vidflow_relay", "vidflow_orchestrator", "vidflow_inbox")
"""Group roles of sql/roles.sql, one for each process."""
_log = log("migrations")
LOCK = 0x76_69_64_66_6C_6F_77  # "vidflow": the key of the advisory lock under which one process migrates


def sql_folder() -> Path:
    """Return the folder of the SQL files: inside the installed package, or next to src/ in a checkout."""
    installed = Path(__file__).parents[2] / "sql"
    return installed if installed.is_dir() else Path(__file__).parents[4] / "sql"


def files() -> dict[str, Path]:
    """Return the migrations by name, in order. roles.sql and schema.sql are not migrations."""
    return {path.stem: path for path in sorted(sql_folder().glob("[0-9]*.sql"))}


def migrate(url: str, notify: Callable[[str], None], phase: Phase = "all") -> None:
    """Apply the pending migrations of a phase, and report each one to `notify`.

    Raises SetupError if an applied file was changed or a file of the other phase has to be applied first, and Unavailable if the server is
    away or a lock cannot be acquired.
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
                # If an earlier run died between these two steps, the file is applied and only its checksum is missing.
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


def grant_existing_roles(connection: Connection) -> None:
    """Grant the group roles the privileges for this schema (sql/roles.sql), if `vidflow db roles` has created them."""
    [(count,)] = connection.execute(
        "SELECT count(*) FROM pg_roles WHERE rolname = ANY (%s)", (list(GROUP_ROLES),)
    ).fetchall()
    if count == len(GROUP_ROLES):
        connection.execute((sql_folder() / "roles.sql").read_bytes())


def _log_data(migration: Any = None, operation: str = "apply") -> dict[str, Any]:  # noqa: ANN401 - yoyo has no types
    """Return a row for yoyo's log table. Replaces yoyo's own version, which looks up this machine's name in DNS."""
    return {
        "id": str(uuid.uuid4()),
        "migration_id": migration.id if migration else None,
        "migration_hash": migration.hash if migration else None,
        "username": getpass.getuser(),
        "hostname": socket.gethostname(),
        "created_at_utc": datetime.datetime.now(datetime.UTC).replace(tzinfo=None),
        "operation": operation,
    }


def _apply(backend: Any, migration: Any, notify: Callable[[str], None]) -> None:  # noqa: ANN401 - yoyo has no types
    """Apply one file. If it gets no lock in time, let the statements queued after it run, then try again."""
    for _ in range(ATTEMPTS):
        try:
            backend.apply_one(migration)
        except psycopg.Error as error:
            if not (isinstance(error, errors.LockNotAvailable) or is_conflict(error)):
                raise
            notify(f"{migration.id} waits for a lock")
            time.sleep(PAUSE_S)
        else:
            return
    raise Unavailable(
        f"Migration {migration.id} got no lock in {ATTEMPTS} attempts, because of an open transaction on a table that it changes. Find "
        "the transaction in pg_stat_activity and end it, then migrate again."
    )


def filter_by_phase(missing: list[str], phase: Phase) -> list[str]:
    """Return the pending migrations of a phase. Raises SetupError if one of the other phase has to be applied before them."""
    if phase == "all":
        return missing
    selected = [name for name in missing if _phase(name) == phase]
    others = [name for name in missing if _phase(name) != phase]
    if selected and others and others[0] < selected[-1]:
        other = "post" if phase == "pre" else "pre"
        raise SetupError(
            f"Migration {others[0]} comes before {selected[-1]}. Apply it first (vidflow db migrate --phase {other}), once all roles run a "
            "version that allows it."
        )
    return selected


def _phase(name: str) -> str:
    return name.rpartition(".")[2]


def list_pending_migrations(connection: psycopg.Connection) -> list[str]:
    """Return the names of the pending migrations, in order. Raises SetupError if an applied file was changed."""
    applied = _read_applied(connection)
    for name, path in files().items():
        if name in applied and applied[name] != _sha256(path):
            raise SetupError(
                f"Migration {name} was changed after it was applied. Restore the file and add a new migration instead."
            )
    return [name for name in files() if name not in applied]


def list_migrations(url: str) -> list[tuple[str, bool]]:
    """Return each migration and whether it is applied. Raises Unavailable if the server is away."""
    with connected(url, name="vidflow db status") as connection:
        missing = set(list_pending_migrations(connection))
    return [(name, name not in missing) for name in files()]


def wait_for_schema(url: str, stop: Stop) -> None:
    """Return once the database has the schema that this version needs, or a stop is requested. Log once which migrations are missing.

    Migrations of a newer version are allowed, and this version's `post` migrations may be pending. Raises SetupError without a URL, or if
    waiting does not help: a wrong password, or a newer version's `post` migration, which removed what this version needs.
    """
    require_postgres(url)
    outage = postgres_outage()
    logged = False
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
            if not logged:
                _log.warning("schema_missing", migrations=", ".join(missing), needs="run: vidflow db migrate")
                logged = True
        stop.wait(SCHEMA_POLL_S)


def _refuse_newer(connection: psycopg.Connection) -> None:
    newer = [name for name in _read_applied(connection) if name not in files() and _phase(name) == "post"]
    if newer:
        raise SetupError(
            f"The database has migrations of a newer version ({', '.join(sorted(newer))}). Upgrade this process."
        )


def _read_applied(connection: psycopg.Connection) -> dict[str, str]:
    if connection.execute("SELECT to_regclass('schema_checksums')").fetchone() == (None,):
        return {}
    return dict(connection.execute("SELECT name, sha256 FROM schema_checksums").fetchall())


@contextmanager
def _locked(url: str) -> Iterator[Connection]:
    with connected(url, name="vidflow db migrate") as connection:
        require_direct(connection, "A migration")
        # Poll for the lock: a waiting statement would hold a snapshot, and CREATE INDEX CONCURRENTLY waits for older snapshots.
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
    """Return the URL for yoyo, which opens a connection for each file. The lock timeout is therefore set in the URL."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    query["options"] = f"{query.get('options', '')} -c lock_timeout={int(LOCK_WAIT_S * 1000)}".strip()
    return parts._replace(scheme="postgresql+psycopg", query=urlencode(query)).geturl()
