"""The api and the inbox with a full database disk: what they report, and that they continue once there is space."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.api_server import assert_problem, create_scenario, ready_api
from tests.integration.delivery import (
    emptied_database,
    frames,
    insert_progress,
    recreate_topics,
    running_role,
    send_results,
    stored_frame_numbers,
)
from tests.integration.disks import SmallDisk, logged_outages, small_disk
from tests.integration.server_owner import wait_until

from vidflow.domain.topics import DEAD_LETTERS
from vidflow.infra.embedded.postgres import EmbeddedPostgres
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.postgres import outbox
from vidflow.infra.postgres.connection import Connection, connect
from vidflow.infra.postgres.migrations import migrate
from vidflow.infra.process.stopping import Stop
from vidflow.roles import inbox
from vidflow.settings import ApiOptions, InboxOptions

pytestmark = pytest.mark.fault


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, SmallDisk]]:
    """A server whose growing tables are on a small disk. Its WAL is elsewhere, since a full WAL disk would stop the server."""
    with small_disk(tmp_path / "disk", megabytes=8) as disk:
        postgres = EmbeddedPostgres(tmp_path / "postgres", notify=print, stop=Stop())
        try:
            url = postgres.start().url
            migrate(url, print)
            space = disk.path / "space"
            space.mkdir()
            owner = (tmp_path / "postgres" / "data").stat()
            os.chown(space, owner.st_uid, owner.st_gid)
            with connect(url, name="test") as connection:
                connection.execute(f"CREATE TABLESPACE small LOCATION '{space}'")
                for table in ("scenarios", "scenario_history", "outbox", "scenario_results_default"):
                    connection.execute(f"ALTER TABLE {table} SET TABLESPACE small")
            yield url, disk
        finally:
            postgres.stop()


def test_an_api_on_a_full_disk_rejects_new_scenarios_and_still_reads(server: tuple[str, SmallDisk]) -> None:
    url, disk = server
    with ready_api(ApiOptions(database_url=url)) as client:
        first = create_scenario(client)
        disk.fill()
        answers = []

        def is_rejected() -> bool:
            """The first requests may still use free space in the tables' last pages."""
            answer = client.post("/scenario/init", json={"source": first["source"], "model": first["model"]})
            answers.append(answer)
            return answer.status_code != 201

        wait_until(is_rejected, "the disk is full")
        assert_problem(answers[-1], 503, "disk_full")
        accepted = len(answers) - 1
        assert client.get(f"/scenario/{first['scenario_uuid']}").json() == first
        assert client.get("/health/ready").status_code == 200
        disk.release()
        create_scenario(client)
    with connect(url, name="test") as connection:
        for table in ("scenarios", "scenario_progress", "scenario_history", "outbox"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (accepted + 2,), table


@pytest.mark.long
def test_invariant_8_an_inbox_on_a_full_disk_waits_logs_once_and_loses_nothing(
    server: tuple[str, SmallDisk], kafka_settings: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    url, disk = server
    caplog.set_level(logging.INFO, "vidflow")
    recreate_topics(kafka_settings)
    with (
        emptied_database(url) as connection,
        running_role(inbox.run, InboxOptions(database_url=url, kafka=kafka_settings)) as stop,
    ):
        uuid = insert_progress(connection)
        send_results(kafka_settings, *frames(uuid, range(100)))
        wait_until(lambda: len(stored_frame_numbers(connection, uuid)) == 100, "the first frames are stored")
        disk.fill()
        send_results(kafka_settings, *frames(uuid, range(100, 20_000)))
        wait_until(lambda: "disk_full" in logged_outages(caplog), "the full disk is logged")
        rollbacks_before = rollbacks(connection)
        wait_until(lambda: rollbacks(connection) >= rollbacks_before + 5, "storing is retried several times")
        stored = stored_frame_numbers(connection, uuid)
        assert stored == list(range(len(stored))) != list(range(20_000))
        assert not stop.requested
        disk.release()
        wait_until(lambda: len(stored_frame_numbers(connection, uuid)) == 20_000, "all frames are stored", limit_s=60)
        assert stored_frame_numbers(connection, uuid) == list(range(20_000))
        assert [row for row in outbox.read_pending_messages(connection, 10) if row.topic == DEAD_LETTERS] == []
    assert logged_outages(caplog) == ["disk_full", "back"]


def rollbacks(connection: Connection) -> int:
    [(count,)] = connection.execute(
        "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()"
    ).fetchall()
    return int(count)
