"""Admission under pressure: a full queue, no free connection, a full disk. Refusals come quickly and say what to do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest
from tests.integration.api_server import (
    SOURCE_URL,
    assert_problem,
    create_scenario,
    is_lock_awaited,
    ready_api,
    wait_until,
    write_deployment,
)
from tests.integration.delivery import print_figure
from tests.integration.disks import small_disk

from vidflow.domain.errors import SetupError
from vidflow.infra.process.stopping import Stop
from vidflow.roles.api import database, run
from vidflow.settings import ApiOptions

BODY = {"source": SOURCE_URL, "model": "motion"}
MEGABYTE = 1024**2


@pytest.fixture(autouse=True)
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("TRUNCATE scenarios, scenario_progress, scenario_history, outbox")
        yield connection


def post_scenario(client: httpx.Client) -> httpx.Response:
    return client.post("/scenario/init", json=BODY)


def is_admitted(client: httpx.Client) -> bool:
    return post_scenario(client).status_code == 201


def count_scenarios(connection: psycopg.Connection) -> int:
    [(count,)] = connection.execute("SELECT count(*) FROM scenarios").fetchall()
    return int(count)


class TestQueue:
    """The limit of scenarios that wait for a runner."""

    def test_a_full_queue_refuses_a_scenario_with_retry_after(
        self, database_url: str, connection: psycopg.Connection
    ) -> None:
        with ready_api(ApiOptions(database_url=database_url, queue_limit=3)) as client:
            for _ in range(3):
                create_scenario(client)
            response = post_scenario(client)
            problem = assert_problem(response, 429, "queue_full")
            assert "3 scenarios wait" in problem["detail"]
            assert int(response.headers["retry-after"]) >= 1
            assert count_scenarios(connection) == 3

    def test_a_full_queue_accepts_shutdowns_and_then_new_scenarios(self, database_url: str) -> None:
        with ready_api(ApiOptions(database_url=database_url, queue_limit=2)) as client:
            first = create_scenario(client)
            create_scenario(client)
            assert_problem(post_scenario(client), 429, "queue_full")
            assert client.post(f"/scenario/{first['scenario_uuid']}/shutdown").status_code == 200
            wait_until(lambda: is_admitted(client), "there is room for one")
            assert_problem(post_scenario(client), 429, "queue_full")

    def test_deployed_scenarios_do_not_count(self, database_url: str) -> None:
        with ready_api(ApiOptions(database_url=database_url, queue_limit=1)) as client:
            write_deployment(database_url, create_scenario(client)["scenario_uuid"])
            wait_until(lambda: is_admitted(client), "the deployed scenario no longer counts")

    @pytest.mark.long
    def test_concurrent_requests_do_not_exceed_the_limit(
        self, database_url: str, connection: psycopg.Connection
    ) -> None:
        with (
            ready_api(ApiOptions(database_url=database_url, queue_limit=25)) as client,
            ThreadPoolExecutor(16) as executor,
        ):
            for _ in range(3):  # over several refreshes
                statuses = list(executor.map(lambda _: post_scenario(client).status_code, range(60)))
                assert set(statuses) <= {201, 429}
                assert count_scenarios(connection) == 25
                refresh_s = time.monotonic() + 1.0
                wait_until(lambda refresh_s=refresh_s: time.monotonic() > refresh_s, "the next refresh is due")

    def test_the_queue_is_limited_by_bytes_too(self, database_url: str, connection: psycopg.Connection) -> None:
        large = {**BODY, "source": f"{SOURCE_URL}?{'x' * 3000}"}
        with ready_api(ApiOptions(database_url=database_url, queue_limit_bytes=10_000)) as client:
            while (response := client.post("/scenario/init", json=large)).status_code == 201:
                assert count_scenarios(connection) <= 3
            assert "--queue-limit-bytes" in assert_problem(response, 429, "queue_full")["detail"]
            assert response.headers["retry-after"]
            assert count_scenarios(connection) == 3
            create_scenario(client)  # a small one still fits
            connection.execute("UPDATE scenarios SET state = 'inactive', outcome = 'stopped'")
            wait_until(lambda: client.post("/scenario/init", json=large).status_code == 201, "there is room again")

    def test_an_empty_queue_accepts_a_scenario_larger_than_its_limit(self, database_url: str) -> None:
        with ready_api(ApiOptions(database_url=database_url, queue_limit_bytes=1)) as client:
            create_scenario(client)
            assert_problem(post_scenario(client), 429, "queue_full")

    def test_scenarios_admitted_by_other_apis_count_too(self, database_url: str) -> None:
        options = ApiOptions(database_url=database_url, queue_limit=4)
        with ready_api(options) as first, ready_api(options) as second:
            for _ in range(2):
                create_scenario(first)
            for _ in range(2):
                create_scenario(second)
            wait_until(lambda: post_scenario(first).status_code == 429, "the first api counts the second's scenarios")
            assert post_scenario(second).status_code == 429


class TestConnections:
    """A connection pool that is exhausted."""

    @contextmanager
    def no_connection_free(self, client: httpx.Client, database_url: str) -> Iterator[None]:
        """Occupy the pool's only connection by a request that waits for a lock."""
        with psycopg.connect(database_url) as other, ThreadPoolExecutor(1) as executor:
            other.execute("LOCK TABLE scenarios IN ACCESS EXCLUSIVE MODE")
            request = executor.submit(client.get, "/scenario")
            wait_until(lambda: is_lock_awaited(database_url), "a request holds the connection")
            yield
            other.rollback()
            assert request.result().status_code == 200

    @pytest.fixture(autouse=True)
    def _long_statement_timeout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Keep the request that holds the connection from timing out."""
        monkeypatch.setattr(database, "STATEMENT_TIMEOUT_S", 60.0)

    @pytest.mark.long
    def test_requests_without_a_connection_are_refused_quickly_and_served_once_one_is_free(
        self, database_url: str
    ) -> None:
        with (
            ready_api(ApiOptions(database_url=database_url, pool_size=1)) as client,
            httpx.Client(base_url=client.base_url, timeout=30, headers={"connection": "close"}) as new_connections,
            ThreadPoolExecutor(100) as executor,
        ):
            with self.no_connection_free(client, database_url):
                started_s = time.monotonic()
                responses = list(executor.map(lambda _: post_scenario(new_connections), range(200)))
                duration_s = time.monotonic() - started_s
                print_figure(f"200 requests, 100 at once, without a connection: all refused in {duration_s:.2f} s")
                for response in responses:
                    assert "--pool-size" in assert_problem(response, 503, "database_busy")["detail"]
                    assert response.headers["retry-after"]
            # Not with `client`: the server may be closing its connection, which has been idle for some seconds.
            wait_until(lambda: is_admitted(new_connections), "it serves again")

    @pytest.mark.long
    def test_an_exhausted_pool_is_not_logged_as_an_outage(
        self, database_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with ready_api(ApiOptions(database_url=database_url, pool_size=1)) as client:
            with self.no_connection_free(client, database_url):
                assert_problem(post_scenario(client), 503, "database_busy")
            wait_until(lambda: is_admitted(client), "it serves again")
        assert "away" not in [record.getMessage() for record in caplog.records]


class TestDisk:
    """A full disk: seen by the api itself, or reported by PostgreSQL."""

    @pytest.mark.long
    def test_a_full_disk_refuses_new_scenarios_until_there_is_room_and_nothing_else(
        self, database_url: str, tmp_path: Path
    ) -> None:
        with (
            small_disk(tmp_path / "disk", megabytes=4) as disk,
            ready_api(ApiOptions(database_url=database_url, data_dir=disk.path, min_free_bytes=2 * MEGABYTE)) as client,
        ):
            scenario = create_scenario(client)
            disk.fill()
            wait_until(lambda: not is_admitted(client), "the full disk is noticed")
            response = post_scenario(client)
            problem = assert_problem(response, 503, "disk_full")
            assert "make room" in problem["detail"]
            assert str(disk.path) not in problem["detail"]
            assert response.headers["retry-after"]
            assert "vidflow_data_disk_free_bytes 0.0" in client.get("/metrics").text
            assert client.get("/health/ready").status_code == 200
            assert client.post(f"/scenario/{scenario['scenario_uuid']}/shutdown").status_code == 200
            disk.release()
            wait_until(lambda: is_admitted(client), "scenarios are admitted again")

    def test_min_free_bytes_is_respected(self, database_url: str, tmp_path: Path) -> None:
        for min_free_bytes, status in ((2**60, 503), (0, 201)):
            options = ApiOptions(database_url=database_url, data_dir=tmp_path, min_free_bytes=min_free_bytes)
            with ready_api(options) as client:
                assert post_scenario(client).status_code == status

    def test_a_missing_data_folder_is_reported_at_the_start(self, database_url: str, tmp_path: Path) -> None:
        with pytest.raises(SetupError, match="--data-dir"):
            run(ApiOptions(database_url=database_url, data_dir=tmp_path / "none", inbox=False), Stop())

    def test_a_full_disk_of_postgresql_is_reported_as_such_and_logged_once(
        self, database_url: str, connection: psycopg.Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        with ready_api(ApiOptions(database_url=database_url)) as client:
            scenario = create_scenario(client)
            simulate_full_disk(connection)
            try:
                for _ in range(3):
                    response = post_scenario(client)
                    assert_problem(response, 503, "disk_full")
                    assert response.headers["retry-after"]
                    assert client.get(f"/scenario/{scenario['scenario_uuid']}").json() == scenario
                    assert client.get("/health/ready").status_code == 200
            finally:
                connection.execute("DROP TRIGGER no_room ON scenarios")
            create_scenario(client)
        events = [record.getMessage() for record in caplog.records]
        assert events.count("disk_full") == 1
        assert "away" not in events


def simulate_full_disk(connection: psycopg.Connection) -> None:
    """Make inserts fail with the error that PostgreSQL raises on a full disk."""
    connection.execute(
        """
        CREATE OR REPLACE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
        CREATE TRIGGER no_room BEFORE INSERT ON scenarios EXECUTE FUNCTION no_room()
        """
    )
