"""A backup of the database in a folder, proven by counting: how it is made, checked and restored. Not when, nor where it is kept.

The folder holds what pg_dump writes, and a manifest: each file's checksum, and how many rows of each table the dump holds. A
restore goes into a database beside the one that is asked for, is counted there, and takes its place in one
transaction: whoever is connected sees the old tables or all of the new ones, never a half.
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
    """A file of the dump."""

    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a backup holds. `tables`: the rows of each table, `migrations`: the schema, `database_bytes`: the size on the server."""

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
        """Of all tables."""
        return sum(self.tables.values())


def write_backup(url: str, folder: Path, *, replace: bool, notify: Notify) -> Manifest:
    """Writes a backup into the folder, which is whole or not there. Roles may run on meanwhile.

    Raises UserError where the folder holds something (with `replace`: something that is no backup), SetupError without
    pg_dump, Unavailable without a server, VidflowError where pg_dump fails.
    """
    require_empty_target(folder, replace=replace)
    try:
        with connected(url, name="vidflow db backup") as tables, _create_staging_folder(folder) as made:
            manifest = _write_dump_and_manifest(tables, url, made, notify)
            _move_into_place(made, folder)
    except OSError as error:
        raise UserError(
            f"the backup cannot be written into {folder}: {error}; give a folder that can be made"
        ) from error
    return manifest


def _write_dump_and_manifest(tables: Connection, url: str, staging_folder: Path, say: Notify) -> Manifest:
    """Writes dump and manifest into the folder `staging_folder`.

    The rows are counted in the dump's files: the server keeps old rows for the dump alone, not for the counting too.
    """
    require_direct(tables, "a backup")
    about = _read_server_info(tables)
    before = set(_tables(tables))
    say(f"dumping {_size(about['database_bytes'])} of PostgreSQL {about['server']}")
    _dump(tables, url, about["server_major"], staging_folder / DUMP, say)
    say("counting the rows in the dump's files")
    rows = dump_rows.count(staging_folder / DUMP, about["server_major"])
    for schema, table in before & set(_tables(tables)):
        if f"{schema}.{table}" not in rows:
            raise VidflowError(
                f"pg_dump left out the table {schema}.{table}; see that the user may read it, then try again"
            )
    say("reading the dump's files for their checksums")
    manifest = Manifest(
        format=FORMAT, vidflow=__version__, tables=rows, files=_files(staging_folder / DUMP), **about
    )  # fmt: skip
    _write(staging_folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    return manifest


def check_files(folder: Path) -> Manifest:
    """What the backup holds, each file compared with its checksum. Raises UserError where it is none, or is damaged."""
    manifest = read_manifest(folder)
    there = _files(folder / DUMP)
    for name, expected in manifest.files.items():
        if there.get(name) != expected:
            state = "is not as it was written" if name in there else "is missing"
            raise UserError(f"the backup in {folder} is damaged: its file {DUMP}/{name} {state}; take another backup")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a backup. Raises UserError where the folder holds none that can be read."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise UserError(f"{folder} holds no backup of `vidflow db backup`: {error}") from error
    if manifest.format != FORMAT:
        raise UserError(
            f"the backup in {folder} has format {manifest.format}; this version reads {FORMAT}: use the vidflow that made it"
        )
    return manifest


def verify(url: str, folder: Path, notify: Notify) -> Manifest:
    """Restores the backup into a database of its own beside the URL's, counts, and drops it again.

    Raises as `restore` does.
    """
    manifest = check_files(folder)
    with temporary_database.create_temporary_database(url) as name:
        _restore_into(url, name, folder, manifest, notify)
    return manifest


def restore(url: str, folder: Path, *, replace: bool, notify: Notify) -> tuple[Manifest, str | None]:
    """Puts the backup in the place of the URL's database; returns what it held, and under which name the former one is kept.

    An empty one is not kept. Raises UserError where the backup is none or damaged, or the database holds tables (without
    `replace`); SetupError where the user may make no database, Unavailable without a server, VidflowError where a count differs.
    """
    manifest = check_files(folder)
    with connected(url, name="vidflow db restore") as tables:
        require_direct(tables, "a restore")
        before = count_rows(tables)
    if before and not replace:
        raise UserError(
            f"the database {database_name(url)} holds {len(before)} tables with {sum(before.values())} rows: give an empty one, "
            "or --replace (it is then kept under another name)"
        )
    with temporary_database.create_temporary_database(url) as name:
        _restore_into(url, name, folder, manifest, notify)
        notify(f"putting it in the place of {database_name(url)}")
        kept = temporary_database.replace_database(url, name, keep=bool(before))
    return manifest, kept


def count_rows(tx: Connection) -> dict[str, int]:
    """How many rows each table has, of all that are not the system's own."""
    return {f"{schema}.{table}": _count(tx, schema, table) for schema, table in _tables(tx)}


def _tables(tx: Connection) -> list[tuple[str, str]]:
    """Schema and name of each; of a partitioned table its partitions, which hold the rows."""
    return [
        (str(schema), str(table))
        for schema, table in tx.execute(
            """
            SELECT n.nspname, c.relname
              FROM pg_class c
              JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
               AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')  -- an extension brings its own
             ORDER BY 1, 2
            """
        )
    ]


def _count(tx: Connection, schema: str, table: str) -> int:
    [(count,)] = tx.execute(SQL("SELECT count(*) FROM {}").format(Identifier(schema, table))).fetchall()
    return int(count)


def require_empty_target(folder: Path, *, replace: bool) -> None:
    """Raises UserError where the folder holds something that a backup is not to overwrite."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder for the backup")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not replace:
        raise UserError(f"the folder {folder} is not empty: give another, or --replace where it holds an older backup")
    read_manifest(folder)


@contextmanager
def _create_staging_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the one that is asked for, on its file system; gone at the end, unless it was moved."""
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.absolute().parent))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _move_into_place(staging_folder: Path, folder: Path) -> None:
    """Moves what was made to its place; an older backup goes once the new one is whole."""
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
    known = tx.execute("SELECT to_regclass('schema_checksums') IS NOT NULL").fetchone() == (True,)
    names = tx.execute("SELECT name FROM schema_checksums ORDER BY name").fetchall() if known else []
    return {
        "server": server, "server_major": major, "made_at": made_at, "database_bytes": size,
        "migrations": [name for (name,) in names],
    }  # fmt: skip


def _disable_timeouts(tables: Connection) -> None:
    """Lifts the limits that a server may have for everybody's queries."""
    for limit in ("statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"):
        tables.execute(SQL("SET {} = 0").format(Identifier(limit)))


def _dump(tx: Connection, url: str, major: int, into: Path, say: Notify) -> None:
    pg_dump = pg_programs.find_program("pg_dump", major)
    arguments = ["--format=directory", f"--jobs={_JOBS}", "--verbose", f"--file={into}"]
    pg_programs.run_program(pg_dump, arguments, url, _progress_callback(say, "dumped", len(_tables(tx))))


def _restore_into(url: str, name: str, folder: Path, manifest: Manifest, say: Notify) -> None:
    """Restores into an empty database of the server and compares the counts."""
    say(f"restoring {manifest.rows} rows of {manifest.made_at}")
    pg_restore = pg_programs.find_program("pg_restore", manifest.server_major)
    arguments = [f"--jobs={_JOBS}", "--verbose", "--exit-on-error", "--no-owner", "--no-privileges"]
    pg_programs.run_program(
        pg_restore,
        [*arguments, folder / DUMP],
        url,
        _progress_callback(say, "restored", len(manifest.tables)),
        database=name,
    )
    with connected(url, name="vidflow db restore", database=name) as tables:
        say("counting the rows")
        _disable_timeouts(tables)
        _compare(manifest.tables, count_rows(tables))
        grant_existing_roles(tables)
        tables.execute("ANALYZE")


def _compare(expected: Mapping[str, int], found: Mapping[str, int]) -> None:
    for table in sorted(expected.keys() | found.keys()):
        if expected.get(table) != found.get(table):
            raise VidflowError(
                f"the backup does not come back whole: {table} had {expected.get(table, 'no')} rows and has "
                f"{found.get(table, 'no')}; nothing was replaced, take another backup"
            )


def _progress_callback(say: Notify, done: str, tables: int) -> Callable[[str], None]:
    """Tells of each table that is done."""
    seen: list[str] = []

    def hear(line: str) -> None:
        for name in _TABLE_DONE.findall(line):
            seen.append(name)
            say(f"{done} {len(seen)} of {tables} tables: {name}")

    return hear


def _files(folder: Path) -> dict[str, StoredFile]:
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
    """Makes the names in a folder last; the files' contents are pg_dump's to sync."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB" if size_bytes < 1e9 else f"{size_bytes / 1e9:.1f} GB"
