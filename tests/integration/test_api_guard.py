"""Requests that a page of another site can make a browser send, and requests with an odd Host: refused without effect."""
# ruff: noqa: S104 - addresses to refuse, and tables of cases

from __future__ import annotations

from collections.abc import Iterator

import httpx
import psycopg
import pytest
from tests.integration.api_server import SOURCE_URL, UNKNOWN_UUID, assert_problem, create_scenario, ready_api
from tests.integration.raw_http import RawResponse, send_raw_request

from vidflow.domain.errors import SetupError
from vidflow.infra.process.stopping import Stop
from vidflow.roles.api import run
from vidflow.settings import ApiOptions

JSON = {"content-type": "application/json"}
BODY = f'{{"source": "{SOURCE_URL}", "model": "motion"}}'.encode()


@pytest.fixture(scope="module")
def client(database_url: str) -> Iterator[httpx.Client]:
    options = ApiOptions(database_url=database_url, allowed_hosts=("api", "*.example.org", "10.0.0.0/8"))
    with ready_api(options) as client:
        yield client


def request_head(method: str, target: str, *headers: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/{version}", *headers, "", ""]).encode("latin-1")


def get(client: httpx.Client, *headers: str, target: str = "/scenario", version: str = "1.1") -> RawResponse:
    return send_raw_request(client, request_head("GET", target, *headers, version=version))


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:1",
        "localhost.",
        "127.0.0.1",
        "127.9.9.9:80",
        "[::1]:8000",
        "x.localhost",
        "api",
        "a.example.org",
        "10.1.2.3",
    ],
)
def test_an_allowed_host_is_served(client: httpx.Client, host: str) -> None:
    assert get(client, f"Host: {host}").status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "example.org", "0.0.0.0", "192.168.0.1", "[::2]", "127.0.0.1.nip.io"],
)
def test_a_host_that_is_not_allowed_is_refused(client: httpx.Client, host: str) -> None:
    for target in ("/scenario", "/docs", "/nothing", "/"):
        response = get(client, f"Host: {host}", target=target)
        assert (response.status, response.code) == (421, "host_not_allowed")
        assert response.headers["content-type"] == "application/problem+json"
        assert b"--allowed-hosts" in response.body


@pytest.mark.parametrize(
    "headers",
    [
        (), ("Host:",), ("Host: ",), ("Host: localhost", "Host: localhost"), ("Host: localhost", "Host: evil.example"),
        ("Host: localhost:port",), ("Host: user@localhost",), ("Host: localhost,evil.example",), ("Host: localhost/evil",),
        ("Host: l\xf6calhost",), ("Host: [::1",), ("X-Forwarded-Host: localhost",),
    ],
)  # fmt: skip
def test_a_missing_invalid_or_repeated_host_is_refused(client: httpx.Client, headers: tuple[str, ...]) -> None:
    response = get(client, *headers)
    assert (response.status, response.code) == (400, "host_invalid")


def test_http_1_0_without_a_host_may_only_check_health(client: httpx.Client) -> None:
    assert get(client, target="/health/live", version="1.0").status == 200
    assert get(client, target="/scenario", version="1.0").status == 400
    assert get(client, target="/health/live").status == 400


def test_health_and_metrics_accept_any_address_but_no_other_name(client: httpx.Client) -> None:
    for path in ("/health/live", "/health/ready", "/metrics"):
        assert get(client, "Host: 192.168.7.7:8000", target=path).status == 200
        assert get(client, "Host: [fd00::7]", target=path).status == 200
        assert get(client, "Host: evil.example", target=path).status == 421
    assert send_raw_request(client, request_head("POST", "/health/live", "Host: 192.168.7.7")).status == 421


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://localhost/scenario?limit=1", "evil.example", 200), ("http://LOCALHOST:1/health/live", "localhost", 200),
        ("http://evil.example/scenario", "localhost", 421), ("http://user@localhost/scenario", "localhost", 400),
        ("ftp://localhost/scenario", "localhost", 400), ("http:///scenario", "localhost", 400), ("http://localhost", "localhost", 302),
    ],
)  # fmt: skip
def test_the_host_of_an_absolute_target_overrides_the_header(
    client: httpx.Client, target: str, host: str, status: int
) -> None:
    assert get(client, f"Host: {host}", target=target).status == status


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://localhost.evil.example"}, {"origin": "file://"},
        {"origin": "http://localhost@evil.example"}, {"origin": ""}, {"sec-fetch-site": "cross-site"},
        {"origin": "https://evil.example", "sec-fetch-site": "same-origin"}, {"origin": "http://192.168.0.1"},
    ],
)  # fmt: skip
def test_requests_of_other_sites_have_no_effect(
    client: httpx.Client, database_url: str, headers: dict[str, str]
) -> None:
    uuid_ = create_scenario(client)["scenario_uuid"]
    response = client.post("/scenario/init", content=BODY, headers=headers | JSON)
    assert_problem(response, 403, "origin_not_allowed")
    assert_problem(client.post(f"/scenario/{uuid_}/shutdown", headers=headers), 403, "origin_not_allowed")
    assert client.get(f"/scenario/{uuid_}").json()["state"] == "init_startup"
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM scenarios WHERE scenario_uuid > %s", (uuid_,)).fetchone() == (
            0,
        )


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"origin": "http://localhost:3000"}, {"origin": "https://app.example.org"}, {"origin": "http://[::1]:5173"},
        {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"},
    ],
)  # fmt: skip
def test_programs_and_pages_of_allowed_hosts_are_served(client: httpx.Client, headers: dict[str, str]) -> None:
    assert client.post("/scenario/init", content=BODY, headers=headers | JSON).status_code == 201


def test_other_sites_may_link_here_but_read_nothing(client: httpx.Client) -> None:
    response = client.get("/docs", headers={"sec-fetch-site": "cross-site", "referer": "https://evil.example"})
    assert response.status_code == 200
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in response.headers
    preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in client.options("/scenario/init", headers=preflight).headers


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "text/json",
        "",
        None,
    ],
)
def test_a_body_that_is_not_json_is_refused_at_every_path(client: httpx.Client, content_type: str | None) -> None:
    for path in ("/scenario/init", f"/scenario/{UNKNOWN_UUID}/shutdown", "/nothing"):
        headers = {} if content_type is None else {"content-type": content_type}
        response = client.post(path, content=BODY, headers=headers)
        assert_problem(response, 415, "not_json")


def test_a_json_body_in_any_case_and_a_shutdown_without_a_body_are_accepted(client: httpx.Client) -> None:
    response = client.post("/scenario/init", content=BODY, headers={"content-type": "Application/JSON; charset=UTF-8"})
    assert response.status_code == 201
    assert client.post(f"/scenario/{response.json()['scenario_uuid']}/shutdown").status_code == 200


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_a_server_that_lets_everyone_in_logs_a_warning(
    database_url: str, caplog: pytest.LogCaptureFixture, host: str, *, warned: bool
) -> None:
    with ready_api(ApiOptions(database_url=database_url, host=host, auth=False)) as client:
        assert client.get("/scenario").status_code == 200
    warnings = [record for record in caplog.records if record.getMessage() == "reachable_by_others"]
    assert len(warnings) == warned
    assert all(record.levelname == "WARNING" for record in warnings)


def test_an_invalid_allowed_host_is_reported_at_the_start(database_url: str) -> None:
    with pytest.raises(SetupError, match="--allowed-hosts"):
        run(ApiOptions(database_url=database_url, allowed_hosts=("http://x",), inbox=False), Stop())
