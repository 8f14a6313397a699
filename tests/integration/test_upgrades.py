"""Migration to a later schema while scenarios are created and an inbox stores results."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg.errors import UniqueViolation
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
from tests.scopes import EVERYTHING

from vidflow.domain.messages import Parameters
from vidflow.domain.topics import INIT_SCENARIO
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.postgres import migrations, scenarios
from vidflow.infra.postgres.connection import connect
from vidflow.roles.inbox import run
from vidflow.settings import InboxOptions

pytestmark = pytest.mark.long

BATCH = 25
LATER_MIGRATIONS: Final = {
    "0998_labels.pre": """
        -- transactional: false
        ALTER TABLE scenarios ADD COLUMN IF NOT EXISTS label text NOT NULL DEFAULT '';
        ALTER TABLE scenarios DROP CONSTRAINT IF EXISTS label_is_short;
        ALTER TABLE scenarios ADD CONSTRAINT label_is_short CHECK (length(label) < 100) NOT VALID;
        ALTER TABLE scenarios VALIDATE CONSTRAINT label_is_short;
        ALTER TABLE scenario_results ADD COLUMN IF NOT EXISTS label text;
        DROP INDEX CONCURRENTLY IF EXISTS scenarios_by_label;
        CREATE INDEX CONCURRENTLY scenarios_by_label ON scenarios (label, scenario_uuid DESC);
        """,
    "0999_unlabelled.post": """
        -- transactional: false
        DROP INDEX CONCURRENTLY IF EXISTS scenarios_by_state;
        """,
}
"""Migrations of a later version, written as docs/upgrades.md asks for."""


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    """The URL of a new database with the current schema."""
    name = f"upgrade_{uuid4().hex[:8]}"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        url = urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
        migrations.migrate(url, print)
        yield url
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def sql_folder(tmp_path: Path) -> Path:
    """A copy of the SQL files, for more migrations. `migrations.sql_folder` does not return it yet."""
    return Path(shutil.copytree(migrations.sql_folder(), tmp_path / "sql"))


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
        new = scenarios.NewScenario(
            source="http://camera/x", model="motion", model_sha256=None, fps="all", priority=0, parameters=Parameters()
        )
        with connect(self._url, name="test") as tx:
            return scenarios.insert_scenario(tx, EVERYTHING, new).scenario_uuid

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


def test_a_migration_to_a_later_schema_under_load_loses_and_rejects_nothing(
    database_url: str, sql_folder: Path, kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    recreate_topics(kafka_settings)
    options = InboxOptions(database_url=database_url, kafka=kafka_settings)
    for name, text in LATER_MIGRATIONS.items():
        (sql_folder / f"{name}.sql").write_text(text)
    with (
        running_role(run, options),
        connect(database_url, name="test") as connection,
        ThreadPoolExecutor(2) as pool,
    ):
        load = UpgradeLoad(database_url, kafka_settings)
        scenario_uuid = load.scenario_uuid
        write_deployment(database_url, scenario_uuid)
        futures: list[Future[None]] = [pool.submit(load.create_scenarios), pool.submit(load.send_frames)]
        try:
            wait_until(lambda: len(stored_frame_numbers(connection, scenario_uuid)) > BATCH, "results are stored")
            created_before = len(load.created)
            monkeypatch.setattr(migrations, "sql_folder", lambda: sql_folder)
            migrations.migrate(database_url, print, "pre")
            migrations.migrate(database_url, print)
            wait_until(lambda: len(load.created) > created_before + 20, "scenarios are created after the migration")
        finally:
            load.end()
        for future in futures:
            future.result()
        wait_until(
            lambda: stored_frame_numbers(connection, scenario_uuid) == list(range(load.sent)), "all results are stored"
        )
        assert migrations.list_pending_migrations(connection) == []
        [(count,)] = connection.execute("SELECT count(*) FROM scenarios WHERE label = ''").fetchall()
        assert count == len(load.created) + 1
        assert scenarios.read_queue_totals(connection).scenarios == len(load.created)
        other_topics = connection.execute(
            "SELECT DISTINCT topic FROM outbox WHERE topic <> %s", (INIT_SCENARIO,)
        ).fetchall()
        assert other_topics == []  # no dead letter
    print_figure(
        f"{len(load.created)} scenarios and {load.sent} results during the migration; slowest insert: {load.longest_s * 1000:.0f} ms"
    )


def test_a_migration_that_failed_between_its_statements_is_completed_by_the_next_run(
    database_url: str, sql_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside a transaction the statements before the failed one remain, and a failed concurrent index remains as an invalid one."""
    (sql_folder / "0998_sources.pre.sql").write_text(
        """
        -- transactional: false
        ALTER TABLE scenarios ADD COLUMN IF NOT EXISTS label text;
        DROP INDEX CONCURRENTLY IF EXISTS scenarios_by_source;
        CREATE UNIQUE INDEX CONCURRENTLY scenarios_by_source ON scenarios (source);
        """
    )
    monkeypatch.setattr(migrations, "sql_folder", lambda: sql_folder)
    with connect(database_url, name="test") as connection:
        connection.execute("INSERT INTO scenarios (source, model, fps) VALUES ('s', 'm', 'all'), ('s', 'm', 'all')")
        with pytest.raises(UniqueViolation):
            migrations.migrate(database_url, print)
        assert migrations.list_pending_migrations(connection) == ["0998_sources.pre"]
        connection.execute("UPDATE scenarios SET source = scenario_uuid::text")
        migrations.migrate(database_url, print)
        assert migrations.list_pending_migrations(connection) == []
        [(valid,)] = connection.execute(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = 'scenarios_by_source'::regclass"
        ).fetchall()
        assert valid
