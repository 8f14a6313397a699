"""Pages of every list: limited by rows and bytes, never empty before the end, and complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.types.json import Jsonb
from tests.integration.api_server import (
    UNKNOWN_UUID,
    assert_problem,
    create_scenario,
    ready_api,
    write_completion,
    write_deployment,
    write_results,
)

from vidflow.infra.postgres import pages
from vidflow.settings import ApiOptions

OVERHEAD = 2_000
"""Size of a page besides the limited parts of its items."""


@pytest.fixture(scope="module")
def client(database_url: str) -> Iterator[httpx.Client]:
    with ready_api(ApiOptions(database_url=database_url)) as client:
        yield client


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "TRUNCATE scenarios, scenario_progress, scenario_history, scenario_results, scenario_gaps, outbox"
        )
        yield connection


def insert_scenarios(
    connection: psycopg.Connection, count: int, parameters: object = None, state: str = "init_startup"
) -> list[str]:
    """Insert scenarios, and return their uuids, the newest first."""
    outcome = "stopped" if state == "inactive" else None
    rows = connection.execute(
        """
        INSERT INTO scenarios (source, model, fps, parameters, state, outcome)
        SELECT 'http://camera/x', 'motion', 'all', %s, %s, %s
          FROM generate_series(1, %s)
     RETURNING scenario_uuid::text
        """,
        (Jsonb(parameters or {}), state, outcome, count),
    ).fetchall()
    return sorted((scenario_uuid for (scenario_uuid,) in rows), reverse=True)


def read_all_pages(
    client: httpx.Client, path: str, key: Callable[[dict[str, Any]], Any], **query: Any
) -> list[list[Any]]:
    """Read the list to its end, and return the keys of the items of each page."""
    keys: list[list[Any]] = []
    while True:
        response = client.get(path, params=query)
        assert response.status_code == 200, response.text
        page = response.json()
        if len(page["items"]) > 1:
            assert len(response.content) <= pages.MAX_PAGE_BYTES + OVERHEAD
        keys.append([key(item) for item in page["items"]])
        assert page["items"] or page["next"] is None, "an empty page must be the last"
        if page.get("complete", page["next"] is None):
            return keys
        query["after"] = page["next"]


def flatten(keys: list[list[Any]]) -> list[Any]:
    return [key for page in keys for key in page]


def test_pages_of_scenarios_with_large_labels_are_limited_by_bytes(
    client: httpx.Client, connection: psycopg.Connection
) -> None:
    labels = [f"{number:0200d}" for number in range(1000)]
    uuids = insert_scenarios(connection, 40, {"labels": labels})
    key_pages = read_all_pages(client, "/scenario", lambda item: item["scenario_uuid"], limit=1000)
    assert flatten(key_pages) == uuids
    assert {len(page) for page in key_pages[:-1]} == {pages.MAX_PAGE_BYTES // (len(labels) * 204 + 1000)}


def test_pages_of_small_scenarios_are_limited_by_rows(client: httpx.Client, connection: psycopg.Connection) -> None:
    uuids = insert_scenarios(connection, 25)
    assert [len(page) for page in read_all_pages(client, "/scenario", str, limit=10)] == [10, 10, 5]
    assert flatten(read_all_pages(client, "/scenario", lambda item: item["scenario_uuid"], limit=1000)) == uuids
    finished = insert_scenarios(connection, 5, state="inactive")
    assert (
        flatten(read_all_pages(client, "/scenario", lambda item: item["scenario_uuid"], limit=2, state="inactive"))
        == finished
    )


def test_a_scenario_larger_than_a_page_gets_its_own_page(
    client: httpx.Client, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuids = insert_scenarios(connection, 3, {"labels": ["x" * 200] * 20})
    with monkeypatch.context() as patch:
        patch.setattr("vidflow.infra.postgres.scenarios.MAX_PAGE_BYTES", 2000)
        patch.setattr("vidflow.infra.postgres.pages.MAX_PAGE_BYTES", 2000)
        assert read_all_pages(client, "/scenario", lambda item: item["scenario_uuid"]) == [
            [scenario_uuid] for scenario_uuid in uuids
        ]


def test_pages_of_frames_with_many_detections_are_limited_by_bytes(client: httpx.Client, database_url: str) -> None:
    scenario_uuid = create_scenario(client)["scenario_uuid"]
    write_deployment(database_url, scenario_uuid)
    detections = [{"label": "person", "score": 0.5, "box": [1.5, 2.5, 300.25, 200.0]}] * 500
    write_results(database_url, scenario_uuid, range(100), detections)
    write_completion(database_url, scenario_uuid)
    key_pages = read_all_pages(
        client, "/prediction", lambda item: item["frame_number"], scenario_uuid=scenario_uuid, limit=1000
    )
    assert flatten(key_pages) == list(range(100))
    assert 1 < len(key_pages) < 10


def test_the_history_is_paged(client: httpx.Client, connection: psycopg.Connection) -> None:
    scenario_uuid = create_scenario(client)["scenario_uuid"]
    connection.execute(
        """
        INSERT INTO scenario_history (scenario_uuid, number, from_state, to_state, reason_code, reason, epoch, attempt, detail)
        SELECT %s, number, 'active', 'init_startup', 'worker_crashed', 'crashed', 1, 0, repeat(E'\\x1b', 3000)
          FROM generate_series(1, 299) AS number
        """,
        (scenario_uuid,),
    )
    path = f"/scenario/{scenario_uuid}/history"
    key_pages = read_all_pages(client, path, lambda item: item["number"], limit=1000)
    assert flatten(key_pages) == list(range(300))
    assert len(key_pages) > 2
    assert [len(page) for page in read_all_pages(client, path, str, limit=40)] == [40] * 7 + [20]
    assert client.get(path, params={"after": 299}).json() == {"items": [], "next": None}


def test_gaps_are_paged_in_the_order_of_the_video(client: httpx.Client, connection: psycopg.Connection) -> None:
    scenario_uuid = create_scenario(client)["scenario_uuid"]
    places = [
        (after, from_s, reason)
        for after in (-1, 7, 2**62)
        for from_s in (-1.5, 0.1, 1e300)
        for reason in ("corrupt", "skipped", "stalled")
    ]
    for after, from_s, reason in reversed(places):
        connection.execute(
            "INSERT INTO scenario_gaps VALUES (%s, 1, %s, %s, 9, NULL, %s)", (scenario_uuid, after, from_s, reason)
        )
    path = f"/scenario/{scenario_uuid}/gaps"
    for limit in (1, 2, 5, 27, 1000):
        key_pages = read_all_pages(
            client, path, lambda item: (item["after_frame"], item["from_s"], item["reason"]), limit=limit
        )
        assert flatten(key_pages) == places
        assert all(len(page) == limit for page in key_pages[:-1])


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "AAAA",
        "W10",
        "bnVsbA",
        "WzEsMSwxXQ",
        "W05hTiwwLCIiXQ",
        "WzFlMzAsMCwiIl0",
        "WzEsMWU5OTksIiJd",
        "WzEsMCwiXHUwMDAwIl0",
        "é",
        "' OR 1=1",
        "x" * 300,
    ],
)
def test_an_invalid_cursor_is_refused(client: httpx.Client, cursor: str) -> None:
    scenario_uuid = create_scenario(client)["scenario_uuid"]
    problem = assert_problem(
        client.get(f"/scenario/{scenario_uuid}/gaps", params={"after": cursor}), 400, "request_malformed"
    )
    assert problem["errors"][0]["field"] == "after"
    for after in ("x", "-2", str(2**31)):
        response = client.get(f"/scenario/{scenario_uuid}/history", params={"after": after})
        assert_problem(response, 400, "request_malformed")


def test_pages_of_an_unknown_scenario_are_not_found(client: httpx.Client) -> None:
    for path in ("history", "gaps"):
        assert_problem(client.get(f"/scenario/{UNKNOWN_UUID}/{path}"), 404, "scenario_unknown")
