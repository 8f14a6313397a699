"""HEAD, OPTIONS and methods that a path does not have: what monitors, proxies and browsers send besides GET and POST."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
from tests.integration.api_server import UNKNOWN_UUID, assert_problem, create_scenario, ready_api, wait_until
from tests.integration.raw_http import raw_connection, read_response, send_raw_request, wait_until_closed

from vidflow.settings import ApiOptions

HEAD_LIVE = b"HEAD /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
PER_RESPONSE = {"date", "x-request-id"}
"""Headers that differ between two responses to the same request."""
READ = [
    "/",
    "/docs",
    "/docs/openapi.json",
    "/docs/assets/start.js",
    "/health/live",
    "/health/ready",
    "/models",
    "/scenario",
]
REFUSED = [
    "/nothing", "/health/system", "/prediction", "/scenario/init", "/scenario/nonsense", f"/scenario/{UNKNOWN_UUID}", "/scenario?limit=0",
    f"/scenario/{UNKNOWN_UUID}/shutdown",
]  # fmt: skip


@pytest.fixture(scope="module")
def client(database_url: str) -> Iterator[httpx.Client]:
    with ready_api(ApiOptions(database_url=database_url)) as client:
        yield client


def headers_of(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name not in PER_RESPONSE}


@pytest.mark.parametrize("path", [*READ, *REFUSED])
def test_head_has_the_status_and_headers_of_get_and_no_body(client: httpx.Client, path: str) -> None:
    got, head = client.get(path), client.head(path)
    assert got.is_error == (path in REFUSED)
    assert (head.status_code, headers_of(head), head.content) == (got.status_code, headers_of(got), b"")
    assert int(head.headers["content-length"]) == len(got.content)


def test_head_works_on_stored_scenarios_and_metrics(client: httpx.Client) -> None:
    path = f"/scenario/{create_scenario(client)['scenario_uuid']}"
    for read in (path, f"{path}/history", f"{path}/gaps", "/prediction?scenario_uuid=" + path.rpartition("/")[2]):
        got, head = client.get(read), client.head(read)
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(got.content))), read
    tag = client.head(path).headers["etag"]
    assert client.head(path, headers={"If-None-Match": tag}).status_code == 304
    metrics = client.head("/metrics")
    assert (metrics.status_code, metrics.content) == (200, b"")
    assert int(metrics.headers["content-length"]) > 1000
    counted = r'vidflow_http_requests_total\{method="HEAD",path="/scenario/\{scenario_uuid[^"]*",status="304"\} 1\.0'
    assert re.search(counted, client.get("/metrics").text)


def test_no_byte_follows_the_head_of_an_answer_to_head(client: httpx.Client) -> None:
    with raw_connection(client) as connection:
        connection.sendall(
            HEAD_LIVE + HEAD_LIVE.replace(b"live", b"nothing").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        )
        answers = b""
        while received := connection.recv(65536):
            answers += received
    first, second, rest = answers.split(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 ")
    assert second.startswith(b"HTTP/1.1 404 ")
    assert rest == b""


def test_head_checks_health_while_all_connections_are_in_use(database_url: str) -> None:
    with ready_api(ApiOptions(database_url=database_url, max_connections=2)) as client, ExitStack() as hanging:
        client.close()  # its connection would count
        opened = [hanging.enter_context(raw_connection(client)) for _ in range(2)]
        for connection in opened:
            connection.sendall(b"GET /scenario HTTP/1.1\r\n")

        def is_full() -> bool:
            return send_raw_request(client, HEAD_LIVE.replace(b"health/live", b"scenario")).status == 503

        wait_until(is_full, "all connections are in use")
        with raw_connection(client) as connection:
            connection.sendall(HEAD_LIVE)
            response = read_response(connection, has_body=False)
            assert response is not None
            assert (response.status, response.headers["content-length"]) == (200, "15")
            assert wait_until_closed(connection)


def test_a_refusal_of_a_head_request_by_the_server_has_no_body(client: httpx.Client) -> None:
    """The body would otherwise be read as the next response."""
    response = send_raw_request(client, HEAD_LIVE[:-2] + b"X: " + b"x" * 40_000 + b"\r\n\r\n", has_body=False)
    assert (response.status, response.body) == (431, b"")


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/", "GET, HEAD, OPTIONS"), ("/docs", "GET, HEAD, OPTIONS"), ("/docs/openapi.json", "GET, HEAD, OPTIONS"),
        ("/health/live", "GET, HEAD, OPTIONS"), ("/health/ready", "GET, HEAD, OPTIONS"), ("/health/system", "GET, HEAD, OPTIONS"),
        ("/metrics", "GET, HEAD, OPTIONS"), ("/models", "GET, HEAD, OPTIONS"), ("/prediction", "GET, HEAD, OPTIONS"),
        ("/scenario", "GET, HEAD, OPTIONS"), ("/scenario/init", "OPTIONS, POST"),
        (f"/scenario/{UNKNOWN_UUID}", "DELETE, GET, HEAD, OPTIONS, PATCH"), (f"/scenario/{UNKNOWN_UUID}/shutdown", "OPTIONS, POST"),
        (f"/scenario/{UNKNOWN_UUID}/history", "GET, HEAD, OPTIONS"), (f"/scenario/{UNKNOWN_UUID}/gaps", "GET, HEAD, OPTIONS"),
    ],
)  # fmt: skip
def test_options_and_a_wrong_method_name_the_allowed_ones(client: httpx.Client, path: str, allow: str) -> None:
    response = client.options(path)
    assert (response.status_code, response.headers["allow"], response.content) == (204, allow, b"")
    assert "content-length" not in response.headers
    for method in ("DELETE", "PUT", "PATCH", "TRACE", "PROPFIND", "GET" if "GET" not in allow else "POST"):
        if method in allow:
            continue
        refused = client.request(method, path)
        assert_problem(refused, 405, "method_not_allowed")
        assert refused.headers["allow"] == allow
        assert allow in refused.json()["detail"]


def test_options_of_a_path_that_does_not_exist_is_not_found(client: httpx.Client) -> None:
    assert_problem(client.options("/nothing"), 404, "not_found")
