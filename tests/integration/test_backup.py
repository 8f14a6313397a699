"""Backups are complete or do not exist, are verified by row counts, and are restored atomically."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec
import psycopg
import pytest
from tests.integration.cli_process import SECRET, run_command, running_command
from tests.integration.processes import descendants
from tests.integration.server_owner import wait_until
from tests.scopes import EVERYTHING

from vidflow.domain.errors import SetupError, UserError, VidflowError
from vidflow.domain.messages import Parameters
from vidflow.infra.postgres import backup, migrations, scenarios
from vidflow.infra.postgres import client_programs as pg_programs
from vidflow.infra.postgres.backup import MANIFEST, Manifest
from vidflow.infra.postgres.connection import connect

pytestmark = pytest.mark.long


def discard(_sentence: str) -> None:
    pass


def with_database(url: str, name: str) -> str:
    """Return the URL of another database on the same server."""
    return urlsplit(url)._replace(path=f"/{name}").geturl()


@pytest.fixture
def own_url(postgres_url: str) -> Iterator[str]:
    """The URL of a database with the current schema for one test, which may be replaced."""
    name = f"backup_{uuid4().hex[:8]}"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        migrations.migrate(with_database(postgres_url, name), discard)
        yield with_database(postgres_url, name)
        rows = server.execute("SELECT datname FROM pg_database WHERE datname LIKE %s", (f"{name}%",)).fetchall()
        for (database,) in rows:
            server.execute(f"DROP DATABASE {database} WITH (FORCE)")


def fill(url: str, count: int) -> None:
    new = scenarios.NewScenario(
        source="http://a/b.mp4", model="motion", model_sha256=None, fps="all", priority=0, parameters=Parameters()
    )
    with connect(url, name="test") as connection:
        for _ in range(count):
            scenario = scenarios.insert_scenario(connection, EVERYTHING, new)
            connection.execute(
                """
                INSERT INTO scenario_results (scenario_uuid, frame_number, epoch, pts, time_s, width, height, at, detections)
                SELECT %s, n, 1, n, n, 640, 480, '', '[]' FROM generate_series(0, 99) AS n
                """,
                (scenario.scenario_uuid,),
            )


def uuids(url: str) -> list[str]:
    with connect(url, name="test") as connection:
        return [
            uuid for (uuid,) in connection.execute("SELECT scenario_uuid::text FROM scenarios ORDER BY 1").fetchall()
        ]


def databases(url: str) -> set[str]:
    with connect(url, name="test") as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database").fetchall()}


def scratch_databases(url: str) -> set[str]:
    return {name for name in databases(url) if name.startswith("vidflow_restore_")}


def test_a_restore_brings_back_the_backup_and_nothing_later(own_url: str, tmp_path: Path) -> None:
    fill(own_url, 5)
    uuids_before = uuids(own_url)
    manifest = backup.write_backup(own_url, tmp_path / "b", replace=False, notify=discard)
    assert manifest.tables["public.scenarios"] == 5
    assert manifest.tables["public.scenario_history"] == 5
    fill(own_url, 2)
    restored, kept = backup.restore(own_url, tmp_path / "b", replace=True, notify=discard)
    assert restored == manifest
    assert uuids(own_url) == uuids_before
    assert kept is not None
    assert len(uuids(with_database(own_url, kept))) == 7
    with connect(own_url, name="test") as connection:
        assert migrations.list_pending_migrations(connection) == []
        assert backup.count_rows(connection) == manifest.tables
    assert scratch_databases(own_url) == set()


def test_the_counts_match_the_dumped_snapshot_during_concurrent_writes(own_url: str, tmp_path: Path) -> None:
    fill(own_url, 1)
    stop = threading.Event()

    def write() -> int:
        rounds = 0
        while not stop.is_set():
            fill(own_url, 1)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        try:
            backup.write_backup(own_url, tmp_path / "b", replace=False, notify=discard)
        finally:
            stop.set()
        assert writer.result() > 0
    backup.verify(own_url, tmp_path / "b", discard)


def test_no_snapshot_is_held_while_the_rows_are_counted(own_url: str, tmp_path: Path) -> None:
    fill(own_url, 3)
    holders: dict[str, set[str]] = {}

    def record_holders(progress: str) -> None:
        with psycopg.connect(own_url, application_name="observer") as other:
            rows = other.execute(
                "SELECT application_name FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
                "AND (backend_xmin IS NOT NULL OR state = 'idle in transaction')"
            ).fetchall()
        holders[progress.partition(" ")[0]] = {name for (name,) in rows}

    with psycopg.connect(own_url, application_name="other snapshot") as other:
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other.execute("SELECT 1")
        manifest = backup.write_backup(own_url, tmp_path / "b", replace=False, notify=record_holders)
    assert holders["counting"] == {"other snapshot"}
    with connect(own_url, name="test") as connection:
        assert manifest.tables == backup.count_rows(connection)


def test_rows_with_line_breaks_and_backslashes_are_counted_once(own_url: str, tmp_path: Path) -> None:
    with psycopg.connect(own_url) as connection:
        connection.execute("CREATE TABLE odd (a text)")
        connection.execute(r"INSERT INTO odd VALUES (E'a\n\nb'), (E'\\.'), (E'\\.\n'), (''), (NULL), (E'\r\n')")
    manifest = backup.write_backup(own_url, tmp_path / "b", replace=False, notify=discard)
    assert manifest.tables["public.odd"] == 6
    backup.verify(own_url, tmp_path / "b", discard)


def test_an_empty_database_is_replaced_and_not_kept(own_url: str, postgres_url: str, tmp_path: Path) -> None:
    fill(own_url, 1)
    backup.write_backup(own_url, tmp_path / "b", replace=False, notify=discard)
    name = f"backup_{uuid4().hex[:8]}"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        databases_before = databases(postgres_url)
        _, kept = backup.restore(with_database(postgres_url, name), tmp_path / "b", replace=False, notify=discard)
        assert kept is None
        assert databases(postgres_url) == databases_before
        assert uuids(with_database(postgres_url, name)) == uuids(own_url)
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_clients_see_the_old_tables_or_all_of_the_new_ones(own_url: str, tmp_path: Path) -> None:
    fill(own_url, 3)
    backup.write_backup(own_url, tmp_path / "b", replace=False, notify=discard)
    fill(own_url, 4)
    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            # Clients are disconnected for a moment. A SetupError is not suppressed, since it would end a role.
            with contextlib.suppress(psycopg.OperationalError):
                seen.add(len(uuids(own_url)))

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        try:
            backup.restore(own_url, tmp_path / "b", replace=True, notify=discard)
            wait_until(lambda: 3 in seen, "the restored rows are seen")
        finally:
            stop.set()
        for reader in readers:
            reader.result()
    assert seen == {3, 7}


def test_a_database_with_tables_is_not_replaced_by_default(own_url: str, tmp_path: Path) -> None:
    fill(own_url, 1)
    backup.write_backup(own_url, tmp_path / "b", replace=False, notify=discard)
    with pytest.raises(UserError, match=r"holds \d+ tables .*--replace"):
        backup.restore(own_url, tmp_path / "b", replace=False, notify=discard)
    assert len(uuids(own_url)) == 1


def test_a_folder_with_other_files_is_not_overwritten(own_url: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        backup.write_backup(own_url, tmp_path, replace=False, notify=discard)
    with pytest.raises(UserError, match="holds no backup"):
        backup.write_backup(own_url, tmp_path, replace=True, notify=discard)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_older_backup_is_removed_once_the_new_one_is_complete(own_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    first = backup.write_backup(own_url, folder, replace=False, notify=discard)
    fill(own_url, 1)
    second = backup.write_backup(own_url, folder, replace=True, notify=discard)
    assert second.rows > first.rows
    assert backup.check_files(folder) == second
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_folder_that_cannot_be_created_is_reported(own_url: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write the backup to .*file/b"):
        backup.write_backup(own_url, tmp_path / "file" / "b", replace=False, notify=discard)


def test_a_missing_privilege_to_create_databases_is_reported(own_url: str, tmp_path: Path) -> None:
    backup.write_backup(own_url, tmp_path / "b", replace=False, notify=discard)
    with connect(own_url, name="test") as connection:
        connection.execute("CREATE ROLE unprivileged LOGIN PASSWORD 'unprivileged'")
    try:
        parts = urlsplit(own_url)
        unprivileged_url = parts._replace(netloc=f"unprivileged:unprivileged@{parts.hostname}:{parts.port}").geturl()
        with pytest.raises(SetupError, match="give it CREATEDB"):
            backup.verify(unprivileged_url, tmp_path / "b", discard)
    finally:
        with connect(own_url, name="test") as connection:
            connection.execute("DROP ROLE unprivileged")


@pytest.mark.parametrize("damage", ["a changed byte", "a missing file"])
def test_a_damaged_file_is_reported_before_anything_is_changed(own_url: str, tmp_path: Path, damage: str) -> None:
    fill(own_url, 1)
    backup.write_backup(own_url, tmp_path / "b", replace=False, notify=discard)
    victim = next((tmp_path / "b" / "dump").glob("*.dat*"))
    if damage == "a missing file":
        victim.unlink()
    else:
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    with pytest.raises(UserError, match=f"damaged: dump/{victim.name}"):
        backup.restore(own_url, tmp_path / "b", replace=True, notify=discard)
    assert len(uuids(own_url)) == 1


def test_an_incomplete_restore_replaces_nothing(own_url: str, tmp_path: Path) -> None:
    fill(own_url, 2)
    manifest = backup.write_backup(own_url, tmp_path / "b", replace=False, notify=discard)
    changed: Manifest = msgspec.structs.replace(manifest, tables=manifest.tables | {"public.scenarios": 3})
    (tmp_path / "b" / MANIFEST).write_bytes(msgspec.json.encode(changed))
    fill(own_url, 1)
    with pytest.raises(VidflowError, match=r"public\.scenarios had 3 rows and has 2\. Nothing was replaced"):
        backup.restore(own_url, tmp_path / "b", replace=True, notify=discard)
    assert len(uuids(own_url)) == 3
    assert scratch_databases(own_url) == set()


def test_no_password_appears_on_a_command_line(own_url: str, tmp_path: Path) -> None:
    fill(own_url, 1)
    password = urlsplit(own_url).password
    assert password
    command_lines: list[str] = []

    def record_command_lines(_progress: str) -> None:
        for pid in descendants(os.getpid()):
            try:
                command_lines.append(Path(f"/proc/{pid}/cmdline").read_bytes().decode())
            except OSError:
                continue  # the process has ended

    backup.write_backup(own_url, tmp_path / "b", replace=False, notify=record_command_lines)
    backup.verify(own_url, tmp_path / "b", record_command_lines)
    assert any("pg_dump" in line for line in command_lines)
    assert any("pg_restore" in line for line in command_lines)
    assert not any(password in line for line in command_lines)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_nothing_behind(
    own_url: str, tmp_path: Path, signal_number: signal.Signals
) -> None:
    fill(own_url, 1)
    folder = tmp_path / "backups"
    folder.mkdir()
    with running_command(
        tmp_path, "db", "backup", str(folder / "b"), "--verify", variables={"VIDFLOW_DATABASE_URL": own_url}
    ) as command:
        command.wait_for("restoring")
        assert command.stop(signal_number) == 128 + signal_number
    assert [path.name for path in folder.iterdir()] == ["b"]
    assert scratch_databases(own_url) == set()
    with running_command(
        tmp_path, "db", "backup", str(folder / "c"), variables={"VIDFLOW_DATABASE_URL": own_url}
    ) as command:
        command.wait_for("dumping")
        assert command.stop(signal_number) == 128 + signal_number
    assert [path.name for path in folder.iterdir()] == ["b"]


def test_a_program_of_an_older_postgresql_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = tmp_path / "pg_dump"
    older.write_text(f"#!{sys.executable}\nprint('pg_dump (PostgreSQL) 15.18 (Debian)')\n")
    older.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert shutil.which("pg_dump") == str(older)
    assert pg_programs.find_program("pg_dump", 15) == older
    assert pg_programs.find_program("pg_dump", 18) != older
    with pytest.raises(SetupError, match=r"No pg_dump of PostgreSQL 99 .* has version 15.*put them on PATH"):
        pg_programs.find_program("pg_dump", 99)


def test_the_commands_report_progress_and_results(own_url: str, tmp_path: Path) -> None:
    fill(own_url, 3)
    variables = {"VIDFLOW_DATABASE_URL": own_url}
    written = run_command("db", "backup", str(tmp_path / "b"), "--verify", variables=variables)
    assert written.returncode == 0, written.stderr
    assert re.fullmatch(r".*/b: \d+ tables, \d+ rows, restored and counted\n", written.stdout)
    assert "tables: scenarios" in written.stderr
    refused = run_command("db", "restore", str(tmp_path / "b"), variables=variables)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    verified = run_command("db", "restore", str(tmp_path / "b"), variables=variables | {"VIDFLOW_VERIFY": "true"})
    assert verified.stdout.endswith("restored and counted; nothing was replaced\n")
    restored = run_command("db", "restore", str(tmp_path / "b"), "--replace", variables=variables)
    assert restored.returncode == 0, restored.stderr
    assert re.search(r"restored \d+ rows of the backup of 20.*\n.*kept as backup_\w+_before_\d+_\d+", restored.stdout)
    assert SECRET not in written.stderr + restored.stderr
