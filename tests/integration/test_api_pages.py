"""Every list in pages, bounded by rows and by bytes: none is too large, none is empty before the end, and nothing is missing."""

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
"""What a page takes beside its items' bounded parts."""


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
    tables: psycopg.Connection, count: int, parameters: object = None, state: str = "init_startup"
) -> list[str]:
    """Scenarios of these parameters, the newest first."""
    outcome = "stopped" if state == "inactive" else None
    found = tables.execute(
        """
        INSERT INTO scenarios (source, model, fps, parameters, state, outcome)
        SELECT 'http://camera/x', 'motion', 'all', %s, %s, %s
          FROM generate_series(1, %s)
     RETURNING scenario_uuid::text
        """,
        (Jsonb(parameters or {}), state, outcome, count),
    ).fetchall()
    return sorted((one for (one,) in found), reverse=True)


def read_all_pages(
    client: httpx.Client, path: str, key: Callable[[dict[str, Any]], Any], **query: Any
) -> list[list[Any]]:
    """The keys of the items of each page, to the end of the list."""
    found: list[list[Any]] = []
    while True:
        answer = client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        if len(page["items"]) > 1:
            assert len(answer.content) <= pages.MAX_PAGE_BYTES + OVERHEAD
        found.append([key(item) for item in page["items"]])
        assert page["items"] or page["next"] is None, "a page that is not the last has an item"
        if page.get("complete", page["next"] is None):
            return found
        query["after"] = page["next"]


def flatten(found: list[list[Any]]) -> list[Any]:
    return [one for page in found for one in page]


def test_scenarios_with_large_labels_come_in_pages_of_bounded_size(
    client: httpx.Client, connection: psycopg.Connection
) -> None:
    labels = [f"{number:0200d}" for number in range(1000)]
    uuids = insert_scenarios(connection, 40, {"labels": labels})
    found = read_all_pages(client, "/scenario", lambda item: item["scenario_uuid"], limit=1000)
    assert flatten(found) == uuids
    assert {len(page) for page in found[:-1]} == {pages.MAX_PAGE_BYTES // (len(labels) * 204 + 1000)}


def test_small_scenarios_fill_a_page_by_their_number(client: httpx.Client, connection: psycopg.Connection) -> None:
    uuids = insert_scenarios(connection, 25)
    assert [len(page) for page in read_all_pages(client, "/scenario", str, limit=10)] == [10, 10, 5]
    assert flatten(read_all_pages(client, "/scenario", lambda item: item["scenario_uuid"], limit=1000)) == uuids
    finished = insert_scenarios(connection, 5, state="inactive")
    assert (
        flatten(read_all_pages(client, "/scenario", lambda item: item["scenario_uuid"], limit=2, state="inactive"))
        == finished
    )


def test_a_scenario_larger_than_a_page_is_a_page_of_its_own(
    client: httpx.Client, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuids = insert_scenarios(connection, 3, {"labels": ["x" * 200] * 20})
    with monkeypatch.context() as patch:
        patch.setattr("vidflow.infra.postgres.scenarios.MAX_PAGE_BYTES", 2000)
        patch.setattr("vidflow.infra.postgres.pages.MAX_PAGE_BYTES", 2000)
        assert read_all_pages(client, "/scenario", lambda item: item["scenario_uuid"]) == [[one] for one in uuids]


def test_frames_with_many_detections_come_in_pages_of_bounded_size(client: httpx.Client, database_url: str) -> None:
    scenario_uuid = create_scenario(client)["scenario_uuid"]
    write_deployment(database_url, scenario_uuid)
    seen = [{"label": "person", "score": 0.5, "box": [1.5, 2.5, 300.25, 200.0]}] * 500
    write_results(database_url, scenario_uuid, range(100), seen)
    write_completion(database_url, scenario_uuid)
    found = read_all_pages(
        client, "/prediction", lambda item: item["frame_number"], scenario_uuid=scenario_uuid, limit=1000
    )
    assert flatten(found) == list(range(100))
    assert 1 < len(found) < 10


def test_the_history_comes_in_pages(client: httpx.Client, connection: psycopg.Connection) -> None:
    scenario_uuid = create_scenario(client)["scenario_uuid"]
    connection.execute(
        """
        INSERT INTO scenario_history (scenario_uuid, number, from_state, to_state, reason, epoch, attempt, detail)
        SELECT %s, number, 'active', 'init_startup', 'lost', 1, 0, repeat(E'\\x1b', 3000)
          FROM generate_series(1, 299) AS number
        """,
        (scenario_uuid,),
    )
    path = f"/scenario/{scenario_uuid}/history"
    found = read_all_pages(client, path, lambda item: item["number"], limit=1000)
    assert flatten(found) == list(range(300))
    assert len(found) > 2
    assert [len(page) for page in read_all_pages(client, path, str, limit=40)] == [40] * 7 + [20]
    assert client.get(path, params={"after": 299}).json() == {"items": [], "next": None}


def test_gaps_come_in_pages_in_the_order_of_the_video(client: httpx.Client, connection: psycopg.Connection) -> None:
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
        found = read_all_pages(
            client, path, lambda item: (item["after_frame"], item["from_s"], item["reason"]), limit=limit
        )
        assert flatten(found) == places
        assert all(len(page) == limit for page in found[:-1])


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
def test_a_cursor_that_is_none_is_refused(client: httpx.Client, cursor: str) -> None:
    scenario_uuid = create_scenario(client)["scenario_uuid"]
    problem = assert_problem(
        client.get(f"/scenario/{scenario_uuid}/gaps", params={"after": cursor}), 400, "request_malformed"
    )
    assert problem["errors"][0]["field"] == "after"
    for after in ("x", "-2", str(2**31)):
        answer = client.get(f"/scenario/{scenario_uuid}/history", params={"after": after})
        assert_problem(answer, 400, "request_malformed")


def test_pages_of_an_unknown_scenario_are_not_found(client: httpx.Client) -> None:
    for path in ("history", "gaps"):
        assert_problem(client.get(f"/scenario/{UNKNOWN_UUID}/{path}"), 404, "scenario_unknown")
