"""Backups of the database: whole or not there, proven by counting, and restored without anybody seeing a half."""

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

from vidflow.domain.errors import SetupError, UserError, VidflowError
from vidflow.domain.messages import Parameters
from vidflow.infra.postgres import backup, migrations, scenarios
from vidflow.infra.postgres import client_programs as pg_programs
from vidflow.infra.postgres.backup import MANIFEST, Manifest
from vidflow.infra.postgres.connection import connect

pytestmark = pytest.mark.long


def discard(_sentence: str) -> None:
    pass


def of_database(url: str, name: str) -> str:
    return urlsplit(url)._replace(path=f"/{name}").geturl()


@pytest.fixture
def own_url(postgres_url: str) -> Iterator[str]:
    """A database with today's schema of one test, which may be replaced."""
    name = f"backup_{uuid4().hex[:8]}"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        migrations.migrate(of_database(postgres_url, name), discard)
        yield of_database(postgres_url, name)
        for (one,) in server.execute("SELECT datname FROM pg_database WHERE datname LIKE %s", (f"{name}%",)).fetchall():
            server.execute(f"DROP DATABASE {one} WITH (FORCE)")


def fill(url: str, count: int) -> None:
    new = scenarios.NewScenario(
        source="http://a/b.mp4", model="motion", model_sha256=None, fps="all", priority=0, parameters=Parameters()
    )
    with connect(url, name="test") as tables:
        for _ in range(count):
            shown = scenarios.insert_scenario(tables, new)
            tables.execute(
                """
                INSERT INTO scenario_results (scenario_uuid, frame_number, epoch, pts, time_s, width, height, at, detections)
                SELECT %s, n, 1, n, n, 640, 480, '', '[]' FROM generate_series(0, 99) AS n
                """,
                (shown.scenario_uuid,),
            )


def uuids(url: str) -> list[str]:
    with connect(url, name="test") as tables:
        return [one for (one,) in tables.execute("SELECT scenario_uuid::text FROM scenarios ORDER BY 1").fetchall()]


def databases(url: str) -> set[str]:
    with connect(url, name="test") as tables:
        return {name for (name,) in tables.execute("SELECT datname FROM pg_database").fetchall()}


def scratch_databases(url: str) -> set[str]:
    return {name for name in databases(url) if name.startswith("vidflow_restore_")}


def test_what_was_backed_up_comes_back_and_what_came_later_does_not(own_url: str, tmp_path: Path) -> None:
    fill(own_url, 5)
    before = uuids(own_url)
    made = backup.write_backup(own_url, tmp_path / "b", replace=False, notify=discard)
    assert made.tables["public.scenarios"] == 5
    assert made.tables["public.scenario_history"] == 5
    fill(own_url, 2)
    manifest, kept = backup.restore(own_url, tmp_path / "b", replace=True, notify=discard)
    assert manifest == made
    assert uuids(own_url) == before
    assert kept is not None
    assert len(uuids(of_database(own_url, kept))) == 7
    with connect(own_url, name="test") as tables:
        assert migrations.list_pending_migrations(tables) == []
        assert backup.count_rows(tables) == made.tables
    assert scratch_databases(own_url) == set()


def test_the_counts_are_of_the_snapshot_that_is_dumped_whatever_is_written_meanwhile(
    own_url: str, tmp_path: Path
) -> None:
    fill(own_url, 1)
    stop = threading.Event()

    def write() -> int:
        rounds = 0
        while not stop.is_set():
            fill(own_url, 1)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            backup.write_backup(own_url, tmp_path / "b", replace=False, notify=discard)
        finally:
            stop.set()
        assert writing.result() > 0
    backup.verify(own_url, tmp_path / "b", discard)


def test_no_snapshot_is_held_while_the_rows_are_counted(own_url: str, tmp_path: Path) -> None:
    fill(own_url, 3)
    held: dict[str, set[str]] = {}

    def look(sentence: str) -> None:
        with psycopg.connect(own_url, application_name="looks") as other:
            rows = other.execute(
                "SELECT application_name FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
                "AND (backend_xmin IS NOT NULL OR state = 'idle in transaction')"
            ).fetchall()
        held[sentence.partition(" ")[0]] = {name for (name,) in rows}

    with psycopg.connect(own_url, application_name="holds one") as other:
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other.execute("SELECT 1")
        made = backup.write_backup(own_url, tmp_path / "b", replace=False, notify=look)
    assert held["counting"] == {"holds one"}
    with connect(own_url, name="test") as tables:
        assert made.tables == backup.count_rows(tables)


def test_rows_with_line_breaks_and_backslashes_are_counted_once(own_url: str, tmp_path: Path) -> None:
    with psycopg.connect(own_url) as tables:
        tables.execute("CREATE TABLE odd (a text)")
        tables.execute(r"INSERT INTO odd VALUES (E'a\n\nb'), (E'\\.'), (E'\\.\n'), (''), (NULL), (E'\r\n')")
    made = backup.write_backup(own_url, tmp_path / "b", replace=False, notify=discard)
    assert made.tables["public.odd"] == 6
    backup.verify(own_url, tmp_path / "b", discard)


def test_an_empty_database_is_replaced_and_not_kept(own_url: str, postgres_url: str, tmp_path: Path) -> None:
    fill(own_url, 1)
    backup.write_backup(own_url, tmp_path / "b", replace=False, notify=discard)
    name = f"backup_{uuid4().hex[:8]}"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        there = databases(postgres_url)
        _, kept = backup.restore(of_database(postgres_url, name), tmp_path / "b", replace=False, notify=discard)
        assert kept is None
        assert databases(postgres_url) == there
        assert uuids(of_database(postgres_url, name)) == uuids(own_url)
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_who_is_connected_sees_the_old_tables_or_all_of_the_new_ones(own_url: str, tmp_path: Path) -> None:
    fill(own_url, 3)
    backup.write_backup(own_url, tmp_path / "b", replace=False, notify=discard)
    fill(own_url, 4)
    stop, seen = threading.Event(), set()

    def look() -> None:
        while not stop.is_set():
            # Sent away, or not let in for a moment; a SetupError, which would end a role, is not suppressed.
            with contextlib.suppress(psycopg.OperationalError):
                seen.add(len(uuids(own_url)))

    with ThreadPoolExecutor(4) as pool:
        looking = [pool.submit(look) for _ in range(4)]
        try:
            backup.restore(own_url, tmp_path / "b", replace=True, notify=discard)
            wait_until(lambda: 3 in seen, "the restored rows are seen")
        finally:
            stop.set()
        for one in looking:
            one.result()
    assert seen == {3, 7}


def test_a_database_that_holds_something_is_left_alone(own_url: str, tmp_path: Path) -> None:
    fill(own_url, 1)
    backup.write_backup(own_url, tmp_path / "b", replace=False, notify=discard)
    with pytest.raises(UserError, match=r"holds \d+ tables .*--replace"):
        backup.restore(own_url, tmp_path / "b", replace=False, notify=discard)
    assert len(uuids(own_url)) == 1


def test_a_folder_that_holds_something_is_left_alone(own_url: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        backup.write_backup(own_url, tmp_path, replace=False, notify=discard)
    with pytest.raises(UserError, match="holds no backup"):
        backup.write_backup(own_url, tmp_path, replace=True, notify=discard)
    assert [one.name for one in tmp_path.iterdir()] == ["mine.txt"]


def test_an_older_backup_goes_once_the_new_one_is_whole(own_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    first = backup.write_backup(own_url, folder, replace=False, notify=discard)
    fill(own_url, 1)
    second = backup.write_backup(own_url, folder, replace=True, notify=discard)
    assert second.rows > first.rows
    assert backup.check_files(folder) == second
    assert [one.name for one in tmp_path.iterdir()] == ["b"]


def test_a_folder_that_cannot_be_made_is_said(own_url: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write the backup to .*file/b"):
        backup.write_backup(own_url, tmp_path / "file" / "b", replace=False, notify=discard)


def test_a_user_who_may_make_no_database_is_told_what_it_lacks(own_url: str, tmp_path: Path) -> None:
    backup.write_backup(own_url, tmp_path / "b", replace=False, notify=discard)
    with connect(own_url, name="test") as tables:
        tables.execute("CREATE ROLE lowly LOGIN PASSWORD 'lowly'")
    try:
        parts = urlsplit(own_url)
        lowly = parts._replace(netloc=f"lowly:lowly@{parts.hostname}:{parts.port}").geturl()
        with pytest.raises(SetupError, match="give it CREATEDB"):
            backup.verify(lowly, tmp_path / "b", discard)
    finally:
        with connect(own_url, name="test") as tables:
            tables.execute("DROP ROLE lowly")


@pytest.mark.parametrize("damage", ["a changed byte", "a lost file"])
def test_a_damaged_backup_is_told_by_its_file_before_anything_is_touched(
    own_url: str, tmp_path: Path, damage: str
) -> None:
    fill(own_url, 1)
    backup.write_backup(own_url, tmp_path / "b", replace=False, notify=discard)
    victim = next((tmp_path / "b" / "dump").glob("*.dat*"))
    if damage == "a lost file":
        victim.unlink()
    else:
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    with pytest.raises(UserError, match=f"damaged: dump/{victim.name}"):
        backup.restore(own_url, tmp_path / "b", replace=True, notify=discard)
    assert len(uuids(own_url)) == 1


def test_a_backup_that_does_not_come_back_whole_replaces_nothing(own_url: str, tmp_path: Path) -> None:
    fill(own_url, 2)
    made = backup.write_backup(own_url, tmp_path / "b", replace=False, notify=discard)
    more: Manifest = msgspec.structs.replace(made, tables=made.tables | {"public.scenarios": 3})
    (tmp_path / "b" / MANIFEST).write_bytes(msgspec.json.encode(more))
    fill(own_url, 1)
    with pytest.raises(VidflowError, match=r"public\.scenarios had 3 rows and has 2\. Nothing was replaced"):
        backup.restore(own_url, tmp_path / "b", replace=True, notify=discard)
    assert len(uuids(own_url)) == 3
    assert scratch_databases(own_url) == set()


def test_no_password_stands_on_a_command_line(own_url: str, tmp_path: Path) -> None:
    fill(own_url, 1)
    password = urlsplit(own_url).password
    assert password
    seen: list[str] = []

    def look(_sentence: str) -> None:
        for pid in descendants(os.getpid()):
            try:
                seen.append(Path(f"/proc/{pid}/cmdline").read_bytes().decode())
            except OSError:
                continue  # it has ended

    backup.write_backup(own_url, tmp_path / "b", replace=False, notify=look)
    backup.verify(own_url, tmp_path / "b", look)
    assert any("pg_dump" in line for line in seen)
    assert any("pg_restore" in line for line in seen)
    assert not any(password in line for line in seen)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_ended_leaves_nothing_behind(own_url: str, tmp_path: Path, number: signal.Signals) -> None:
    fill(own_url, 1)
    folder = tmp_path / "backups"
    folder.mkdir()
    with running_command(
        tmp_path, "db", "backup", str(folder / "b"), "--verify", variables={"VIDFLOW_DATABASE_URL": own_url}
    ) as command:
        command.wait_for("restoring")
        assert command.stop(number) == 128 + number
    assert [one.name for one in folder.iterdir()] == ["b"]
    assert scratch_databases(own_url) == set()
    with running_command(
        tmp_path, "db", "backup", str(folder / "c"), variables={"VIDFLOW_DATABASE_URL": own_url}
    ) as command:
        command.wait_for("dumping")
        assert command.stop(number) == 128 + number
    assert [one.name for one in folder.iterdir()] == ["b"]


def test_a_program_of_an_older_postgresql_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = tmp_path / "pg_dump"
    older.write_text(f"#!{sys.executable}\nprint('pg_dump (PostgreSQL) 15.18 (Debian)')\n")
    older.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert shutil.which("pg_dump") == str(older)
    assert pg_programs.find_program("pg_dump", 15) == older
    assert pg_programs.find_program("pg_dump", 18) != older
    with pytest.raises(SetupError, match=r"No pg_dump of PostgreSQL 99 .* has version 15.*put them on PATH"):
        pg_programs.find_program("pg_dump", 99)


def test_the_commands_say_how_far_they_are_and_what_they_did(own_url: str, tmp_path: Path) -> None:
    fill(own_url, 3)
    given = {"VIDFLOW_DATABASE_URL": own_url}
    made = run_command("db", "backup", str(tmp_path / "b"), "--verify", variables=given)
    assert made.returncode == 0, made.stderr
    assert re.fullmatch(r".*/b: \d+ tables, \d+ rows, restored and counted\n", made.stdout)
    assert "tables: scenarios" in made.stderr
    refused = run_command("db", "restore", str(tmp_path / "b"), variables=given)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    tried = run_command("db", "restore", str(tmp_path / "b"), variables=given | {"VIDFLOW_VERIFY": "true"})
    assert tried.stdout.endswith("restored and counted; nothing was replaced\n")
    restored = run_command("db", "restore", str(tmp_path / "b"), "--replace", variables=given)
    assert restored.returncode == 0, restored.stderr
    assert re.search(r"restored \d+ rows of 20.*\n.*kept as the database backup_\w+_before_\d+_\d+", restored.stdout)
    assert SECRET not in made.stderr + restored.stderr
