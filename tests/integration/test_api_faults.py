"""All faults of a request to create a scenario come in one answer, each with its field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.integration.api_server import SOURCE_URL, api_with_clip, assert_nothing_stored, assert_problem

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def client(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with api_with_clip(database_url, tmp_path_factory.mktemp("media")) as client:
        yield client


@pytest.fixture(autouse=True)
def _assert_nothing_stored(database_url: str) -> Iterator[None]:
    yield
    assert_nothing_stored(database_url)


def refused(client: httpx.Client, body: dict[str, Any] | bytes, code: str = "request_invalid") -> dict[str, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return assert_problem(client.post("/scenario/init", content=content, headers=JSON), 422, code)


def faults(problem: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(one["field"], one.get("code")) for one in problem["errors"]]


def test_wrong_types_missing_unknown_and_repeated_fields_are_listed_together(client: httpx.Client) -> None:
    body = b"""{
        "model": 5, "fps": "fast", "priority": 101, "pool": "a b", "color": "red", "priority": 100.5,
        "parameters": {
            "score_threshold": 2, "labels": ["a", 5, ""], "on_poison": "die", "follow": "yes", "follow_s": 0.1, "end_at": "soon",
            "stream": -1, "speed": 2, "on_corrupt": "keep", "on_corrupt": "skip"
        }
    }"""
    problem = refused(client, body)
    assert faults(problem) == [
        (field, None)
        for field in (
            "parameters.on_corrupt", "priority", "source", "model", "priority", "pool", "parameters.score_threshold",
            "parameters.labels[1]",
            "parameters.labels[2]", "parameters.on_poison", "parameters.follow", "parameters.follow_s", "parameters.end_at",
            "parameters.stream", "parameters.speed", "color", "fps",
        )
    ]  # fmt: skip
    messages = {one["field"]: one["message"] for one in problem["errors"]}
    assert messages["color"] == "Unknown field. The fields here: source, model, fps, priority, pool, parameters."
    assert messages["parameters.on_poison"].endswith("Allowed: fail, skip.")
    assert messages["source"].startswith("Missing. Allowed: the path of a local file")
    assert problem["detail"].endswith("And 7 more.")


def test_what_the_types_allow_is_checked_together(client: httpx.Client) -> None:
    parameters = {
        "labels": ["a\x00", "ok", "\u202eb"],
        "end_at": "2020-01-01T00:00:00Z",
        "give_up_after_s": 5,
        "live": True,
    }
    problem = refused(client, {"source": "nothing.mp4", "model": "nothing", "fps": "1/0", "parameters": parameters})
    assert faults(problem) == [
        ("source", "source_missing"), ("parameters.labels[0]", "parameter_invalid"), ("parameters.labels[2]", "parameter_invalid"),
        ("parameters.end_at", "parameter_invalid"), ("parameters.end_at", "parameter_invalid"),
        ("parameters.give_up_after_s", "parameter_invalid"), ("parameters.live", "parameter_invalid"),
        ("model", "model_unknown"), ("fps", None),
    ]  # fmt: skip
    assert "motion" in problem["models"]


def test_the_other_fields_are_checked_when_one_has_the_wrong_type(client: httpx.Client) -> None:
    problem = refused(
        client,
        {"source": "../x.mp4", "model": "motion", "priority": "high", "parameters": {"labels": ["unicorn"], "x": 1}},
    )
    assert faults(problem) == [
        ("priority", None), ("parameters.x", None), ("source", "source_forbidden"), ("parameters.labels", "parameter_invalid"),
    ]  # fmt: skip
    problem = refused(client, {"source": 5, "model": "nothing", "parameters": {"follow": True, "live": False}})
    assert faults(problem) == [("source", None), ("model", "model_unknown")]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"source": "nothing.mp4"}, "source_missing"), ({"source": "clip.mp4", "model": "nothing"}, "model_unknown"),
        ({"source": "clip.mp4", "parameters": {"live": True}}, "parameter_invalid"),
        ({"source": "clip.mp4", "parameters": {"end_at": "2020-01-01T00:00:00Z", "live": True}}, "parameter_invalid"),
        ({"source": "clip.mp4", "fps": 0}, "request_invalid"), ({"source": "nothing.mp4", "fps": 0}, "request_invalid"),
    ],
)  # fmt: skip
def test_the_code_is_that_of_the_faults_if_they_have_one(client: httpx.Client, body: dict[str, Any], code: str) -> None:
    problem = refused(client, body, code)
    assert all(one.get("code", "request_invalid") in {code, "source_missing"} for one in problem["errors"])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"source": "%b", "source": "%b"}', "source"), (b'{"source": "%b", "s\\u006furce": "%b"}', "source"),
        (b'{"source": "%b", "model": "%b", "parameters": {"live": null, "live": true}, "model": "motion"}', "parameters.live"),
    ],
)  # fmt: skip
def test_a_repeated_field_is_refused(client: httpx.Client, body: bytes, field: str) -> None:
    problem = refused(client, body.replace(b"%b", SOURCE_URL.encode()))
    assert (field, "Given more than once. Give it once.") in [
        (one["field"], one["message"]) for one in problem["errors"]
    ]


@pytest.mark.parametrize(
    "body",
    [
        b'{"x":' * 400 + b"1" + b"}" * 400, b'{"source":' + b"[" * 400 + b"]" * 400 + b"}",
        b"{" + b",".join(b'"x%d":1' % number for number in range(20_000)) + b"}",
        b"{" + b",".join(b'"x":1' for _ in range(30_000)) + b"}",
        b'{"parameters":{"labels":[' + b",".join(b"1" for _ in range(120_000)) + b"]}}",
        b'{"parameters":{"labels":[' + b",".join(b'"a"' for _ in range(60_000)) + b"]}}",
        b'{"' + b"x" * 250_000 + b'":1}',
        b'{"fps":' + b"9" * 250_000 + b"}", b'{"priority":' + b"9" * 250_000 + b"}",
        b'{"parameters":{"on_poison":"' + b"x" * 250_000 + b'"}}',
    ],
    ids=["objects", "lists", "unknown", "repeated", "numbers", "labels", "name", "digits", "integer", "value"],
)  # fmt: skip
def test_the_answer_to_a_body_with_many_or_large_faults_is_short(client: httpx.Client, body: bytes) -> None:
    problem = refused(client, body)
    assert 1 <= len(problem["errors"]) <= 100
    assert len(json.dumps(problem)) < 120_000
    assert client.get("/health/live").status_code == 200


def test_secrets_in_invalid_fields_are_not_repeated(client: httpx.Client) -> None:
    source = "rtsp://me:hidden@camera.example:70000/1"
    response = client.post(
        "/scenario/init", json={"source": source, "parameters": {"on_poison": "token=hidden", "https://a:hidden@b/": 1}}
    )
    assert_problem(response, 422, "request_invalid")
    assert "hidden" not in response.text
