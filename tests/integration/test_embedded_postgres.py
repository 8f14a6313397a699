"""The embedded PostgreSQL, with a real server."""

from __future__ import annotations

import signal
import stat
from pathlib import Path

import psycopg
import pytest
from tests.integration.server_owner import running_owner, wait_until

from vidflow.domain.errors import SetupError, Unavailable
from vidflow.infra.embedded.child_process import StartCancelled, is_listening
from vidflow.infra.embedded.postgres import EmbeddedPostgres
from vidflow.infra.process.stopping import Stop


def server(folder: Path, port: int | None = None) -> EmbeddedPostgres:
    return EmbeddedPostgres(folder, notify=print, stop=Stop(), port=port)


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def test_a_new_folder_gets_a_postgresql_18_server_with_vidflows_database(postgres_url: str) -> None:
    [(version, database)] = execute(
        postgres_url, "SELECT current_setting('server_version_num')::int / 10000, current_database()"
    )
    assert (version, database) == (18, "vidflow")


def test_commits_are_flushed_to_disk(postgres_url: str) -> None:
    assert execute(postgres_url, "SELECT current_setting('fsync'), current_setting('synchronous_commit')") == [
        ("on", "on")
    ]


def test_the_password_is_required_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    postgres = server(tmp_path).start()
    try:
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(f"postgresql://vidflow:wrong@127.0.0.1:{postgres.port}/vidflow")
        assert stat.S_IMODE((tmp_path / "password").stat().st_mode) == 0o600
    finally:
        postgres.stop()


@pytest.mark.long
def test_data_and_url_survive_a_restart(tmp_path: Path) -> None:
    postgres = server(tmp_path).start()
    url = postgres.url
    execute(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    postgres.stop()
    assert not is_listening(postgres.port)

    again = server(tmp_path).start()
    try:
        assert again.url == url
        assert execute(url, "SELECT answer FROM kept") == [(42,)]
    finally:
        again.stop()


@pytest.mark.long
def test_a_killed_server_starts_again_on_the_same_port_with_its_data(tmp_path: Path) -> None:
    postgres = server(tmp_path).start()
    try:
        execute(postgres.url, "CREATE TABLE kept AS SELECT 42 AS answer")
        assert postgres.process is not None
        postgres.process.kill()
        postgres.process.wait()
        postgres.start()
        assert execute(postgres.url, "SELECT answer FROM kept") == [(42,)]
    finally:
        postgres.stop()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    postgres = server(tmp_path)
    try:
        with pytest.raises(SetupError, match="Another vidflow") as refused:
            server(tmp_path)
        assert "\n" not in refused.value.message
    finally:
        postgres.stop()


@pytest.mark.long
def test_a_port_in_use_is_reported_with_the_servers_message(tmp_path: Path) -> None:
    first = server(tmp_path / "first").start()
    second = server(tmp_path / "second", port=first.port)
    try:
        with pytest.raises(Unavailable, match="Address already in use"):
            second.start()
    finally:
        second.stop()
        first.stop()


@pytest.mark.long
def test_a_stop_request_cancels_the_start_and_leaves_no_process(tmp_path: Path) -> None:
    stop = Stop()
    postgres = EmbeddedPostgres(
        tmp_path, notify=lambda message: stop.request() if "starting" in message else None, stop=stop
    )
    with pytest.raises(StartCancelled):
        postgres.start()
    postgres.stop()
    assert postgres.process is not None
    assert postgres.process.poll() is not None
    assert not is_listening(postgres.port)


@pytest.mark.long
def test_the_server_runs_in_a_folder_that_only_its_owner_may_enter(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    postgres = server(private / "postgres").start()
    try:
        assert execute(postgres.url, "SELECT 1") == [(1,)]
    finally:
        postgres.stop()


@pytest.mark.long
def test_the_server_ends_when_its_owner_is_killed_and_a_new_owner_finds_its_data(tmp_path: Path) -> None:
    with running_owner("postgres", tmp_path) as (owner, port):
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        again = server(tmp_path).start()  # waits until the orphaned server releases the folder
        try:
            assert again.port == port
            assert "received fast shutdown request" in (tmp_path / "postgres.log").read_text()
        finally:
            again.stop()
    wait_until(lambda: not is_listening(port), "the port is closed")
