"""Migrations: locking, checksums, phases, and agreement with schema.sql."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from tests.integration.server_owner import wait_until

from vidflow.domain.errors import SetupError
from vidflow.infra.embedded.postgres import programs_folder
from vidflow.infra.postgres import migrations
from vidflow.infra.process.stopping import Stop

FIRST = "0001_schema.pre"


@pytest.fixture
def empty_url(postgres_url: str) -> Iterator[str]:
    name = f"empty_{uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        yield urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def schema_of(url: str) -> str:
    """Return pg_dump's schema of vidflow's tables, without the tables of the migrations."""
    command = [
        str(programs_folder() / "pg_dump"),
        "--schema-only",
        "--no-owner",
        "--exclude-table=*yoyo*",
        "--exclude-table=schema_checksums",
    ]
    dump = subprocess.run([*command, "--dbname", url], capture_output=True, text=True, check=True).stdout
    return "\n".join(line for line in dump.splitlines() if line and not line.startswith(("--", "\\")))


def test_the_migrations_produce_schema_sql(empty_url: str, postgres_url: str) -> None:
    migrations.migrate(empty_url, print)
    name = f"schema_{uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        url = urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
        with psycopg.connect(url) as connection:
            connection.execute((migrations.sql_folder() / "schema.sql").read_bytes())
        documented_schema = schema_of(url)
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    assert schema_of(empty_url) == documented_schema


def test_concurrent_migrations_apply_each_file_once(empty_url: str) -> None:
    messages: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(migrations.migrate, empty_url, messages.append) for _ in range(4)]:
            future.result()
    assert messages == [f"applying {name}" for name in migrations.files()]
    assert all(applied for _, applied in migrations.list_migrations(empty_url))


def test_a_file_changed_after_it_was_applied_is_reported_by_name(empty_url: str) -> None:
    migrations.migrate(empty_url, print)
    with psycopg.connect(empty_url) as connection:
        connection.execute("UPDATE schema_checksums SET sha256 = 'another'")
    with pytest.raises(SetupError, match=FIRST):
        migrations.migrate(empty_url, print)


def test_a_missing_checksum_of_an_applied_file_is_added(empty_url: str) -> None:
    migrations.migrate(empty_url, print)
    with psycopg.connect(empty_url) as connection:
        connection.execute("DELETE FROM schema_checksums")
    messages: list[str] = []
    migrations.migrate(empty_url, messages.append)
    assert messages == []
    assert all(applied for _, applied in migrations.list_migrations(empty_url))


def test_a_role_waits_for_its_schema(empty_url: str) -> None:
    stop = Stop()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(migrations.wait_for_schema, empty_url, stop)
        assert not waiting.done()
        migrations.migrate(empty_url, print)
        waiting.result(timeout=20)


def set_migrations(monkeypatch: pytest.MonkeyPatch, names: list[str], folder: Path) -> None:
    """Give this process these migrations only, as in another version of vidflow. Unknown ones create a table."""
    existing = migrations.files()
    for name in names:
        text = existing[name].read_text() if name in existing else f"CREATE TABLE of_{name[:4]} ();"
        (folder / f"{name}.sql").write_text(text)
    monkeypatch.setattr(migrations, "sql_folder", lambda: folder)


def is_ready(url: str) -> bool:
    """Return whether a role would start instead of waiting for the schema."""
    stop = Stop()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(migrations.wait_for_schema, url, stop)
        try:
            waiting.result(timeout=2 * migrations.SCHEMA_POLL_S)
        except TimeoutError:
            return False
        finally:
            stop.request()
    return True


def test_a_role_needs_its_pre_migrations_and_not_its_post_migrations(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_migrations(monkeypatch, [FIRST, "0098_more.pre", "0099_less.post"], tmp_path)
    assert not is_ready(empty_url)
    migrations.migrate(empty_url, print, "pre")
    assert is_ready(empty_url)
    assert [name for name, applied in migrations.list_migrations(empty_url) if not applied] == ["0099_less.post"]
    migrations.migrate(empty_url, print, "post")
    assert is_ready(empty_url)


def test_an_older_role_accepts_newer_pre_migrations_and_rejects_newer_post_migrations(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    newer, older = tmp_path / "newer", tmp_path / "older"
    newer.mkdir()
    older.mkdir()
    set_migrations(monkeypatch, [FIRST, "0098_more.pre", "0099_less.post"], newer)
    migrations.migrate(empty_url, print, "pre")
    set_migrations(monkeypatch, [FIRST], older)
    assert is_ready(empty_url)
    monkeypatch.setattr(migrations, "sql_folder", lambda: newer)
    migrations.migrate(empty_url, print, "post")
    monkeypatch.setattr(migrations, "sql_folder", lambda: older)
    with pytest.raises(SetupError, match=r"newer version \(0099_less\.post\)\. Upgrade this process"):
        is_ready(empty_url)


def test_phases_cannot_be_applied_out_of_order() -> None:
    missing = ["0002_a.pre", "0003_a.post", "0004_b.pre", "0005_b.post"]
    assert migrations.filter_by_phase(missing, "all") == missing
    assert migrations.filter_by_phase(missing[2:], "pre") == ["0004_b.pre"]
    assert migrations.filter_by_phase(missing[3:], "post") == ["0005_b.post"]
    assert migrations.filter_by_phase(missing[3:], "pre") == []
    with pytest.raises(SetupError, match=r"0003_a\.post comes before 0004_b\.pre.*--phase post"):
        migrations.filter_by_phase(missing, "pre")
    with pytest.raises(SetupError, match=r"0002_a\.pre comes before 0005_b\.post.*--phase pre"):
        migrations.filter_by_phase(missing, "post")


@pytest.mark.long
def test_a_migration_without_a_lock_lets_others_pass_and_is_retried(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_migrations(monkeypatch, [FIRST], tmp_path)
    migrations.migrate(empty_url, print)
    (tmp_path / "0098_more.pre.sql").write_text("ALTER TABLE scenarios ADD COLUMN more text;")
    messages: list[str] = []
    with psycopg.connect(empty_url) as reader, ThreadPoolExecutor(1) as pool:
        reader.execute("SELECT count(*) FROM scenarios")
        migration = pool.submit(migrations.migrate, empty_url, messages.append)
        wait_until(lambda: messages.count("0098_more.pre waits for a lock") > 1, "the migration has been tried twice")
        with psycopg.connect(empty_url) as other:
            other.execute("SET statement_timeout = '5s'")
            other.execute("INSERT INTO scenarios (source, model, fps) VALUES ('s', 'm', 'all')")
        assert not migration.done()
        reader.rollback()
        migration.result(timeout=20)
    assert all(applied for _, applied in migrations.list_migrations(empty_url))


@pytest.mark.long
def test_db_status_reports_pending_migrations_by_its_exit_code(empty_url: str) -> None:
    def db(command: str) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-m", "vidflow", "db", command, "--database-url", empty_url]
        return subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)

    assert db("status").returncode == 3
    assert db("migrate").returncode == 0
    assert db("status").returncode == 0
