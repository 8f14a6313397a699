"""Test support: a real api on a free port, and the rows that other roles would write."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
import psycopg
from psycopg.types.json import Jsonb

from vidflow.contract import Problem, ScenarioResponse
from vidflow.infra.process.stopping import Stop
from vidflow.roles.api import run
from vidflow.settings import ApiOptions

UNKNOWN_UUID = "01999999-0000-7000-8000-000000000000"
T = TypeVar("T")

SOURCE_URL = "http://camera.example/video.mp4"


@contextmanager
def running_api(options: ApiOptions) -> Iterator[httpx.Client]:
    """Run the api as its process does until the block ends, and yield a client."""
    stop = Stop()
    port = free_port()
    thread = threading.Thread(
        target=_run, args=(msgspec.structs.replace(options, port=port, inbox=False), stop), name="api under test"
    )
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=15) as client:
            wait_until(lambda: stop.requested or _listens(port), "the api listens")
            if stop.error is not None:
                raise stop.error
            yield client
    finally:
        stop.request()
        thread.join(15)
    assert not thread.is_alive(), "the api did not stop"
    if stop.error is not None:
        raise stop.error


@contextmanager
def ready_api(options: ApiOptions) -> Iterator[httpx.Client]:
    """Like `running_api`, once the api is ready."""
    with running_api(options) as client:
        wait_until(lambda: client.get("/health/ready").status_code == 200, "the api is ready")
        yield client


@contextmanager
def api_with_clip(database_url: str, media_root: Path) -> Iterator[httpx.Client]:
    """Like `ready_api`, with a media root in which there is a file `clip.mp4`. It is no video: the api does not open it."""
    (media_root / "clip.mp4").write_bytes(b"video")
    with ready_api(ApiOptions(database_url=database_url, media_root=media_root)) as client:
        yield client


def assert_nothing_stored(database_url: str) -> None:
    """Assert that there is no scenario, and no message for one."""
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM scenarios").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM outbox").fetchone() == (0,)


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.ConnectError:
        return False


def is_lock_awaited(database_url: str) -> bool:
    query = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(database_url) as connection:
        return connection.execute(query).fetchone() is not None


def wait_until(condition: Callable[[], bool], expected: str, limit_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {limit_s} s: {expected}"
        time.sleep(0.02)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def create_scenario(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = client.post("/scenario/init", json={"source": SOURCE_URL, "model": "motion"} | fields)
    assert response.status_code == 201, response.text
    decode_body(response, ScenarioResponse)
    scenario: dict[str, Any] = response.json()
    return scenario


def write_deployment(database_url: str, scenario_uuid: str, state: str = "active") -> None:
    """Write what the orchestrator writes for a deployed scenario."""
    with psycopg.connect(database_url) as tx:
        tx.execute(
            "UPDATE scenarios SET state = %s, epoch = 5, runner = 'runner-1' WHERE scenario_uuid = %s",
            (state, scenario_uuid),
        )
        tx.execute("UPDATE scenario_progress SET epoch = 5 WHERE scenario_uuid = %s", (scenario_uuid,))


def write_completion(database_url: str, scenario_uuid: str) -> None:
    with psycopg.connect(database_url) as tx:
        tx.execute(
            "UPDATE scenarios SET state = 'inactive', outcome = 'completed' WHERE scenario_uuid = %s", (scenario_uuid,)
        )


def write_results(database_url: str, scenario_uuid: str, frames: range, detections: Any = ()) -> None:
    """Write what the inbox writes for these frames."""
    with psycopg.connect(database_url) as tx:
        tx.cursor().executemany(
            """
            INSERT INTO scenario_results (scenario_uuid, frame_number, epoch, pts, time_s, width, height, at, detections)
            VALUES (%s, %s, 5, %s, %s, 640, 360, '2026-01-01T00:00:00Z', %s)
            """,
            [(scenario_uuid, number, number * 3000, number / 2, Jsonb(list(detections))) for number in frames],
        )
        tx.execute(
            "UPDATE scenario_progress SET next_frame = %s WHERE scenario_uuid = %s", (frames.stop, scenario_uuid)
        )


def decode_body(response: httpx.Response, body_type: type[T]) -> T:
    """Return the body as this type of the contract. Assert that it has no other fields."""
    body = msgspec.json.decode(response.content, type=body_type)
    assert json.loads(msgspec.json.encode(body)) == response.json()
    return body


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Assert that the response is a problem of this status and code, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem.keys() <= set(Problem.__struct_fields__), problem
    decoded = msgspec.convert(problem, Problem)
    assert (decoded.status, decoded.code) == (status, code), problem
    assert problem["title"]
    assert problem["detail"]
    return problem


def _run(options: ApiOptions, stop: Stop) -> None:
    try:
        run(options, stop)
    except BaseException as error:  # noqa: BLE001 - raised by the test's own thread
        stop.request(error)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
