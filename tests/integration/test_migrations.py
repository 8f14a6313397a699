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

from vidflow.domain.errors import SetupError
from vidflow.infra import migrations
from vidflow.infra.embedded.postgres import programs
from vidflow.infra.stopping import Stop


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
        str(programs() / "pg_dump"),
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
    assert all(applied for _, applied in migrations.status(empty_url))


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
    assert all(applied for _, applied in migrations.status(empty_url))


def test_a_role_on_an_older_schema_waits_until_it_is_migrated(empty_url: str) -> None:
    stop = Stop()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(migrations.wait_for_schema, empty_url, stop)
        assert not waiting.done()
        migrations.migrate(empty_url, print)
        waiting.result(timeout=20)


def test_the_command_tells_what_is_missing_by_its_exit_code(empty_url: str) -> None:
    def db(command: str) -> subprocess.CompletedProcess[str]:
        typed = [sys.executable, "-m", "vidflow", "db", command, "--database-url", empty_url]
        return subprocess.run(typed, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)

    assert db("status").returncode == 3
    assert db("migrate").returncode == 0
    assert db("status").returncode == 0
