"""Health checks and metrics: what each check requires, and what it names if something is missing."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.api_server import (
    SOURCE_URL,
    assert_problem,
    create_scenario,
    free_port,
    is_lock_awaited,
    is_ready,
    ready_api,
    running_api,
    wait_until,
)

from vidflow.domain.errors import SetupError
from vidflow.infra.embedded.postgres import EmbeddedPostgres
from vidflow.infra.postgres.lease import LEADER_LEASE, SHARD_PREFIX
from vidflow.infra.postgres.migrations import migrate
from vidflow.infra.process.stopping import Stop
from vidflow.roles.api import run
from vidflow.settings import ApiOptions


@pytest.fixture(scope="module")
def client(database_url: str) -> Iterator[httpx.Client]:
    with ready_api(ApiOptions(database_url=database_url)) as client:
        yield client


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection
        connection.execute("TRUNCATE lease, runners, inbox_partitions, outbox")


def write_live_rows(connection: psycopg.Connection) -> None:
    """Write the rows by which every role shows that it is alive."""
    for name in (LEADER_LEASE, *(f"{SHARD_PREFIX}{shard}" for shard in range(16))):
        connection.execute("INSERT INTO lease VALUES (%s, uuidv7(), 1, now() + interval '1 h')", (name,))
    connection.execute("INSERT INTO runners VALUES ('r', now(), 2, 2, 0, false, false, 'default', '1')")
    for partition in range(2):
        connection.execute("INSERT INTO inbox_partitions VALUES ('results', 'new', %s, 0, now())", (partition,))


def test_the_system_is_healthy_once_every_role_is_alive(client: httpx.Client, connection: psycopg.Connection) -> None:
    problem = assert_problem(client.get("/health/system"), 503, "not_running")
    assert problem["missing"] == ["orchestrator", "relay", "runner", "inbox"]
    write_live_rows(connection)
    assert client.get("/health/system").status_code == 200


@pytest.mark.parametrize(
    ("loss", "missing"),
    [
        ("DELETE FROM lease WHERE name = 'leader'", "orchestrator"),
        ("UPDATE lease SET expires_at = now() - interval '1 s' WHERE name = 'leader'", "orchestrator"),
        ("UPDATE lease SET expires_at = now() - interval '1 s' WHERE name = 'outbox/7'", "relay"),
        ("DELETE FROM lease WHERE name = 'outbox/0'", "relay"),
        ("UPDATE runners SET last_seen_at = now() - interval '6 s'", "runner"),
        ("UPDATE inbox_partitions SET caught_up_at = now() - interval '6 s' WHERE partition = 1", "inbox"),
        ("UPDATE inbox_partitions SET caught_up_at = NULL WHERE partition = 1", "inbox"),
        ("UPDATE inbox_partitions SET topic = 'other'", "inbox"),
        # Times written before the database's clock stepped back.
        ("UPDATE runners SET last_seen_at = now() + interval '1 h'", "runner"),
        ("UPDATE inbox_partitions SET caught_up_at = now() + interval '1 h'", "inbox"),
    ],
)
def test_a_missing_role_is_named(client: httpx.Client, connection: psycopg.Connection, loss: str, missing: str) -> None:
    write_live_rows(connection)
    connection.execute(loss)
    problem = assert_problem(client.get("/health/system"), 503, "not_running")
    assert problem["missing"] == [missing]
    assert missing in problem["detail"]


def test_a_running_inbox_that_has_not_caught_up_is_not_missing(
    client: httpx.Client, connection: psycopg.Connection
) -> None:
    write_live_rows(connection)
    connection.execute(
        "UPDATE inbox_partitions SET seen_at = now(), caught_up_at = now() - interval '1 h' WHERE partition = 1"
    )
    problem = assert_problem(client.get("/health/system"), 503, "results_behind")
    assert problem["missing"] == []
    assert "The inbox runs" in problem["detail"]
    connection.execute("UPDATE inbox_partitions SET seen_at = now() + interval '1 h'")
    assert assert_problem(client.get("/health/system"), 503, "not_running")["missing"] == ["inbox"]


def test_positions_in_a_deleted_topic_do_not_count(client: httpx.Client, connection: psycopg.Connection) -> None:
    write_live_rows(connection)
    connection.execute("INSERT INTO inbox_partitions VALUES ('results', 'old', 0, 9, now() - interval '1 day')")
    assert client.get("/health/system").status_code == 200
    connection.execute("UPDATE inbox_partitions SET caught_up_at = now() + interval '1 h' WHERE topic_id = 'old'")
    assert client.get("/health/system").status_code == 200


def test_a_pool_with_waiting_scenarios_and_no_runner_is_named(
    client: httpx.Client, connection: psycopg.Connection
) -> None:
    write_live_rows(connection)
    scenario = create_scenario(client, pool="typo")
    connection.execute("INSERT INTO runners VALUES ('g', now(), 4, 1, 0, false, false, 'gpu', '1')")
    health = client.get("/health/system").json()
    assert (health["status"], health["empty_pools"]) == ("degraded", ["typo"])
    pools = {pool["pool"]: pool for pool in health["pools"]}
    assert pools["gpu"] == {"pool": "gpu", "runners": 1, "slots": 4, "used": 1, "waiting": 0}
    assert pools["typo"] == {"pool": "typo", "runners": 0, "slots": 0, "used": 0, "waiting": 1}
    assert client.get(f"/scenario/{scenario['scenario_uuid']}").json()["waiting_for"] == "pool"
    connection.execute("INSERT INTO runners VALUES ('t', now(), 4, 4, 0, false, false, 'typo', '1')")
    assert client.get("/health/system").json()["status"] == "ok"
    assert client.get(f"/scenario/{scenario['scenario_uuid']}").json()["waiting_for"] == "runner"
    connection.execute("UPDATE runners SET used = 1 WHERE pool = 'typo'")
    assert client.get(f"/scenario/{scenario['scenario_uuid']}").json()["waiting_for"] == "orchestrator"
    client.post(f"/scenario/{scenario['scenario_uuid']}/shutdown")


def test_the_number_of_pools_shown_is_limited(client: httpx.Client, connection: psycopg.Connection) -> None:
    write_live_rows(connection)
    connection.execute(
        """
        INSERT INTO scenarios (source, model, fps, pool)
        SELECT 'http://a/b.mp4', 'motion', 'all', 'pool-' || n % 300 FROM generate_series(1, 3000) AS n
        """
    )
    try:
        health = client.get("/health/system").json()
        assert (len(health["pools"]), health["status"]) == (100, "degraded")
    finally:
        connection.execute("DELETE FROM scenarios WHERE pool <> 'default'")


def test_metrics_include_requests_states_and_backlog(client: httpx.Client, connection: psycopg.Connection) -> None:
    create_scenario(client)
    client.get("/nothing")
    write_live_rows(connection)
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }
    assert samples["vidflow_scenarios", ("state", "init_startup")] >= 1
    assert samples["vidflow_scenarios", ("state", "active")] == 0
    assert samples["vidflow_outbox_waiting",] >= 1
    assert 0 <= samples["vidflow_inbox_lag_seconds",] < 5
    assert samples["vidflow_runners",] == 1
    assert samples["vidflow_pool_slots", ("pool", "default")] >= 1
    assert samples["vidflow_database_up",] == 1
    assert (
        samples["vidflow_http_requests_total", ("method", "POST"), ("path", "/scenario/init"), ("status", "201")] >= 1
    )
    assert samples["vidflow_http_requests_total", ("method", "other"), ("path", "other"), ("status", "404")] >= 1


def test_metrics_include_the_connection_pool_and_the_age_of_the_queue(
    client: httpx.Client, connection: psycopg.Connection
) -> None:
    uuid_ = create_scenario(client)["scenario_uuid"]
    connection.execute(
        "UPDATE scenarios SET state_changed_at = now() - interval '1 hour' WHERE scenario_uuid = %s", (uuid_,)
    )
    text = client.get("/metrics").text
    oldest = re.search(r"^vidflow_queue_oldest_seconds ([0-9.]+)$", text, re.MULTILINE)
    assert oldest is not None
    assert 3600 <= float(oldest[1]) < 4000
    assert "vidflow_database_pool_limit 10.0" in text
    assert "vidflow_database_pool_in_use 0.0" in text
    assert 'vidflow_build_info{python="' in text
    assert "vidflow_relay" not in text


def test_a_method_that_a_client_invents_is_no_label(client: httpx.Client) -> None:
    client.request("BREW", "/scenario")
    assert "BREW" not in client.get("/metrics").text


def test_metrics_on_a_separate_port_are_not_served_by_the_api(database_url: str) -> None:
    port = free_port()
    with ready_api(ApiOptions(database_url=database_url, metrics_port=port)) as client:
        assert client.get("/metrics").status_code == 404
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert "vidflow_database_up 1.0" in text
    assert 'vidflow_scenarios{state="init_startup"}' in text


@pytest.mark.long
def test_an_exhausted_connection_pool_is_reported_quickly(database_url: str) -> None:
    with (
        ready_api(ApiOptions(database_url=database_url, pool_size=1)) as client,
        psycopg.connect(database_url) as other,
    ):
        other.execute("LOCK TABLE scenarios IN ACCESS EXCLUSIVE MODE")
        started_s = time.monotonic()
        problem = assert_problem(client.get("/health/ready"), 503, "database_unavailable")
        assert problem["missing"] == ["database"]
        response = client.get("/scenario")
        assert_problem(response, 503, "database_busy")
        assert response.headers["retry-after"] == "1"
        assert client.get("/health/live").status_code == 200
        assert time.monotonic() - started_s < 10
        other.rollback()
        wait_until(lambda: client.get("/health/ready").status_code == 200, "it is ready again")


@pytest.mark.long
def test_an_api_survives_an_outage_of_its_database_and_serves_again(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path, notify=print, stop=Stop())
    url = server.start().url
    try:
        migrate(url, print)
        with ready_api(ApiOptions(database_url=url)) as client:
            scenario = create_scenario(client)
            server.stop()
            for response in (
                client.get("/scenario"), client.post("/scenario/init", json={"source": SOURCE_URL, "model": "motion"}),
                client.get("/prediction", params={"scenario_uuid": scenario["scenario_uuid"]}),
            ):  # fmt: skip
                assert_problem(response, 503, "database_unavailable")
                assert response.headers["retry-after"]
            assert assert_problem(client.get("/health/ready"), 503, "database_unavailable")["missing"] == ["database"]
            assert assert_problem(client.get("/health/system"), 503, "database_unavailable")["missing"] == ["database"]
            assert "vidflow_database_up 0.0" in client.get("/metrics").text
            server = EmbeddedPostgres(tmp_path, notify=print, stop=Stop())
            assert server.start().url == url
            wait_until(lambda: client.get("/health/ready").status_code == 200, "it is ready again")
            assert client.get(f"/scenario/{scenario['scenario_uuid']}").json() == scenario
    finally:
        server.stop()


def test_an_api_waits_for_the_schema_and_logs_it(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE without_schema")
    url = postgres_url.rsplit("/", 1)[0] + "/without_schema"
    with running_api(ApiOptions(database_url=url)) as client:
        problem = assert_problem(client.get("/health/ready"), 503, "database_unavailable")
        assert "vidflow db migrate" in problem["detail"]
        assert_problem(
            client.post("/scenario/init", json={"source": SOURCE_URL, "model": "motion"}), 503, "database_unavailable"
        )
        assert client.get("/health/live").status_code == 200
        migrate(url, print)
        wait_until(lambda: client.get("/health/ready").status_code == 200, "the schema is noticed")
        create_scenario(client)
    assert "schema_missing" in [record.getMessage() for record in caplog.records]


def test_an_api_without_a_database_url_suggests_vidflow_dev() -> None:
    with pytest.raises(SetupError, match="vidflow dev"):
        run(ApiOptions(), Stop())


def test_an_api_reports_that_its_port_is_in_use(client: httpx.Client, database_url: str) -> None:
    with pytest.raises(SetupError, match="--port"):
        run(ApiOptions(database_url=database_url, port=client.base_url.port or 0, inbox=False), Stop())


def test_an_internal_error_has_an_id_that_is_logged_once(
    client: httpx.Client, connection: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    uuid_ = create_scenario(client)["scenario_uuid"]
    connection.execute("UPDATE scenarios SET skips = '{\"broken\": 1}' WHERE scenario_uuid = %s", (uuid_,))
    problem = assert_problem(client.get(f"/scenario/{uuid_}"), 500, "fault")
    logged_ids = [getattr(record, "vidflow_fields", {}).get("error_id") for record in caplog.records]
    assert logged_ids.count(problem["error_id"]) == 1
    assert "broken" not in problem["detail"]
    connection.execute("UPDATE scenarios SET skips = '[]' WHERE scenario_uuid = %s", (uuid_,))


@contextmanager
def api_process(database_url: str) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """Start an api as a process, and yield it with a client once it is ready."""
    port = free_port()
    options = ["--port", str(port), "--no-inbox", "--database-url", database_url]
    with (
        subprocess.Popen([sys.executable, "-m", "vidflow", "api", *options]) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
    ):
        try:
            wait_until(lambda: is_ready(client), "the api is ready")
            yield process, client
        finally:
            process.kill()


@contextmanager
def pending_request(client: httpx.Client, method: str, path: str) -> Iterator[list[httpx.Response]]:
    """Send a request during the block. The list has its response after the block, unless the connection was lost."""
    responses: list[httpx.Response] = []

    def send() -> None:
        with suppress(httpx.TransportError):
            responses.append(client.request(method, path))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield responses
    finally:
        thread.join()


def is_in_open_transaction(connection: psycopg.Connection) -> bool:
    query = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"
    return connection.execute(query).fetchone() is not None


@pytest.mark.long
def test_a_process_stops_while_a_request_hangs(database_url: str) -> None:
    with api_process(database_url) as (process, client), psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE scenarios IN ACCESS EXCLUSIVE MODE")
        with pending_request(client, "GET", "/scenario") as responses:
            wait_until(lambda: is_lock_awaited(database_url), "the request hangs")
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
        assert responses[0].status_code == 503  # cancelled, or ended by its time limit


@pytest.mark.long
@pytest.mark.fault
def test_invariant_8_an_api_that_freezes_in_a_shutdown_blocks_nobody(
    database_url: str, connection: psycopg.Connection
) -> None:
    with api_process(database_url) as (process, client):
        uuid_ = create_scenario(client)["scenario_uuid"]
        with psycopg.connect(database_url) as other:
            other.execute("SELECT FROM scenarios WHERE scenario_uuid = %s FOR UPDATE", (uuid_,))
            with pending_request(client, "POST", f"/scenario/{uuid_}/shutdown") as responses:
                wait_until(lambda: is_lock_awaited(database_url), "the request is in its transaction")
                process.send_signal(signal.SIGSTOP)
                other.rollback()
                # Without this the update below could get the row before the frozen api's transaction.
                wait_until(lambda: is_in_open_transaction(connection), "the frozen api's transaction has the row")
                connection.execute("SET lock_timeout = '4 s'")
                connection.execute("UPDATE scenarios SET skips = '[]' WHERE scenario_uuid = %s", (uuid_,))
                process.send_signal(signal.SIGCONT)
        assert responses[0].status_code == 503
        assert client.post(f"/scenario/{uuid_}/shutdown").status_code == 200


@pytest.mark.parametrize("video_fps", ["0", "-1", "fast", "nan", "inf", ""])
def test_an_invalid_default_frame_rate_is_reported_at_the_start(database_url: str, video_fps: str) -> None:
    with pytest.raises(SetupError, match="VIDEO_FPS"):
        run(ApiOptions(database_url=database_url, video_fps=video_fps), Stop())
