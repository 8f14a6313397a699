"""Results over HTTP, page by page, while a scenario runs and after its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest
from tests.integration.api_server import (
    UNKNOWN_UUID,
    assert_problem,
    create_scenario,
    decode_body,
    ready_api,
    write_completion,
    write_deployment,
    write_results,
)

from vidflow.contract import PredictionPage
from vidflow.settings import ApiOptions

DETECTIONS = [
    {"label": 'per"son\\ü', "score": 0.8801, "box": [1.5, 2.0, 300.25, 200.01]},
    {"label": "dog", "score": 0.4, "box": [0.0, 0.0, 1.0, 1.0]},
    {
        "label": "person",
        "score": 0.3,
        "box": [0.0, 0.0, 5.0, 5.0],
        "keypoints": [[1.0, 2.25, 0.75], [0.0, 5.0, 0.0]],
        "corners": [[-1.5, 0.0], [5.0, 0.0], [5.0, 5.0], [-1.5, 5.0]],
        "mask": {"size": [1000, 50], "counts": "hj6`n1hg:aQNfVG0iPO0a\\i0"},
    },
]


@pytest.fixture(scope="module")
def client(database_url: str) -> Iterator[httpx.Client]:
    with ready_api(ApiOptions(database_url=database_url)) as client:
        yield client


@pytest.fixture
def scenario(client: httpx.Client, database_url: str) -> str:
    scenario_uuid: str = create_scenario(client)["scenario_uuid"]
    write_deployment(database_url, scenario_uuid)
    return scenario_uuid


def page(client: httpx.Client, scenario: str, **query: Any) -> dict[str, object]:
    response = client.get("/prediction", params={"scenario_uuid": scenario, **query})
    assert response.status_code == 200, response.text
    decode_body(response, PredictionPage)
    content: dict[str, object] = response.json()
    return content


def frame_numbers(content: dict[str, object]) -> list[int]:
    items = content["items"]
    assert isinstance(items, list)
    return [item["frame_number"] for item in items]


def test_the_page_is_empty_before_the_first_frame(client: httpx.Client, scenario: str) -> None:
    content = page(client, scenario)
    assert (content["items"], content["complete"]) == ([], False)
    assert page(client, scenario, after=content["next"]) == content


def test_frames_are_returned_as_stored(client: httpx.Client, scenario: str, database_url: str) -> None:
    write_results(database_url, scenario, range(2), DETECTIONS)
    content = page(client, scenario)
    assert content["items"] == [
        {
            "frame_number": number,
            "epoch": 5,
            "time_s": number / 2,
            "width": 640,
            "height": 360,
            "detections": DETECTIONS,
        }
        for number in (0, 1)
    ]


def test_only_a_damaged_frame_has_a_mark(client: httpx.Client, scenario: str, database_url: str) -> None:
    write_results(database_url, scenario, range(3))
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "UPDATE scenario_results SET corrupt = true WHERE scenario_uuid = %s AND frame_number = 1", (scenario,)
        )
    items = page(client, scenario)["items"]
    assert isinstance(items, list)
    assert [item.get("corrupt") for item in items] == [None, True, None]


def test_a_frame_of_a_live_source_says_when_it_was_captured_and_by_which_clock(
    client: httpx.Client, scenario: str, database_url: str
) -> None:
    write_results(database_url, scenario, range(2))
    with psycopg.connect(database_url) as connection:
        connection.execute("SET timezone = 'Asia/Kathmandu'")
        connection.execute(
            """
            UPDATE scenario_results SET captured_at = '2026-11-28 12:00:00.000250+00', captured_by = 'rtcp'
             WHERE scenario_uuid = %s AND frame_number = 1
            """,
            (scenario,),
        )
    items = page(client, scenario)["items"]
    assert isinstance(items, list)
    assert [(item.get("captured_at"), item.get("captured_by")) for item in items] == [
        (None, None), ("2026-11-28T12:00:00.000250Z", "rtcp"),
    ]  # fmt: skip


def test_consecutive_pages_have_no_gap(client: httpx.Client, scenario: str, database_url: str) -> None:
    write_results(database_url, scenario, range(7))
    write_completion(database_url, scenario)
    numbers: list[int] = []
    content = page(client, scenario, limit=3)
    while not content["complete"]:
        numbers += frame_numbers(content)
        content = page(client, scenario, limit=3, after=content["next"])
    assert numbers + frame_numbers(content) == list(range(7))
    assert content["next"] is None


def test_a_live_reader_keeps_its_place_until_the_list_is_complete(
    client: httpx.Client, scenario: str, database_url: str
) -> None:
    write_results(database_url, scenario, range(2))
    first = page(client, scenario)
    assert (frame_numbers(first), first["complete"], first["next"]) == ([0, 1], False, "1")
    waiting = page(client, scenario, after=first["next"])
    assert (frame_numbers(waiting), waiting["complete"], waiting["next"]) == ([], False, "1")
    write_results(database_url, scenario, range(2, 4))
    write_completion(database_url, scenario)
    last = page(client, scenario, after=waiting["next"])
    assert (frame_numbers(last), last["complete"], last["next"]) == ([2, 3], True, None)


def test_a_page_that_ends_with_the_last_row_of_an_inactive_scenario_is_complete(
    client: httpx.Client, scenario: str, database_url: str
) -> None:
    write_results(database_url, scenario, range(4))
    assert page(client, scenario, limit=4)["complete"] is False
    write_completion(database_url, scenario)
    assert page(client, scenario, limit=4)["complete"] is True
    assert page(client, scenario, limit=3)["complete"] is False
    assert page(client, scenario, after=100)["complete"] is True


def test_a_scenario_that_ended_without_a_frame_is_complete(
    client: httpx.Client, scenario: str, database_url: str
) -> None:
    write_completion(database_url, scenario)
    assert page(client, scenario) == {"items": [], "next": None, "complete": True}


def test_results_of_another_scenario_are_not_included(client: httpx.Client, scenario: str, database_url: str) -> None:
    other = create_scenario(client)["scenario_uuid"]
    write_results(database_url, other, range(3))
    assert page(client, scenario)["items"] == []


def test_an_unchanged_page_is_not_sent_again(client: httpx.Client, scenario: str, database_url: str) -> None:
    write_results(database_url, scenario, range(2))
    query = {"scenario_uuid": scenario}
    tag = client.get("/prediction", params=query).headers["etag"]
    assert client.get("/prediction", params=query, headers={"If-None-Match": tag}).status_code == 304
    write_completion(database_url, scenario)
    assert client.get("/prediction", params=query, headers={"If-None-Match": tag}).status_code == 200


def test_results_of_an_unknown_scenario_are_not_found(client: httpx.Client) -> None:
    assert_problem(client.get("/prediction", params={"scenario_uuid": UNKNOWN_UUID}), 404, "scenario_unknown")
    assert_problem(client.get("/prediction", params={"scenario_uuid": "x"}), 400, "request_malformed")


def test_results_without_a_progress_row_are_still_returned(
    client: httpx.Client, scenario: str, database_url: str
) -> None:
    write_results(database_url, scenario, range(2))
    with psycopg.connect(database_url) as connection:
        connection.execute("DELETE FROM scenario_progress WHERE scenario_uuid = %s", (scenario,))
    assert frame_numbers(page(client, scenario)) == [0, 1]
    assert client.get(f"/scenario/{scenario}").json()["frames_stored"] == 0


def test_removed_results_are_reported_as_gone(client: httpx.Client, scenario: str, database_url: str) -> None:
    """An empty complete page would mean that the scenario had no frames."""
    write_results(database_url, scenario, range(2))
    write_completion(database_url, scenario)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("INSERT INTO results_removed VALUES (%s, uuidv7())", (scenario,))
        response = client.get("/prediction", params={"scenario_uuid": scenario})
        connection.execute("TRUNCATE results_removed")
    problem = assert_problem(response, 410, "results_removed")
    assert "Run it again" in str(problem["detail"])
