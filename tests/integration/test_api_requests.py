"""Invalid requests: each error is a problem that names the field, and nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from tests.integration.api_server import (
    SOURCE_URL,
    UNKNOWN_UUID,
    api_with_clip,
    assert_nothing_stored,
    assert_problem,
    create_scenario,
    ready_api,
)

from vidflow.settings import ApiOptions

GOOD = {"source": SOURCE_URL, "model": "motion"}


@pytest.fixture(scope="module")
def client(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with api_with_clip(database_url, tmp_path_factory.mktemp("media")) as client:
        yield client


@pytest.fixture(autouse=True)
def _assert_nothing_stored(database_url: str) -> Iterator[None]:
    yield
    assert_nothing_stored(database_url)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"source": None}, "source"), ({"source": ""}, "source"), ({"source": 5}, "source"), ({"source": "x" * 5000}, "source"),
        ({"model": None}, "model"), ({"model": ""}, "model"), ({"model": ["motion"]}, "model"),
        ({"fps": 0}, "fps"), ({"fps": -2}, "fps"), ({"fps": "ALL"}, "fps"), ({"fps": True}, "fps"), ({"fps": 1e9}, "fps"),
        ({"fps": 1001}, "fps"), ({"fps": 1000.0001}, "fps"), ({"fps": 1e-300}, "fps"), ({"fps": [1]}, "fps"), ({"fps": ""}, "fps"),
        ({"fps": "1/0"}, "fps"), ({"fps": "0/1"}, "fps"), ({"fps": "0x10"}, "fps"), ({"fps": "-1/2"}, "fps"), ({"fps": "1e3"}, "fps"),
        ({"fps": "1001"}, "fps"), ({"fps": "3000/2"}, "fps"), ({"fps": "9" * 5000}, "fps"), ({"fps": "1/" + "9" * 60}, "fps"),
        ({"fps": " 5"}, "fps"), ({"fps": "5\n"}, "fps"), ({"fps": "\u0665"}, "fps"), ({"fps": "NaN"}, "fps"), ({"fps": "1.5/2"}, "fps"),
        ({"priority": 101}, "priority"), ({"priority": -101}, "priority"), ({"priority": 1.5}, "priority"), ({"priority": "1"}, "priority"),
        ({"pool": ""}, "pool"), ({"pool": "a b"}, "pool"), ({"pool": "gpu\n"}, "pool"), ({"pool": "x" * 201}, "pool"),
        ({"pool": None}, "pool"), ({"pool": "../gpu"}, "pool"), ({"pool": "gpü"}, "pool"), ({"pool": 1}, "pool"),
        ({"priority": None}, "priority"), ({"priority": True}, "priority"),
        ({"parameters": None}, "parameters"), ({"parameters": []}, "parameters"), ({"parameters": {"score": 1}}, "parameters.score"),
        ({"parameters": {"score_threshold": 1.1}}, "parameters.score_threshold"),
        ({"parameters": {"score_threshold": "0.5"}}, "parameters.score_threshold"),
        ({"parameters": {"labels": "person"}}, "parameters.labels"), ({"parameters": {"labels": [""]}}, "parameters.labels[0]"),
        ({"parameters": {"labels": ["x"] * 1001}}, "parameters.labels"),
        ({"parameters": {"on_poison": "die"}}, "parameters.on_poison"),
        ({"parameters": {"on_corrupt": "fail"}}, "parameters.on_corrupt"),
        ({"parameters": {"follow": 1}}, "parameters.follow"), ({"parameters": {"follow_s": 0}}, "parameters.follow_s"),
        ({"parameters": {"duration_s": 0}}, "parameters.duration_s"), ({"parameters": {"duration_s": "5"}}, "parameters.duration_s"),
        ({"parameters": {"end_at": "tomorrow"}}, "parameters.end_at"), ({"parameters": {"end_at": 5}}, "parameters.end_at"),
        ({"parameters": {"end_at": "2099-01-01T00:00:00"}}, "parameters.end_at"),
        ({"parameters": {"give_up_after_s": 0.5}}, "parameters.give_up_after_s"),
        ({"parameters": {"stream": -1}}, "parameters.stream"), ({"parameters": {"stream": 0.5}}, "parameters.stream"),
        ({"parameters": {"live": "yes"}}, "parameters.live"),
        ({"extra": 1}, "extra"), ({"scenario_uuid": UNKNOWN_UUID}, "scenario_uuid"),
    ],
)  # fmt: skip
def test_an_invalid_field_is_named(client: httpx.Client, change: dict[str, Any], field: str) -> None:
    problem = assert_problem(client.post("/scenario/init", json=GOOD | change), 422, "request_invalid")
    assert [error["field"] for error in problem["errors"]] == [field]
    assert field in problem["detail"]


def test_a_missing_source_is_named(client: httpx.Client) -> None:
    body = {name: value for name, value in GOOD.items() if name != "source"}
    problem = assert_problem(client.post("/scenario/init", json=body), 422, "request_invalid")
    assert problem["errors"][0]["field"] == "source"


@pytest.mark.parametrize("label", ["\x00", "a\x00b", "tab\t", "line\n", "\x1b[31m", "a\u2028b", "\u202eb"])
def test_a_label_that_is_no_text_is_refused(client: httpx.Client, label: str) -> None:
    problem = assert_problem(
        client.post("/scenario/init", json=GOOD | {"parameters": {"labels": [label]}}), 422, "parameter_invalid"
    )
    assert "labels" in problem["detail"]


def test_a_body_without_the_json_content_type_is_refused_and_told_which_to_send(client: httpx.Client) -> None:
    for content_type in (
        "application/x-www-form-urlencoded",
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/msgpack",
    ):
        response = client.post("/scenario/init", content=b'{"source": "x"}', headers={"Content-Type": content_type})
        assert "Content-Type: application/json" in assert_problem(response, 415, "not_json")["detail"]


def test_a_body_that_is_too_large_is_refused(client: httpx.Client) -> None:
    response = client.post("/scenario/init", content=b" " * 300_000, headers={"Content-Type": "application/json"})
    assert_problem(response, 413, "body_too_large")


def test_a_body_of_unknown_length_that_grows_too_large_is_refused(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(300):
            yield b" " * 1000

    response = client.post("/scenario/init", content=chunks(), headers={"Content-Type": "application/json"})
    assert_problem(response, 413, "body_too_large")


def test_a_label_unknown_to_the_model_is_refused(client: httpx.Client) -> None:
    problem = assert_problem(
        client.post("/scenario/init", json=GOOD | {"parameters": {"labels": ["unicorn"]}}), 422, "parameter_invalid"
    )
    assert "unicorn" in problem["detail"]


def test_only_a_local_file_can_be_followed(client: httpx.Client) -> None:
    response = client.post("/scenario/init", json=GOOD | {"parameters": {"follow": True}})
    assert "local files" in assert_problem(response, 422, "parameter_invalid")["detail"]


@pytest.mark.parametrize("parameters", [{"end_at": "2099-01-01T00:00:00Z"}, {"give_up_after_s": 60}])
def test_a_limit_of_live_sources_is_refused_for_a_local_file(client: httpx.Client, parameters: dict[str, Any]) -> None:
    response = client.post("/scenario/init", json=GOOD | {"source": "clip.mp4", "parameters": parameters})
    assert "live sources only" in assert_problem(response, 422, "parameter_invalid")["detail"]


def test_an_end_that_has_passed_is_refused(client: httpx.Client) -> None:
    response = client.post("/scenario/init", json=GOOD | {"parameters": {"end_at": "2020-01-01T01:00:00+01:00"}})
    assert "has passed" in assert_problem(response, 422, "parameter_invalid")["detail"]


@pytest.mark.parametrize(
    ("source", "live", "sentence"),
    [("clip.mp4", True, "not live"), ("rtsp://camera.example/1", False, "always live")],
)
def test_what_is_live_cannot_be_denied_nor_claimed_of_a_file(
    client: httpx.Client, source: str, live: bool, sentence: str
) -> None:
    response = client.post("/scenario/init", json=GOOD | {"source": source, "parameters": {"live": live}})
    assert sentence in assert_problem(response, 422, "parameter_invalid")["detail"]


def test_an_unknown_model_is_refused_with_the_registered_names(client: httpx.Client) -> None:
    problem = assert_problem(client.post("/scenario/init", json=GOOD | {"model": "nothing"}), 422, "model_unknown")
    assert "motion" in problem["models"]
    assert "motion" in problem["detail"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"), ("limit=1001", "limit"), ("limit=x", "limit"), ("limit=", "limit"), ("state=nothing", "state"),
        ("after=x", "after"), ("after=' OR 1=1", "after"),
    ],
)  # fmt: skip
def test_an_invalid_parameter_of_the_list_is_named(client: httpx.Client, query: str, field: str) -> None:
    problem = assert_problem(client.get(f"/scenario?{query}"), 400, "request_malformed")
    assert [error["field"] for error in problem["errors"]] == [field]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "after=-2", "after=x", f"after={2**53}", f"after={2**64}", "after=1;--"]
)
def test_an_invalid_parameter_of_the_results_is_named(client: httpx.Client, query: str) -> None:
    problem = assert_problem(client.get(f"/prediction?scenario_uuid={UNKNOWN_UUID}&{query}"), 400, "request_malformed")
    assert [error["field"] for error in problem["errors"]] == [query.split("=", maxsplit=1)[0]]


def test_a_missing_parameter_is_named(client: httpx.Client) -> None:
    assert "scenario_uuid" in assert_problem(client.get("/prediction"), 400, "request_malformed")["detail"]


def test_unknown_paths_and_unsupported_methods_are_refused(client: httpx.Client) -> None:
    for path in ("/nothing", "/scenario/init/x/y", "/docs/assets/%2e%2e%2fapp.py", "/.git/config"):
        assert_problem(client.get(path), 404, "not_found")
    response = client.delete("/prediction")
    assert_problem(response, 405, "method_not_allowed")
    assert "GET" in response.headers["allow"]
    assert_problem(client.put("/scenario/init", json=GOOD), 405, "method_not_allowed")


class TestWithStoredScenario:
    """A source that is stored."""

    @pytest.fixture(autouse=True)
    def _empty_tables(self, database_url: str) -> Iterator[None]:
        yield
        with psycopg.connect(database_url) as connection:
            connection.execute("TRUNCATE scenarios, scenario_progress, scenario_history, outbox")

    def test_the_credentials_of_a_url_are_stored_for_the_runner_but_never_returned(
        self, client: httpx.Client, database_url: str
    ) -> None:
        source = "rtsp://me:hidden@camera.example:554/live?token=hidden&channel=1"
        scenario = create_scenario(client, source=source)
        texts = client.get(f"/scenario/{scenario['scenario_uuid']}").text + client.get("/scenario").text
        assert scenario["source"] == "rtsp://***@camera.example:554/live?token=***&channel=1"
        assert "hidden" not in texts
        with psycopg.connect(database_url) as connection:
            assert connection.execute("SELECT source FROM scenarios").fetchall() == [(source,)]


def test_local_files_are_refused_without_a_media_root(database_url: str, tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    video.write_bytes(b"video")
    with ready_api(ApiOptions(database_url=database_url)) as client:
        for source in (str(video), "video.mp4", "/etc/passwd", "/nothing"):
            assert_problem(client.post("/scenario/init", json=GOOD | {"source": source}), 422, "source_forbidden")
