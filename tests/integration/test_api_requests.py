"""Bad input at the door: each fault is told by its field, in one form, and nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from tests.integration.api_server import SOURCE_URL, UNKNOWN_UUID, assert_problem, create_scenario, ready_api

from vidflow.settings import ApiOptions

GOOD = {"source": SOURCE_URL, "model": "motion"}


@pytest.fixture(scope="module")
def client(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with ready_api(ApiOptions(database_url=database_url, media_root=tmp_path_factory.mktemp("media"))) as client:
        yield client


@pytest.fixture(autouse=True)
def _nothing_is_stored(database_url: str) -> Iterator[None]:
    yield
    with psycopg.connect(database_url) as tx:
        assert tx.execute("SELECT count(*) FROM scenarios").fetchone() == (0,)
        assert tx.execute("SELECT count(*) FROM outbox").fetchone() == (0,)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"source": None}, "source"), ({"source": ""}, "source"), ({"source": 5}, "source"), ({"source": "x" * 5000}, "source"),
        ({"model": None}, "model"), ({"model": ""}, "model"), ({"model": ["motion"]}, "model"),
        ({"fps": 0}, "fps"), ({"fps": -2}, "fps"), ({"fps": "ALL"}, "fps"), ({"fps": True}, "fps"), ({"fps": 1e9}, "fps"),
        ({"fps": 1001}, "fps"), ({"fps": 1000.0001}, "fps"), ({"fps": 1e-300}, "fps"), ({"fps": [1]}, "fps"), ({"fps": ""}, "fps"),
        ({"fps": "1/0"}, "fps"), ({"fps": "0/1"}, "fps"), ({"fps": "0x10"}, "fps"), ({"fps": "-1/2"}, "fps"), ({"fps": "1e3"}, "fps"),
        ({"fps": "1001"}, "fps"), ({"fps": "3000/2"}, "fps"), ({"fps": "9" * 5000}, "fps"), ({"fps": "1/" + "9" * 60}, "fps"),
        ({"fps": " 5"}, "fps"), ({"fps": "\u0665"}, "fps"), ({"fps": "NaN"}, "fps"), ({"fps": "1.5/2"}, "fps"),
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
        ({"extra": 1}, "extra"), ({"scenario_uuid": UNKNOWN_UUID}, "scenario_uuid"),
    ],
)  # fmt: skip
def test_a_field_that_makes_no_sense_is_named(client: httpx.Client, change: dict[str, Any], field: str) -> None:
    problem = assert_problem(client.post("/scenario/init", json=GOOD | change), 422, "request_invalid")
    assert [error["field"] for error in problem["errors"]] == [field]
    assert field in problem["detail"]


@pytest.mark.parametrize("field", ["source", "model"])
def test_a_field_that_is_missing_is_named(client: httpx.Client, field: str) -> None:
    body = {name: value for name, value in GOOD.items() if name != field}
    problem = assert_problem(client.post("/scenario/init", json=body), 422, "request_invalid")
    assert problem["errors"][0]["field"] == field


@pytest.mark.parametrize("fps", ["1e999", "1e-400", "0.0", "-0.0", "NaN", "Infinity", "-Infinity", "0x10", "9" * 400])
def test_a_number_that_is_none_is_refused(client: httpx.Client, fps: str) -> None:
    body = f'{{"source": "{SOURCE_URL}", "model": "motion", "fps": {fps}}}'
    answer = client.post("/scenario/init", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 422}
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("label", ["\x00", "a\x00b", "tab\t", "line\n", "\x1b[31m"])
def test_a_label_that_no_database_takes_is_refused(client: httpx.Client, label: str) -> None:
    problem = assert_problem(
        client.post("/scenario/init", json=GOOD | {"parameters": {"labels": [label]}}), 422, "parameter_invalid"
    )
    assert "labels" in problem["detail"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"nothing", b"\xff\xfe", b'{"source": "\xff"}', b'"\\ud800"', b"[" * 100_000, b'{"a":' * 20_000]
)
def test_a_body_that_is_no_json_is_refused(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/scenario/init", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 422}, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("body", [b"[]", b"null", b"5", b'"x"', b"true"])
def test_a_body_that_is_no_object_is_refused(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/scenario/init", content=body, headers={"Content-Type": "application/json"})
    assert assert_problem(answer, 422, "request_invalid")["errors"][0]["field"] == "body"


def test_a_body_that_is_not_said_to_be_json_is_refused_with_the_way_out(client: httpx.Client) -> None:
    for kind in (
        "application/x-www-form-urlencoded",
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/msgpack",
    ):
        answer = client.post("/scenario/init", content=b'{"source": "x"}', headers={"Content-Type": kind})
        assert "Content-Type: application/json" in assert_problem(answer, 415, "not_json")["detail"]


def test_a_body_that_is_too_large_is_refused(client: httpx.Client) -> None:
    answer = client.post("/scenario/init", content=b" " * 300_000, headers={"Content-Type": "application/json"})
    assert_problem(answer, 413, "body_too_large")


def test_a_body_that_grows_too_large_without_saying_so_is_refused(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(300):
            yield b" " * 1000

    answer = client.post("/scenario/init", content=chunks(), headers={"Content-Type": "application/json"})
    assert_problem(answer, 413, "body_too_large")


def test_a_label_that_the_model_does_not_have_is_refused(client: httpx.Client) -> None:
    problem = assert_problem(
        client.post("/scenario/init", json=GOOD | {"parameters": {"labels": ["unicorn"]}}), 422, "parameter_invalid"
    )
    assert "unicorn" in problem["detail"]


def test_an_unknown_model_is_refused_with_the_names_that_there_are(client: httpx.Client) -> None:
    for name in ("nothing", "../../etc/passwd", "/etc/passwd", "motion\x00", "'; DROP TABLE scenarios; --", "x" * 4000):
        answer = client.post("/scenario/init", json=GOOD | {"model": name})
        assert answer.status_code == 422, answer.text
        assert answer.json()["code"].startswith("model_")
    problem = assert_problem(client.post("/scenario/init", json=GOOD | {"model": "nothing"}), 422, "model_unknown")
    assert "motion" in problem["models"]
    assert "motion" in problem["detail"]


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("nothing.mp4", "source_missing"), ("../secret.mp4", "source_forbidden"), ("/etc/passwd", "source_forbidden"),
        ("a/../../x", "source_forbidden"), ("a\x00.mp4", "source_invalid"), ("file:///etc/passwd", "source_forbidden"),
        ("gopher://x/y", "source_forbidden"), ("http://", "source_invalid"), ("http://host:99999/x", "source_invalid"),
        ("rtsp://me:hidden@:554", "source_invalid"), (".", "source_not_video"),
    ],
)  # fmt: skip
def test_a_source_that_cannot_be_is_refused(client: httpx.Client, source: str, code: str) -> None:
    problem = assert_problem(client.post("/scenario/init", json=GOOD | {"source": source}), 422, code)
    assert "hidden" not in problem["detail"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"), ("limit=1001", "limit"), ("limit=x", "limit"), ("limit=", "limit"), ("state=nothing", "state"),
        ("after=x", "after"), ("after=' OR 1=1", "after"),
    ],
)  # fmt: skip
def test_a_parameter_of_the_list_that_makes_no_sense_is_named(client: httpx.Client, query: str, field: str) -> None:
    problem = assert_problem(client.get(f"/scenario?{query}"), 400, "request_malformed")
    assert [error["field"] for error in problem["errors"]] == [field]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "after=-2", "after=x", f"after={2**53}", f"after={2**64}", "after=1;--"]
)
def test_a_parameter_of_the_results_that_makes_no_sense_is_named(client: httpx.Client, query: str) -> None:
    problem = assert_problem(client.get(f"/prediction?scenario_uuid={UNKNOWN_UUID}&{query}"), 400, "request_malformed")
    assert [error["field"] for error in problem["errors"]] == [query.split("=", maxsplit=1)[0]]


def test_a_missing_parameter_is_named(client: httpx.Client) -> None:
    assert "scenario_uuid" in assert_problem(client.get("/prediction"), 400, "request_malformed")["detail"]


def test_a_path_that_is_none_and_a_method_that_it_does_not_take_are_told(client: httpx.Client) -> None:
    for path in ("/nothing", "/scenario/init/x/y", "/docs/assets/%2e%2e%2fapp.py", "/.git/config"):
        assert_problem(client.get(path), 404, "not_found")
    answer = client.delete("/prediction")
    assert_problem(answer, 405, "method_not_allowed")
    assert "GET" in answer.headers["allow"]
    assert_problem(client.put("/scenario/init", json=GOOD), 405, "method_not_allowed")


class TestWithFiles:
    """What is stored of sources that are there."""

    @pytest.fixture(autouse=True)
    def _empties_the_tables(self, database_url: str) -> Iterator[None]:
        yield
        with psycopg.connect(database_url) as tx:
            tx.execute("TRUNCATE scenarios, scenario_progress, scenario_history, outbox")

    def test_a_url_s_credentials_are_stored_for_the_runner_and_never_told(
        self, client: httpx.Client, database_url: str
    ) -> None:
        source = "rtsp://me:hidden@camera.example:554/live?token=hidden&channel=1"
        scenario = create_scenario(client, source=source)
        told = client.get(f"/scenario/{scenario['scenario_uuid']}").text + client.get("/scenario").text
        assert scenario["source"] == "rtsp://***@camera.example:554/live?token=***&channel=1"
        assert "hidden" not in told
        with psycopg.connect(database_url) as tx:
            assert tx.execute("SELECT source FROM scenarios").fetchall() == [(source,)]


def test_the_door_lets_nothing_local_in_without_a_media_root(database_url: str, tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    video.write_bytes(b"video")
    with ready_api(ApiOptions(database_url=database_url)) as client:
        for source in (str(video), "video.mp4", "/etc/passwd", "/nothing"):
            assert_problem(client.post("/scenario/init", json=GOOD | {"source": source}), 422, "source_forbidden")
