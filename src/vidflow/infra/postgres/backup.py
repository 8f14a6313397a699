"""Back up the database to a folder, verify the backup and restore it.

The folder holds the output of pg_dump and a manifest with the checksum of each file and the number of rows of each table. A restore
goes into a temporary database, whose rows are counted before it replaces the target database in one transaction. Clients see either
all of the old tables or all of the new ones.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from psycopg.sql import SQL, Identifier

from vidflow import __version__
from vidflow.domain.errors import UserError, VidflowError
from vidflow.infra.postgres import client_programs as pg_programs
from vidflow.infra.postgres import dump_rows, temporary_database
from vidflow.infra.postgres.connection import Connection, connected, database_name, require_direct
from vidflow.infra.postgres.migrations import grant_existing_roles

Notify = Callable[[str], None]

MANIFEST: Final = "manifest.json"
DUMP: Final = "dump"
FORMAT: Final = 1
_JOBS: Final = min(4, os.cpu_count() or 1)
_TABLE_DONE: Final = re.compile(r"finished item \d+ TABLE DATA (\S+)")


class StoredFile(msgspec.Struct, frozen=True):
    """Size and checksum of a file of the dump."""

    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """The contents of a backup.

    `tables` is the number of rows of each table, `migrations` are the names of the applied migrations, and `database_bytes` is the size
    of the database on the server.
    """

    format: int
    vidflow: str
    server: str
    server_major: int
    made_at: str
    database_bytes: int
    migrations: list[str]
    tables: dict[str, int]
    files: dict[str, StoredFile]

    @property
    def rows(self) -> int:
        """Return the number of rows of all tables."""
        return sum(self.tables.values())


def write_backup(url: str, folder: Path, *, replace: bool, notify: Notify) -> Manifest:
    """Write a backup to `folder`, completely or not at all. Roles may keep running.

    Raises UserError if the folder is not empty (with `replace`: if it holds something other than a backup), SetupError if no suitable
    pg_dump is installed, Unavailable if the server is away, and VidflowError if pg_dump fails.
    """
    require_empty_target(folder, replace=replace)
    try:
        with (
            connected(url, name="vidflow db backup") as connection,
            _create_staging_folder(folder) as staging_folder,
        ):
            manifest = _write_dump_and_manifest(connection, url, staging_folder, notify)
            _move_into_place(staging_folder, folder)
    except OSError as error:
        raise UserError(
            f"Cannot write the backup to {folder}: {error}. Choose a folder that can be created."
        ) from error
    return manifest


def _write_dump_and_manifest(connection: Connection, url: str, staging_folder: Path, notify: Notify) -> Manifest:
    """Write the dump and the manifest to `staging_folder`.

    Rows are counted in the dump's files. Counting them on the server in the dump's snapshot would keep dead rows there for longer.
    """
    require_direct(connection, "A backup")
    server_info = _read_server_info(connection)
    tables_before = set(_list_tables(connection))
    notify(f"dumping {_format_size(server_info['database_bytes'])} of PostgreSQL {server_info['server']}")
    _run_pg_dump(connection, url, server_info["server_major"], staging_folder / DUMP, notify)
    notify("counting rows in the dump")
    rows = dump_rows.count(staging_folder / DUMP, server_info["server_major"])
    for schema, table in tables_before & set(_list_tables(connection)):
        if f"{schema}.{table}" not in rows:
            raise VidflowError(
                f"pg_dump left out the table {schema}.{table}. Make sure that the user may read it, then try again."
            )
    notify("computing checksums")
    manifest = Manifest(
        format=FORMAT, vidflow=__version__, tables=rows, files=_checksum_files(staging_folder / DUMP), **server_info
    )  # fmt: skip
    _write(staging_folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    return manifest


def check_files(folder: Path) -> Manifest:
    """Compare each file of a backup with its checksum and return the manifest. Raises UserError if there is no backup or it is damaged."""
    manifest = read_manifest(folder)
    found = _checksum_files(folder / DUMP)
    for name, expected in manifest.files.items():
        if found.get(name) != expected:
            state = "differs from its checksum" if name in found else "is missing"
            raise UserError(f"The backup in {folder} is damaged: {DUMP}/{name} {state}. Take another backup.")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a backup. Raises UserError if the folder holds no readable manifest."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise UserError(f"{folder} holds no backup written by `vidflow db backup`: {error}") from error
    if manifest.format != FORMAT:
        raise UserError(
            f"The backup in {folder} has format {manifest.format}, but this version reads format {FORMAT}. "
            f"Use vidflow {manifest.vidflow}, which wrote it."
        )
    return manifest


def verify(url: str, folder: Path, notify: Notify) -> Manifest:
    """Restore the backup into a temporary database on the URL's server, count the rows and drop the database.

    Raises the same errors as `restore`.
    """
    manifest = check_files(folder)
    with temporary_database.create_temporary_database(url) as name:
        _restore_into(url, name, folder, manifest, notify)
    return manifest


def restore(url: str, folder: Path, *, replace: bool, notify: Notify) -> tuple[Manifest, str | None]:
    """Replace the URL's database with the backup. Return the manifest and the name under which the old database is kept.

    An empty database is not kept; the name is then None. Raises UserError if there is no backup or it is damaged, or if the database
    holds tables and `replace` is False; SetupError if the user may not create databases; Unavailable if the server is away; and
    VidflowError if a row count differs.
    """
    manifest = check_files(folder)
    with connected(url, name="vidflow db restore") as connection:
        require_direct(connection, "A restore")
        rows_before = count_rows(connection)
    if rows_before and not replace:
        raise UserError(
            f"The database {database_name(url)} holds {len(rows_before)} tables with {sum(rows_before.values())} rows. Use an empty "
            "database, or add --replace, which keeps the old database under another name."
        )
    with temporary_database.create_temporary_database(url) as name:
        _restore_into(url, name, folder, manifest, notify)
        notify(f"replacing the database {database_name(url)}")
        kept = temporary_database.replace_database(url, name, keep=bool(rows_before))
    return manifest, kept


def count_rows(tx: Connection) -> dict[str, int]:
    """Return the number of rows of each table, without those of the system and of extensions."""
    return {f"{schema}.{table}": _count_table(tx, schema, table) for schema, table in _list_tables(tx)}


def _list_tables(tx: Connection) -> list[tuple[str, str]]:
    """Return the schema and name of each table. A partitioned table is listed by its partitions, which hold the rows."""
    return [
        (str(schema), str(table))
        for schema, table in tx.execute(
            """
            SELECT n.nspname, c.relname
              FROM pg_class c
              JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
               AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')  -- created by an extension
             ORDER BY 1, 2
            """
        )
    ]


def _count_table(tx: Connection, schema: str, table: str) -> int:
    [(count,)] = tx.execute(SQL("SELECT count(*) FROM {}").format(Identifier(schema, table))).fetchall()
    return int(count)


def require_empty_target(folder: Path, *, replace: bool) -> None:
    """Raise UserError if the folder holds something that a backup must not overwrite."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file. Choose a folder for the backup.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not replace:
        raise UserError(
            f"The folder {folder} is not empty. Choose another folder, or add --replace to overwrite an older backup."
        )
    read_manifest(folder)


@contextmanager
def _create_staging_folder(folder: Path) -> Iterator[Path]:
    """Create a folder next to `folder`, on the same file system. It is removed at the end unless it was moved."""
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    staging_folder = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.absolute().parent))
    try:
        yield staging_folder
    finally:
        shutil.rmtree(staging_folder, ignore_errors=True)


def _move_into_place(staging_folder: Path, folder: Path) -> None:
    """Move the finished backup into place, then delete an older backup."""
    target = folder.absolute()
    if target.exists() and any(target.iterdir()):
        with _create_staging_folder(target) as aside:
            target.rename(aside / "older")
            staging_folder.rename(target)
    else:
        staging_folder.rename(target)
    _sync_folder(target.parent)


def _read_server_info(tx: Connection) -> dict[str, Any]:
    [(server, major, made_at, size)] = tx.execute(
        """
        SELECT current_setting('server_version'), current_setting('server_version_num')::int / 10000,
               to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
               pg_database_size(current_database())
        """
    ).fetchall()
    migrated = tx.execute("SELECT to_regclass('schema_checksums') IS NOT NULL").fetchone() == (True,)
    names = tx.execute("SELECT name FROM schema_checksums ORDER BY name").fetchall() if migrated else []
    return {
        "server": server, "server_major": major, "made_at": made_at, "database_bytes": size,
        "migrations": [name for (name,) in names],
    }  # fmt: skip


def _disable_timeouts(connection: Connection) -> None:
    """Disable timeouts that the server may set for all sessions."""
    for setting in ("statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"):
        connection.execute(SQL("SET {} = 0").format(Identifier(setting)))


def _run_pg_dump(tx: Connection, url: str, major: int, target: Path, notify: Notify) -> None:
    pg_dump = pg_programs.find_program("pg_dump", major)
    arguments = ["--format=directory", f"--jobs={_JOBS}", "--verbose", f"--file={target}"]
    pg_programs.run_program(pg_dump, arguments, url, _progress_callback(notify, "dumped", len(_list_tables(tx))))


def _restore_into(url: str, name: str, folder: Path, manifest: Manifest, notify: Notify) -> None:
    """Restore into the empty database `name` and compare the row counts."""
    notify(f"restoring {manifest.rows} rows of {manifest.made_at}")
    pg_restore = pg_programs.find_program("pg_restore", manifest.server_major)
    arguments = [f"--jobs={_JOBS}", "--verbose", "--exit-on-error", "--no-owner", "--no-privileges"]
    pg_programs.run_program(
        pg_restore,
        [*arguments, folder / DUMP],
        url,
        _progress_callback(notify, "restored", len(manifest.tables)),
        database=name,
    )
    with connected(url, name="vidflow db restore", database=name) as connection:
        notify("counting rows")
        _disable_timeouts(connection)
        _compare_counts(manifest.tables, count_rows(connection))
        grant_existing_roles(connection)
        connection.execute("ANALYZE")


def _compare_counts(expected: Mapping[str, int], found: Mapping[str, int]) -> None:
    for table in sorted(expected.keys() | found.keys()):
        if expected.get(table) != found.get(table):
            raise VidflowError(
                f"The restored data is incomplete: {table} had {expected.get(table, 'no')} rows and has "
                f"{found.get(table, 'no')}. Nothing was replaced. Take another backup."
            )


def _progress_callback(notify: Notify, verb: str, table_count: int) -> Callable[[str], None]:
    """Return a callback for the program's output lines that reports each finished table."""
    finished: list[str] = []

    def on_line(line: str) -> None:
        for name in _TABLE_DONE.findall(line):
            finished.append(name)
            notify(f"{verb} {len(finished)} of {table_count} tables: {name}")

    return on_line


def _checksum_files(folder: Path) -> dict[str, StoredFile]:
    if not folder.is_dir():
        return {}
    return {path.name: _checksum_file(path) for path in sorted(folder.iterdir())}


def _checksum_file(path: Path) -> StoredFile:
    with path.open("rb") as file:
        return StoredFile(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the directory entries durable. pg_dump syncs the contents of its files itself."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _format_size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB" if size_bytes < 1e9 else f"{size_bytes / 1e9:.1f} GB"
