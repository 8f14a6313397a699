"""The schema: migrated by one at a time, told when a file was changed, and the same as the one that is there to be read."""

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


@pytest.fixture
def empty_url(postgres_url: str) -> Iterator[str]:
    name = f"empty_{uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        yield urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def schema_of(url: str) -> str:
    """What pg_dump says of the schema vidflow's own tables make, without the book-keeping of the migrations."""
    command = [
        str(programs_folder() / "pg_dump"),
        "--schema-only",
        "--no-owner",
        "--exclude-table=*yoyo*",
        "--exclude-table=schema_checksums",
    ]
    dump = subprocess.run([*command, "--dbname", url], capture_output=True, text=True, check=True).stdout
    return "\n".join(line for line in dump.splitlines() if line and not line.startswith(("--", "\\")))


def test_the_migrations_give_the_schema_that_is_there_to_be_read(empty_url: str, postgres_url: str) -> None:
    migrations.migrate(empty_url, print)
    read = f"read_{uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {read}")
        url = urlsplit(postgres_url)._replace(path=f"/{read}").geturl()
        with psycopg.connect(url) as tables:
            tables.execute((migrations.sql_folder() / "schema.sql").read_bytes())
        same = schema_of(url)
        server.execute(f"DROP DATABASE {read} WITH (FORCE)")
    assert schema_of(empty_url) == same


def test_of_several_that_migrate_at_once_one_does_and_the_others_find_it_done(empty_url: str) -> None:
    said: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(migrations.migrate, empty_url, said.append) for _ in range(4)]:
            done.result()
    assert said == [f"applying {name}" for name in migrations.files()]
    assert all(applied for _, applied in migrations.list_migrations(empty_url))


def test_a_file_that_was_changed_after_it_was_applied_is_told_by_name(empty_url: str) -> None:
    migrations.migrate(empty_url, print)
    with psycopg.connect(empty_url) as tables:
        tables.execute("UPDATE schema_checksums SET sha256 = 'another'")
    with pytest.raises(SetupError, match="0001_spine"):
        migrations.migrate(empty_url, print)


def test_a_death_between_a_file_and_its_checksum_is_made_good(empty_url: str) -> None:
    migrations.migrate(empty_url, print)
    with psycopg.connect(empty_url) as tables:
        tables.execute("DELETE FROM schema_checksums")
    said: list[str] = []
    migrations.migrate(empty_url, said.append)
    assert said == []
    assert all(applied for _, applied in migrations.list_migrations(empty_url))


def test_a_role_on_an_older_schema_waits_until_it_is_migrated(empty_url: str) -> None:
    stop = Stop()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(migrations.wait_for_schema, empty_url, stop)
        assert not waiting.done()
        migrations.migrate(empty_url, print)
        waiting.result(timeout=20)


def of_files(monkeypatch: pytest.MonkeyPatch, names: list[str], folder: Path) -> None:
    """Lets this process know these files and no others, as a version of vidflow does; those that there are not are empty."""
    real = migrations.files()
    for name in names:
        text = real[name].read_text() if name in real else f"CREATE TABLE of_{name[:4]} ();"
        (folder / f"{name}.sql").write_text(text)
    monkeypatch.setattr(migrations, "sql_folder", lambda: folder)


def is_ready(url: str) -> bool:
    """Whether a role would start, or waits for the schema."""
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


def test_a_role_needs_what_is_added_and_not_what_is_to_be_taken_away(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    of_files(monkeypatch, ["0001_spine.pre", "0098_more.pre", "0099_less.post"], tmp_path)
    assert not is_ready(empty_url)
    migrations.migrate(empty_url, print, "pre")
    assert is_ready(empty_url)
    assert [name for name, applied in migrations.list_migrations(empty_url) if not applied] == ["0099_less.post"]
    migrations.migrate(empty_url, print, "post")
    assert is_ready(empty_url)


def test_an_older_role_runs_on_what_a_newer_version_added_and_not_without_what_it_took_away(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    newer, older = tmp_path / "newer", tmp_path / "older"
    newer.mkdir()
    older.mkdir()
    of_files(monkeypatch, ["0001_spine.pre", "0098_more.pre", "0099_less.post"], newer)
    migrations.migrate(empty_url, print, "pre")
    of_files(monkeypatch, ["0001_spine.pre"], older)
    assert is_ready(empty_url)
    monkeypatch.setattr(migrations, "sql_folder", lambda: newer)
    migrations.migrate(empty_url, print, "post")
    monkeypatch.setattr(migrations, "sql_folder", lambda: older)
    with pytest.raises(SetupError, match=r"newer version \(0099_less\.post\)\. Upgrade this process"):
        is_ready(empty_url)


def test_phases_are_not_applied_out_of_order() -> None:
    missing = ["0002_a.pre", "0003_a.post", "0004_b.pre", "0005_b.post"]
    assert migrations.filter_by_phase(missing, "all") == missing
    assert migrations.filter_by_phase(missing[2:], "pre") == ["0004_b.pre"]
    assert migrations.filter_by_phase(missing[3:], "post") == ["0005_b.post"]
    assert migrations.filter_by_phase(missing[3:], "pre") == []
    with pytest.raises(SetupError, match=r"0003_a\.post comes before 0004_b\.pre.*--phase post"):
        migrations.filter_by_phase(missing, "pre")
    with pytest.raises(SetupError, match=r"0002_a\.pre comes before 0005_b\.post.*--phase pre"):
        migrations.filter_by_phase(missing, "post")


def test_a_migration_that_gets_no_lock_makes_way_and_is_done_once_it_can_be(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    of_files(monkeypatch, ["0001_spine.pre"], tmp_path)
    migrations.migrate(empty_url, print)
    (tmp_path / "0098_more.pre.sql").write_text("ALTER TABLE scenarios ADD COLUMN more text;")
    said: list[str] = []
    with psycopg.connect(empty_url) as reader, ThreadPoolExecutor(1) as pool:
        reader.execute("SELECT count(*) FROM scenarios")
        migrating = pool.submit(migrations.migrate, empty_url, said.append)
        wait_until(lambda: said.count("0098_more.pre waits for a lock") > 1, "it has tried twice")
        with psycopg.connect(empty_url) as other:
            other.execute("SET statement_timeout = '5s'")
            other.execute("INSERT INTO scenarios (source, model, fps) VALUES ('s', 'm', 'all')")
        assert not migrating.done()
        reader.rollback()
        migrating.result(timeout=20)
    assert all(applied for _, applied in migrations.list_migrations(empty_url))


def test_the_command_tells_what_is_missing_by_its_exit_code(empty_url: str) -> None:
    def db(command: str) -> subprocess.CompletedProcess[str]:
        typed = [sys.executable, "-m", "vidflow", "db", command, "--database-url", empty_url]
        return subprocess.run(typed, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)

    assert db("status").returncode == 3
    assert db("migrate").returncode == 0
    assert db("status").returncode == 0
