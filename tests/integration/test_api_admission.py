"""The door under pressure: a full queue, no free connection, a full disk. What is refused is told soon and with a way out."""

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


def stored(tables: psycopg.Connection) -> int:
    [(count,)] = tables.execute("SELECT count(*) FROM scenarios").fetchall()
    return int(count)


class TestQueue:
    """Scenarios that wait for a runner, up to a limit."""

    def test_beyond_its_limit_a_scenario_is_refused_with_when_to_come_again(
        self, database_url: str, connection: psycopg.Connection
    ) -> None:
        with ready_api(ApiOptions(database_url=database_url, queue_limit=3)) as client:
            for _ in range(3):
                create_scenario(client)
            answer = post_scenario(client)
            problem = assert_problem(answer, 429, "queue_full")
            assert "3 scenarios wait" in problem["detail"]
            assert int(answer.headers["retry-after"]) >= 1
            assert stored(connection) == 3

    def test_a_full_queue_still_takes_shutdowns_and_lets_in_again_what_they_make_room_for(
        self, database_url: str
    ) -> None:
        with ready_api(ApiOptions(database_url=database_url, queue_limit=2)) as client:
            first = create_scenario(client)
            create_scenario(client)
            assert_problem(post_scenario(client), 429, "queue_full")
            assert client.post(f"/scenario/{first['scenario_uuid']}/shutdown").status_code == 200
            wait_until(lambda: is_admitted(client), "there is room for one")
            assert_problem(post_scenario(client), 429, "queue_full")

    def test_scenarios_at_work_take_no_place_in_it(self, database_url: str) -> None:
        with ready_api(ApiOptions(database_url=database_url, queue_limit=1)) as client:
            write_deployment(database_url, create_scenario(client)["scenario_uuid"])
            wait_until(lambda: is_admitted(client), "the first is at work")

    def test_a_crowd_that_comes_at_once_does_not_overshoot_it(
        self, database_url: str, connection: psycopg.Connection
    ) -> None:
        with (
            ready_api(ApiOptions(database_url=database_url, queue_limit=25)) as client,
            ThreadPoolExecutor(16) as crowd,
        ):
            for _ in range(3):  # over several looks
                answers = list(crowd.map(lambda _: post_scenario(client).status_code, range(60)))
                assert set(answers) <= {201, 429}
                assert stored(connection) == 25
                time_of_a_look = time.monotonic() + 1.0
                wait_until(lambda until_s=time_of_a_look: time.monotonic() > until_s, "the next look is due")

    def test_what_waits_is_limited_by_bytes_too(self, database_url: str, connection: psycopg.Connection) -> None:
        large = {**BODY, "source": f"{SOURCE_URL}?{'x' * 3000}"}
        with ready_api(ApiOptions(database_url=database_url, queue_limit_bytes=10_000)) as client:
            while (answer := client.post("/scenario/init", json=large)).status_code == 201:
                assert stored(connection) <= 3
            assert "--queue-limit-bytes" in assert_problem(answer, 429, "queue_full")["detail"]
            assert answer.headers["retry-after"]
            assert stored(connection) == 3
            create_scenario(client)  # a small one still fits
            connection.execute("UPDATE scenarios SET state = 'inactive', outcome = 'stopped'")
            wait_until(lambda: client.post("/scenario/init", json=large).status_code == 201, "there is room again")

    def test_a_scenario_larger_than_the_limit_is_taken_by_an_empty_queue(self, database_url: str) -> None:
        with ready_api(ApiOptions(database_url=database_url, queue_limit_bytes=1)) as client:
            create_scenario(client)
            assert_problem(post_scenario(client), 429, "queue_full")

    def test_what_was_let_in_by_others_counts_too(self, database_url: str) -> None:
        options = ApiOptions(database_url=database_url, queue_limit=4)
        with ready_api(options) as one, ready_api(options) as other:
            for _ in range(2):
                create_scenario(one)
            for _ in range(2):
                create_scenario(other)
            wait_until(lambda: post_scenario(one).status_code == 429, "one knows of the other's")
            assert post_scenario(other).status_code == 429


class TestConnections:
    """All connections to the database busy."""

    @contextmanager
    def no_connection_free(self, client: httpx.Client, database_url: str) -> Iterator[None]:
        """The one connection of the pool waits in a request."""
        with psycopg.connect(database_url) as other, ThreadPoolExecutor(1) as asking:
            other.execute("LOCK TABLE scenarios IN ACCESS EXCLUSIVE MODE")
            hangs = asking.submit(client.get, "/scenario")
            wait_until(lambda: is_lock_awaited(database_url), "a request holds the connection")
            yield
            other.rollback()
            assert hangs.result().status_code == 200

    @pytest.fixture(autouse=True)
    def _held_for_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The request that holds the connection is not ended before the test does it."""
        monkeypatch.setattr(database, "STATEMENT_TIMEOUT_S", 60.0)

    def test_a_crowd_that_finds_none_free_is_told_soon_and_served_when_one_is(self, database_url: str) -> None:
        with (
            ready_api(ApiOptions(database_url=database_url, pool_size=1)) as client,
            httpx.Client(
                base_url=client.base_url, timeout=30, limits=httpx.Limits(max_keepalive_connections=0)
            ) as many,
            ThreadPoolExecutor(100) as crowd,
        ):
            with self.no_connection_free(client, database_url):
                began_s = time.monotonic()
                answers = list(crowd.map(lambda _: post_scenario(many), range(200)))
                print_figure(
                    f"200 requests by 100 at once without a connection: all told in {time.monotonic() - began_s:.2f} s"
                )
                for answer in answers:
                    assert "--pool-size" in assert_problem(answer, 503, "database_busy")["detail"]
                    assert answer.headers["retry-after"]
            # Not by the first client: the server closes a connection that was idle for some seconds, maybe just now.
            wait_until(lambda: is_admitted(many), "it serves again")

    def test_that_all_are_busy_is_not_told_as_an_outage(
        self, database_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with ready_api(ApiOptions(database_url=database_url, pool_size=1)) as client:
            with self.no_connection_free(client, database_url):
                assert_problem(post_scenario(client), 503, "database_busy")
            wait_until(lambda: is_admitted(client), "it serves again")
        assert "away" not in [record.getMessage() for record in caplog.records]


class TestDisk:
    """No room for more data: by what the api sees itself, and by what PostgreSQL says."""

    def test_below_the_least_free_no_work_is_taken_until_there_is_room_and_all_else_goes_on(
        self, database_url: str, tmp_path: Path
    ) -> None:
        with (
            small_disk(tmp_path / "disk", megabytes=4) as disk,
            ready_api(ApiOptions(database_url=database_url, data_dir=disk.path, min_free_bytes=2 * MEGABYTE)) as client,
        ):
            scenario = create_scenario(client)
            disk.fill()
            wait_until(lambda: not is_admitted(client), "it has noticed")
            answer = post_scenario(client)
            problem = assert_problem(answer, 503, "disk_full")
            assert "make room" in problem["detail"]
            assert str(disk.path) not in problem["detail"]
            assert answer.headers["retry-after"]
            assert "vidflow_data_disk_free_bytes 0.0" in client.get("/metrics").text
            assert client.get("/health/ready").status_code == 200
            assert client.post(f"/scenario/{scenario['scenario_uuid']}/shutdown").status_code == 200
            disk.release()
            wait_until(lambda: is_admitted(client), "it lets in again")

    def test_the_least_free_is_a_setting(self, database_url: str, tmp_path: Path) -> None:
        for least, status in ((2**60, 503), (0, 201)):
            options = ApiOptions(database_url=database_url, data_dir=tmp_path, min_free_bytes=least)
            with ready_api(options) as client:
                assert post_scenario(client).status_code == status

    def test_a_folder_that_is_none_is_told_at_the_start(self, database_url: str, tmp_path: Path) -> None:
        with pytest.raises(SetupError, match="--data-dir"):
            run(ApiOptions(database_url=database_url, data_dir=tmp_path / "none", inbox=False), Stop())

    def test_what_postgresql_says_of_its_disk_is_told_as_such_and_said_once(
        self, database_url: str, connection: psycopg.Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        with ready_api(ApiOptions(database_url=database_url)) as client:
            scenario = create_scenario(client)
            refuse_to_store(connection)
            try:
                for _ in range(3):
                    answer = post_scenario(client)
                    assert_problem(answer, 503, "disk_full")
                    assert answer.headers["retry-after"]
                    assert client.get(f"/scenario/{scenario['scenario_uuid']}").json() == scenario
                    assert client.get("/health/ready").status_code == 200
            finally:
                connection.execute("DROP TRIGGER no_room ON scenarios")
            create_scenario(client)
        events = [record.getMessage() for record in caplog.records]
        assert events.count("disk_full") == 1
        assert "away" not in events


def refuse_to_store(tables: psycopg.Connection) -> None:
    """PostgreSQL's own refusal where it has no room, without a disk that has none."""
    tables.execute(
        """
        CREATE OR REPLACE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
        CREATE TRIGGER no_room BEFORE INSERT ON scenarios EXECUTE FUNCTION no_room()
        """
    )
