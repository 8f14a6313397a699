"""Request ids: on every response, in every problem and in the log lines of the request."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import psycopg
import pytest
from tests.integration.api_server import assert_problem, create_scenario, ready_api, wait_until
from tests.integration.raw_http import RawResponse, raw_connection, read_response, send_raw_request

from vidflow.settings import ApiOptions

HOST = b"Host: localhost\r\n"
ID = "a.client-id_7"


@pytest.fixture(scope="module")
def client(database_url: str) -> Iterator[httpx.Client]:
    with ready_api(ApiOptions(database_url=database_url)) as client:
        yield client


def is_new_id(text: str) -> bool:
    return str(uuid.UUID(text)) == text


@pytest.mark.parametrize(
    "path", ["/health/live", "/metrics", "/docs", "/docs/openapi.json", "/", "/scenario", "/nothing", "/scenario/x"]
)
def test_every_response_has_the_id_of_its_request(client: httpx.Client, path: str) -> None:
    for method in ("GET", "HEAD", "OPTIONS", "PUT"):
        response = client.request(method, path, headers={"X-Request-Id": ID})
        assert response.headers.get_list("x-request-id") == [ID], method
        first, second = (client.request(method, path).headers["x-request-id"] for _ in range(2))
        assert is_new_id(first)
        assert first != second


@pytest.mark.parametrize(
    "given",
    [
        "",
        " ",
        "a b",
        "a\tb",
        "a/b",
        "a;b",
        "a,b",
        "\u00fc".encode().decode("latin-1"),
        "x" * 129,
        '"a"',
        "{}",
        "\x1b[31m",
    ],
)
def test_an_invalid_id_is_replaced(client: httpx.Client, given: str) -> None:
    request = b"GET /nothing HTTP/1.1\r\n" + HOST + b"X-Request-Id: " + given.encode("latin-1") + b"\r\n\r\n"
    response = send_raw_request(client, request)
    assert response.status in {404, 400}
    assert is_new_id(response.headers["x-request-id"])


def test_the_longest_id_is_accepted_and_repeated_ones_are_replaced(client: httpx.Client) -> None:
    longest = "x" * 128
    assert client.get("/scenario", headers={"x-request-id": longest}).headers["x-request-id"] == longest
    response = client.get("/scenario", headers=[("X-Request-Id", "a"), ("X-Request-Id", "b")])
    assert is_new_id(response.headers["x-request-id"])


@pytest.mark.parametrize(
    ("request_line", "headers", "body", "status"),
    [
        (b"GET /scenario/nonsense", b"", b"", 400), (b"GET /nothing", b"", b"", 404), (b"PUT /scenario", b"", b"", 405),
        (b"GET /scenario?x=1", b"", b"", 400), (b"POST /scenario/init", b"Content-Length: 1\r\n", b"x", 415),
        (b"POST /scenario/init", b"Content-Type: application/json\r\nContent-Length: 1\r\n", b"x", 400),
        (b"POST /scenario/init", b"Content-Type: application/json\r\nContent-Length: 2\r\n", b"{}", 422),
        (b"POST /scenario/init", b"Content-Type: application/json\r\nContent-Length: 999999\r\n", b"x", 413),
        (b"POST /scenario/init", b"Origin: https://evil.example\r\n", b"", 403), (b"GET /scenario", b"Host: evil.example\r\n", b"", 400),
    ],
)  # fmt: skip
def test_a_problem_has_the_id_of_its_response(
    client: httpx.Client, request_line: bytes, headers: bytes, body: bytes, status: int
) -> None:
    for id_line, expected in ((f"X-Request-Id: {ID}\r\n".encode(), ID), (b"", None)):
        response = send_raw_request(client, request_line + b" HTTP/1.1\r\n" + HOST + id_line + headers + b"\r\n" + body)
        assert response.status == status
        assert_same_id(response, expected)


def assert_same_id(response: RawResponse, expected: str | None) -> None:
    """Assert that header and body have the expected id, or the same new one."""
    problem = json.loads(response.body)
    assert problem["request_id"] == response.headers["x-request-id"]
    if expected is None:
        assert is_new_id(problem["request_id"])
    else:
        assert problem["request_id"] == expected


@pytest.mark.parametrize(
    ("data", "status", "expected"),
    [
        (b"nonsense\r\n\r\n", 400, None), (b"GET / HTTP/1.1\r\n" + HOST + b"bad header\r\n\r\n", 400, None),
        (b"GET / HTTP/1.1\r\nX-Request-Id: early\r\n" + HOST + b"X: " + b"x" * 40_000 + b"\r\n\r\n", 431, "early"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 431, None),
        (b"POST / HTTP/1.1\r\nX-Request-Id: early\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nno length\r\n", 400, "early"),
    ],
)  # fmt: skip
def test_a_refusal_by_the_parser_has_an_id(
    client: httpx.Client, data: bytes, status: int, expected: str | None
) -> None:
    response = send_raw_request(client, data)
    assert response.status == status
    assert_same_id(response, expected)


def test_a_refusal_does_not_have_the_id_of_the_previous_request_on_its_connection(client: httpx.Client) -> None:
    with raw_connection(client) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nX-Request-Id: first\r\n" + HOST + b"\r\n")
        first = read_response(connection)
        connection.sendall(b"nonsense\r\n\r\n")
        second = read_response(connection)
    assert first is not None
    assert first.headers["x-request-id"] == "first"
    assert second is not None
    assert second.status == 400
    assert_same_id(second, None)


def test_requests_that_are_sent_together_keep_their_ids(client: httpx.Client) -> None:
    with raw_connection(client) as connection:
        lines = [
            f"GET /nothing HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: number-{number}\r\n" for number in range(10)
        ]
        last = "GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Request-Id: number-10\r\n\r\n"
        connection.sendall(("\r\n".join([*lines, last])).encode())
        answers = b""
        while received := connection.recv(65536):
            answers += received
    assert [
        f'"request_id":"number-{number}"'.encode() in part
        for number, part in enumerate(answers.split(b"HTTP/1.1 404")[1:])
    ] == [True] * 11


def test_a_refused_connection_has_an_id(database_url: str) -> None:
    with ready_api(ApiOptions(database_url=database_url, max_connections=2)) as client, ExitStack() as hanging:
        client.close()
        for _ in range(2):
            hanging.enter_context(raw_connection(client)).sendall(b"GET /scenario HTTP/1.1\r\n")
        request = f"GET /scenario HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: {ID}\r\n\r\n".encode()
        wait_until(lambda: send_raw_request(client, request).status == 503, "all connections are in use")
        assert_same_id(send_raw_request(client, request), ID)


def test_the_log_lines_of_a_request_have_its_id(
    client: httpx.Client, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    uuid_ = create_scenario(client)["scenario_uuid"]
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE scenarios SET skips = '{\"broken\": 1}' WHERE scenario_uuid = %s", (uuid_,))
        response = client.get(f"/scenario/{uuid_}", headers={"X-Request-Id": ID})
        connection.execute("UPDATE scenarios SET skips = '[]' WHERE scenario_uuid = %s", (uuid_,))
    assert assert_problem(response, 500, "fault")["request_id"] == ID
    [line] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert getattr(line, "vidflow_fields", {})["request_id"] == ID
