"""Requests with an Idempotency-Key make their change once, whatever dies between the request and its answer."""

from __future__ import annotations

import os
import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.integration.api_server import SOURCE_URL, assert_problem, free_port, is_ready, ready_api, wait_until
from tests.integration.cli_process import RunningCommand, running_command
from tests.integration.delivery import emptied_database
from tests.integration.raw_http import send_raw_request
from tests.scopes import EVERYTHING

from vidflow.domain.access import WriteScope
from vidflow.infra.embedded.postgres import EmbeddedPostgres
from vidflow.infra.postgres import idempotency
from vidflow.infra.postgres.connection import Connection, connect
from vidflow.infra.postgres.migrations import migrate
from vidflow.infra.process.stopping import Stop
from vidflow.settings import ApiOptions

BODY = {"source": SOURCE_URL, "model": "motion"}


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    with emptied_database(database_url) as connection:
        yield connection


@pytest.fixture
def client(connection: Connection, database_url: str) -> Iterator[httpx.Client]:  # noqa: ARG001 - empties the tables first
    with ready_api(ApiOptions(database_url=database_url)) as client:
        yield client


def post(client: httpx.Client, key: str, **changes: Any) -> httpx.Response:
    return client.post("/scenario/init", json=BODY | changes, headers={"Idempotency-Key": key})


def count(connection: Connection, table: str = "scenarios") -> int:
    [(rows,)] = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(rows)


def test_a_repeated_request_gets_the_same_answer_and_changes_nothing(
    client: httpx.Client, connection: Connection
) -> None:
    first = post(client, "a-1")
    assert first.status_code == 201
    connection.execute("UPDATE scenarios SET priority = 7")  # the answer is that of the first request all the same
    for key in ("a-1", '"a-1"'):
        again = post(client, key)
        assert (again.status_code, again.content) == (201, first.content)
        assert (again.headers["location"], again.headers["content-type"]) == (
            first.headers["location"],
            first.headers["content-type"],
        )
    assert count(connection) == count(connection, "outbox") == count(connection, "audit") == 1
    other = post(client, "a-2")
    assert other.json()["scenario_uuid"] != first.json()["scenario_uuid"]
    assert count(connection) == 2


def test_a_key_of_another_request_is_refused(client: httpx.Client, connection: Connection) -> None:
    post(client, "k")
    assert_problem(post(client, "k", priority=1), 422, "idempotency_key_reused")
    spaced = b'{ "source": "http://camera.example/video.mp4", "model": "motion" }'  # the same fields in other bytes
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    assert_problem(client.post("/scenario/init", content=spaced, headers=headers), 422, "idempotency_key_reused")
    assert count(connection) == 1


def test_a_refused_request_keeps_no_answer(client: httpx.Client, connection: Connection) -> None:
    assert_problem(post(client, "k", model="none"), 422, "model_unknown")
    assert count(connection, "idempotency_keys") == 0
    assert post(client, "k").status_code == 201


@pytest.mark.parametrize("key", ["", '""', "a b", "a\tb", 'a"b', '"a', "ä", "x" * 256, "a,b", "a\\b", '"a", "b"'])
def test_an_invalid_key_is_refused(client: httpx.Client, connection: Connection, key: str) -> None:
    body = b'{"source": "http://camera.example/video.mp4", "model": "motion"}'
    head = f"POST /scenario/init HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    answer = send_raw_request(client, f"{head}Idempotency-Key: {key}\r\n\r\n".encode("latin-1") + body)
    assert answer.status == 400
    assert b"idempotency_key_invalid" in answer.body
    assert count(connection) == 0


def test_several_keys_are_refused(client: httpx.Client) -> None:
    answer = client.post("/scenario/init", json=BODY, headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "b")])
    assert_problem(answer, 400, "idempotency_key_invalid")


def test_a_request_that_is_under_way_is_not_made_again(client: httpx.Client, database_url: str) -> None:
    with connect(database_url, name="test") as other, other.transaction():
        assert idempotency.try_lock_key(other, EVERYTHING, "k")
        refused = post(client, "k")
        assert_problem(refused, 409, "idempotency_key_in_use")
        assert refused.headers["retry-after"] == "1"
        assert post(client, "another").status_code == 201
    assert post(client, "k").status_code == 201


def test_requests_that_come_together_make_one_scenario(client: httpx.Client, connection: Connection) -> None:
    with ThreadPoolExecutor(16) as threads:
        answers = [answer.result() for answer in [threads.submit(post, client, "k") for _ in range(60)]]
    codes = Counter(answer.status_code for answer in answers)
    assert codes.keys() <= {201, 409}
    assert len({answer.content for answer in answers if answer.status_code == 201}) == 1
    assert count(connection) == 1


def test_each_owner_has_its_own_keys(connection: Connection) -> None:
    anna, ben = (WriteScope(owner=name, is_for_all=False) for name in ("anna", "ben"))
    answer = idempotency.Answer(status=201, location=None, body=b"{}")
    with connection.transaction():
        assert idempotency.try_lock_key(connection, anna, "k")
        idempotency.add_answer(connection, anna, "k", b"1", answer)
    assert idempotency.find_answer(connection, anna, "k") == (b"1", answer)
    assert idempotency.find_answer(connection, ben, "k") is None


def test_a_repeated_request_is_answered_though_the_queue_is_full(connection: Connection, database_url: str) -> None:
    with ready_api(ApiOptions(database_url=database_url, queue_limit=1)) as client:
        first = post(client, "k")
        assert_problem(post(client, "l"), 429, "queue_full")
        assert post(client, "k").content == first.content
    assert count(connection) == 1


def test_an_answer_is_kept_for_a_day(client: httpx.Client, connection: Connection) -> None:
    first = post(client, "k")
    connection.execute("UPDATE idempotency_keys SET created_at = created_at - interval '23 h 59 min'")
    assert idempotency.delete_expired(connection) == 0
    assert post(client, "k").content == first.content
    connection.execute("UPDATE idempotency_keys SET created_at = created_at - interval '1 min'")
    second = post(client, "k", priority=3)  # the key is free again, although its row is still there
    assert second.json()["scenario_uuid"] != first.json()["scenario_uuid"]
    assert post(client, "k", priority=3).content == second.content
    connection.execute("UPDATE idempotency_keys SET created_at = created_at - interval '24 h'")
    assert idempotency.delete_expired(connection) == 1
    assert count(connection, "idempotency_keys") == 0


@contextmanager
def api_process(folder: Path, port: int, variables: dict[str, str]) -> Iterator[tuple[RunningCommand, httpx.Client]]:
    """Run an api without an inbox as a process of its own."""
    command = ("api", "--no-inbox", "--port", str(port))
    with (
        running_command(folder, *command, variables=variables) as api,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=15) as client,
    ):
        wait_until(lambda: is_ready(client), "the api is ready")
        yield api, client


def post_until_answered(client: httpx.Client, key: str) -> httpx.Response:
    answers: list[httpx.Response] = []

    def is_answered() -> bool:
        answers.append(post(client, key))
        return answers[-1].status_code not in {409, 503}

    wait_until(is_answered, f"the request {key} is answered")
    return answers[-1]


def has_open_transactions(connection: Connection) -> bool:
    query = """
        SELECT FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
    """
    return connection.execute(query).fetchone() is not None


class TestDeaths:
    """Never two scenarios, never none: processes are killed between a request and its answer."""

    @pytest.mark.parametrize(("point", "stored"), [("api.before_commit", 0), ("api.after_commit", 1)])
    def test_one_scenario_after_a_kill_of_the_api(
        self, connection: Connection, database_url: str, tmp_path: Path, point: str, stored: int
    ) -> None:
        port, key = free_port(), str(uuid.uuid4())
        variables = {"VIDFLOW_DATABASE_URL": database_url}
        with api_process(tmp_path, port, variables | {"VIDFLOW_CRASHPOINTS": point}) as (api, client):
            with pytest.raises(httpx.TransportError):
                post(client, key)
            assert api.process.wait(10) == -signal.SIGKILL
        wait_until(lambda: not has_open_transactions(connection), "the server has ended the transaction")
        assert count(connection) == stored
        with api_process(tmp_path, port, variables) as (_, client):
            answers = [post(client, key) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [201, 201]
        assert answers[0].content == answers[1].content
        assert count(connection) == count(connection, "outbox") == 1

    @pytest.mark.parametrize("answered", [1, 7, 20])
    def test_one_scenario_for_each_request_after_a_kill_of_postgresql(self, tmp_path: Path, answered: int) -> None:
        """The server dies while several requests are under way, each at another step."""
        folder = tmp_path / "postgres"
        postgres = EmbeddedPostgres(folder, notify=print, stop=Stop()).start()
        try:
            migrate(postgres.url, print)
            (tmp_path / "api").mkdir()
            keys = [f"key-{number}" for number in range(40)]
            with api_process(tmp_path / "api", free_port(), {"VIDFLOW_DATABASE_URL": postgres.url}) as (_, client):
                with ThreadPoolExecutor(8) as threads:
                    sent = {key: threads.submit(post, client, key) for key in keys}
                    wait_until(lambda: sum(answer.done() for answer in sent.values()) >= answered, "some are answered")
                    os.kill(postgres.pid or 0, signal.SIGKILL)
                    first = {key: answer.result() for key, answer in sent.items()}
                postgres.stop()
                postgres = EmbeddedPostgres(folder, notify=print, stop=Stop()).start()
                wait_until(lambda: is_ready(client), "the api is ready again")
                repeated = {key: post_until_answered(client, key) for key in keys}
            assert 0 < sum(answer.status_code == 503 for answer in first.values()) < len(keys)
            for key, answer in first.items():
                assert answer.status_code in {201, 503}, answer.text
                if answer.status_code == 201:
                    assert answer.content == repeated[key].content
            with connect(postgres.url, name="test") as connection:
                uuids = {str(row[0]) for row in connection.execute("SELECT scenario_uuid FROM scenarios").fetchall()}
            assert {answer.json()["scenario_uuid"] for answer in repeated.values()} == uuids
            assert len(uuids) == len(keys)
        finally:
            postgres.stop()
