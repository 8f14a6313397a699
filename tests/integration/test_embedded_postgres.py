"""The embedded PostgreSQL, by its real programs."""

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


def ask(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def test_a_new_folder_becomes_a_postgresql_18_with_a_database_of_our_own(postgres_url: str) -> None:
    [(version, database)] = ask(
        postgres_url, "SELECT current_setting('server_version_num')::int / 10000, current_database()"
    )
    assert (version, database) == (18, "vidflow")


def test_what_is_acknowledged_is_on_the_disk(postgres_url: str) -> None:
    assert ask(postgres_url, "SELECT current_setting('fsync'), current_setting('synchronous_commit')") == [("on", "on")]


def test_nobody_gets_in_without_the_password_which_only_its_owner_can_read(tmp_path: Path) -> None:
    postgres = server(tmp_path).start()
    try:
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(f"postgresql://vidflow:wrong@127.0.0.1:{postgres.port}/vidflow")
        assert stat.S_IMODE((tmp_path / "password").stat().st_mode) == 0o600
    finally:
        postgres.stop()


def test_data_and_url_stay_over_a_stop_and_a_start(tmp_path: Path) -> None:
    postgres = server(tmp_path).start()
    url = postgres.url
    ask(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    postgres.stop()
    assert not is_listening(postgres.port)

    again = server(tmp_path).start()
    try:
        assert again.url == url
        assert ask(url, "SELECT answer FROM kept") == [(42,)]
    finally:
        again.stop()


def test_a_killed_server_starts_again_on_the_same_port_with_its_data(tmp_path: Path) -> None:
    postgres = server(tmp_path).start()
    try:
        ask(postgres.url, "CREATE TABLE kept AS SELECT 42 AS answer")
        assert postgres.process is not None
        postgres.process.kill()
        postgres.process.wait()
        assert not postgres.is_alive()
        postgres.start()
        assert ask(postgres.url, "SELECT answer FROM kept") == [(42,)]
    finally:
        postgres.stop()


def test_a_folder_in_use_is_refused_in_one_line(tmp_path: Path) -> None:
    postgres = server(tmp_path)
    try:
        with pytest.raises(SetupError, match="Another vidflow") as refused:
            server(tmp_path)
        assert "\n" not in refused.value.message
    finally:
        postgres.stop()


def test_a_port_in_use_is_told_with_the_servers_own_words(tmp_path: Path) -> None:
    first = server(tmp_path / "first").start()
    second = server(tmp_path / "second", port=first.port)
    try:
        with pytest.raises(Unavailable, match="Address already in use"):
            second.start()
    finally:
        second.stop()
        first.stop()


def test_a_stop_asked_for_gives_the_start_up_and_leaves_no_process(tmp_path: Path) -> None:
    stop = Stop()
    postgres = EmbeddedPostgres(
        tmp_path, notify=lambda sentence: stop.request() if "starting" in sentence else None, stop=stop
    )
    with pytest.raises(StartCancelled):
        postgres.start()
    postgres.stop()
    assert not postgres.is_alive()
    assert not is_listening(postgres.port)


def test_a_folder_that_only_its_owner_may_enter_is_no_obstacle(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    postgres = server(private / "postgres").start()
    try:
        assert ask(postgres.url, "SELECT 1") == [(1,)]
    finally:
        postgres.stop()


def test_it_is_gone_when_its_owner_is_killed_and_the_next_owner_finds_the_data(tmp_path: Path) -> None:
    with running_owner("postgres", tmp_path) as (owner, port):
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        again = server(tmp_path).start()  # waits for the orphan to let go of the folder
        try:
            assert again.port == port
            assert "received fast shutdown request" in (tmp_path / "postgres.log").read_text()
        finally:
            again.stop()
    wait_until(lambda: not is_listening(port), "the port is closed")
