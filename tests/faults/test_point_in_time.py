"""Point-in-time recovery with PostgreSQL's own programs, as described in docs/how-to/backup.md: base backup, archived log, time."""

from __future__ import annotations

import datetime
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from tests.integration.server_owner import wait_until
from tests.scopes import EVERYTHING

from vidflow.domain.messages import Parameters
from vidflow.infra.embedded.postgres import EmbeddedPostgres, programs_folder
from vidflow.infra.postgres import migrations, scenarios
from vidflow.infra.postgres.connection import connect, split_secrets
from vidflow.infra.process.stopping import Stop

pytestmark = [pytest.mark.long, pytest.mark.fault, pytest.mark.timeout(300)]


def give_to_the_server(folder: Path) -> None:
    """Give the folder to the user `nobody` if the test runs as root: PostgreSQL then runs as that user."""
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, nobody.pw_uid, nobody.pw_gid)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir(mode=0o755)
    give_to_the_server(folder)
    return folder


@pytest.fixture
def archiving(tmp_path: Path, archive: Path) -> Iterator[EmbeddedPostgres]:
    """A server that archives its write-ahead log."""
    server = EmbeddedPostgres(tmp_path / "one", notify=print, stop=Stop())
    try:
        server.start()
        for setting, value in (
            ("archive_mode", "on"),
            ("archive_command", f"test ! -f {archive}/%f && cp %p {archive}/%f"),
        ):
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute(f"ALTER SYSTEM SET {setting} = '{value}'")
        server.stop()
        server = EmbeddedPostgres(tmp_path / "one", notify=print, stop=Stop())
        yield server.start()
    finally:
        server.stop()


def init(url: str) -> str:
    new = scenarios.NewScenario(
        source="http://a/b.mp4", model="motion", model_sha256=None, fps="all", priority=0, parameters=Parameters()
    )
    with connect(url, name="test") as connection:
        return scenarios.insert_scenario(connection, EVERYTHING, new).scenario_uuid


def base_backup(url: str, target: Path) -> None:
    public_url, secrets = split_secrets(url)
    command = [
        str(programs_folder() / "pg_basebackup"),
        f"--dbname={public_url}",
        "--checkpoint=fast",
        f"--pgdata={target}",
    ]
    subprocess.run(command, env={**os.environ, **secrets}, check=True)


def database_time(url: str) -> datetime.datetime:
    with psycopg.connect(url) as connection:
        [(now,)] = connection.execute("SELECT clock_timestamp()").fetchall()
    assert isinstance(now, datetime.datetime)
    return now


def archive_all(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        [(last,)] = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchall()

        def archived() -> bool:
            [(newest,)] = connection.execute("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver").fetchall()
            return bool(newest >= last)

        wait_until(archived, f"{last} is archived", 60)


def recover(folder: Path, data: Path, password: Path, archive: Path, target: datetime.datetime) -> EmbeddedPostgres:
    folder.mkdir()
    shutil.move(data, folder / "data")
    shutil.copy2(password, folder / "password")
    with (folder / "data" / "postgresql.auto.conf").open("a") as settings:
        settings.write(f"archive_mode = 'off'\nrestore_command = 'cp {archive}/%f %p'\n")
        settings.write(f"recovery_target_time = '{target.isoformat()}'\nrecovery_target_action = 'promote'\n")
    (folder / "data" / "recovery.signal").touch()
    give_to_the_server(folder)
    return EmbeddedPostgres(folder, notify=print, stop=Stop())


def test_a_database_is_recovered_to_a_point_in_time(archiving: EmbeddedPostgres, archive: Path, tmp_path: Path) -> None:
    migrations.migrate(archiving.url, print)
    in_base_backup = init(archiving.url)
    base_backup(archiving.url, tmp_path / "base")
    before_target = init(archiving.url)
    target = database_time(archiving.url)
    init(archiving.url)
    archive_all(archiving.url)
    archiving.stop()
    recovered = recover(tmp_path / "two", tmp_path / "base", tmp_path / "one" / "password", archive, target)
    try:
        recovered.start()
        with psycopg.connect(recovered.url, autocommit=True) as connection:
            wait_until(
                lambda: connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,),
                "the server is a primary again",
                60,
            )
            found = connection.execute("SELECT scenario_uuid::text FROM scenarios ORDER BY 1").fetchall()
        assert found == [(in_base_backup,), (before_target,)]
        assert init(recovered.url)
    finally:
        recovered.stop()
