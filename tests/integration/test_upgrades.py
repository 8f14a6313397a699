"""Migration from the first to the current schema while scenarios are created and an inbox stores results."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from tests.integration.api_server import write_deployment
from tests.integration.delivery import (
    frames,
    print_figure,
    recreate_topics,
    running_role,
    send_results,
    stored_frame_numbers,
)
from tests.integration.server_owner import wait_until

from vidflow.domain.messages import INIT_SCENARIO
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.postgres import migrations, retention, scenarios
from vidflow.infra.postgres.connection import connect
from vidflow.roles.inbox import run
from vidflow.settings import InboxOptions

pytestmark = pytest.mark.long

FIRST = ("0001_spine.pre", "0004_pools_and_queue.pre", "0007_inbox.pre")
"""The oldest schema that the current roles run on: the first one, and the columns that the roles write."""
BATCH = 25


@pytest.fixture
def first_url(postgres_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with the first schema. This process sees only its migrations until `monkeypatch.undo`."""
    for name in FIRST:
        (tmp_path / f"{name}.sql").write_bytes(migrations.files()[name].read_bytes())
    monkeypatch.setattr(migrations, "sql_folder", lambda: tmp_path)
    name = f"first_{uuid4().hex[:8]}"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        url = urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
        migrations.migrate(url, print)
        yield url
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


INSERT_SCENARIO = """
    WITH s AS (
        INSERT INTO scenarios (source, model, model_sha256, fps, priority, parameters)
        VALUES ('http://camera/x', 'motion', NULL, 'all', 0, '{}')
     RETURNING *
    ), progress AS (
        INSERT INTO scenario_progress (scenario_uuid) SELECT scenario_uuid FROM s
    ), history AS (
        INSERT INTO scenario_history (scenario_uuid, number, from_state, to_state, reason, epoch, attempt)
        SELECT scenario_uuid, 0, NULL, state, 'init requested', epoch, attempt FROM s
    ), message AS (
        INSERT INTO outbox (topic, key, kind, epoch, payload)
        SELECT 'init_scenario', scenario_uuid::text, 'start', 0, '' FROM s
    )
    SELECT scenario_uuid::text FROM s
"""
"""The statement of an api of the first version. The current api waits for the current schema."""


class UpgradeLoad:
    """Creates scenarios, and sends results of one scenario, as fast as possible."""

    def __init__(self, url: str, settings: KafkaSettings) -> None:
        self._url = url
        self._settings = settings
        self._uuid = self.create_scenario()
        self._stop = threading.Event()
        self.created: list[str] = []
        self.sent = 0
        self.longest_s = 0.0

    @property
    def scenario_uuid(self) -> str:
        """The scenario whose results are sent."""
        return self._uuid

    def create_scenario(self) -> str:
        with connect(self._url, name="test") as tx:
            [(scenario_uuid,)] = tx.execute(INSERT_SCENARIO).fetchall()
        return str(scenario_uuid)

    def create_scenarios(self) -> None:
        while not self._stop.is_set():
            began_s = time.monotonic()
            self.created.append(self.create_scenario())
            self.longest_s = max(self.longest_s, time.monotonic() - began_s)

    def send_frames(self) -> None:
        while not self._stop.is_set():
            send_results(self._settings, *frames(self._uuid, range(self.sent, self.sent + BATCH), epoch=5))
            self.sent += BATCH

    def end(self) -> None:
        self._stop.set()


def test_migration_from_the_first_to_the_current_schema_under_load(
    first_url: str, kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    recreate_topics(kafka_settings)
    options = InboxOptions(database_url=first_url, kafka=kafka_settings)
    with (
        running_role(run, options),
        connect(first_url, name="test") as connection,
        ThreadPoolExecutor(2) as pool,
    ):
        load = UpgradeLoad(first_url, kafka_settings)
        scenario_uuid = load.scenario_uuid
        write_deployment(first_url, scenario_uuid)
        futures: list[Future[None]] = [pool.submit(load.create_scenarios), pool.submit(load.send_frames)]
        try:
            wait_until(lambda: len(stored_frame_numbers(connection, scenario_uuid)) > BATCH, "results are stored")
            created_before = len(load.created)
            monkeypatch.undo()
            migrations.migrate(first_url, print, "pre")
            migrations.migrate(first_url, print)
            wait_until(lambda: len(load.created) > created_before + 20, "scenarios are created after the migration")
        finally:
            load.end()
        for future in futures:
            future.result()
        wait_until(
            lambda: stored_frame_numbers(connection, scenario_uuid) == list(range(load.sent)), "all results are stored"
        )
        assert migrations.list_pending_migrations(connection) == []
        assert [partition.table for partition in retention.list_partitions(connection)] == ["scenario_results_first"]
        assert retention.default_span_ms(connection) is None
        [(count,)] = connection.execute("SELECT count(*) FROM scenarios").fetchall()
        assert count == len(load.created) + 1
        assert scenarios.read_queue_totals(connection).scenarios == len(load.created)
        other_topics = connection.execute(
            "SELECT DISTINCT topic FROM outbox WHERE topic <> %s", (INIT_SCENARIO,)
        ).fetchall()
        assert other_topics == []  # no dead letter
    print_figure(
        f"{len(load.created)} scenarios and {load.sent} results during the migration; slowest insert: {load.longest_s * 1000:.0f} ms"
    )


def test_an_interrupted_migration_is_completed_by_the_next_run(first_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that commits between its steps may leave a constraint, which would reject results from some day on."""
    with connect(first_url, name="test") as connection:
        connection.execute(
            "INSERT INTO scenario_results SELECT uuidv7(), n, 1, n, n, 1, 1, '', '[]' FROM generate_series(1, 100) AS n"
        )
        connection.execute(
            """
            ALTER TABLE scenario_results_default
              ADD CONSTRAINT lies_below_the_ranges CHECK (scenario_uuid < 'ffffffff-0000-7000-8000-000000000000') NOT VALID
            """
        )
        monkeypatch.undo()
        migrations.migrate(first_url, print)
        constraints = connection.execute("SELECT FROM pg_constraint WHERE conname = 'lies_below_the_ranges'").fetchall()
        assert constraints == []
        [(count,)] = connection.execute("SELECT count(*) FROM scenario_results_first").fetchall()
        assert count == 100
