"""What a web page elsewhere can make a browser send, and what else comes with an odd Host: refused, and nothing is stored."""
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


def head_of(method: str, target: str, *headers: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/{version}", *headers, "", ""]).encode("latin-1")


def get(client: httpx.Client, *headers: str, target: str = "/scenario", version: str = "1.1") -> RawResponse:
    return send_raw_request(client, head_of("GET", target, *headers, version=version))


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
def test_a_host_that_is_allowed_is_served(client: httpx.Client, host: str) -> None:
    assert get(client, f"Host: {host}").status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "example.org", "0.0.0.0", "192.168.0.1", "[::2]", "127.0.0.1.nip.io"],
)
def test_a_host_that_is_not_allowed_is_misdirected(client: httpx.Client, host: str) -> None:
    for target in ("/scenario", "/docs", "/nothing", "/"):
        answer = get(client, f"Host: {host}", target=target)
        assert (answer.status, answer.code) == (421, "host_not_allowed")
        assert answer.headers["content-type"] == "application/problem+json"
        assert b"--allowed-hosts" in answer.body


@pytest.mark.parametrize(
    "headers",
    [
        (), ("Host:",), ("Host: ",), ("Host: localhost", "Host: localhost"), ("Host: localhost", "Host: evil.example"),
        ("Host: localhost:port",), ("Host: user@localhost",), ("Host: localhost,evil.example",), ("Host: localhost/evil",),
        ("Host: l\xf6calhost",), ("Host: [::1",), ("X-Forwarded-Host: localhost",),
    ],
)  # fmt: skip
def test_a_host_that_is_none_or_several_is_malformed(client: httpx.Client, headers: tuple[str, ...]) -> None:
    answer = get(client, *headers)
    assert (answer.status, answer.code) == (400, "host_invalid")


def test_without_a_host_an_old_client_may_ask_for_the_health_alone(client: httpx.Client) -> None:
    assert get(client, target="/health/live", version="1.0").status == 200
    assert get(client, target="/scenario", version="1.0").status == 400
    assert get(client, target="/health/live").status == 400


def test_a_load_balancer_may_name_any_address_for_the_health_and_no_name(client: httpx.Client) -> None:
    for path in ("/health/live", "/health/ready", "/metrics"):
        assert get(client, "Host: 192.168.7.7:8000", target=path).status == 200
        assert get(client, "Host: [fd00::7]", target=path).status == 200
        assert get(client, "Host: evil.example", target=path).status == 421
    assert send_raw_request(client, head_of("POST", "/health/live", "Host: 192.168.7.7")).status == 421


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://localhost/scenario?limit=1", "evil.example", 200), ("http://LOCALHOST:1/health/live", "localhost", 200),
        ("http://evil.example/scenario", "localhost", 421), ("http://user@localhost/scenario", "localhost", 400),
        ("ftp://localhost/scenario", "localhost", 400), ("http:///scenario", "localhost", 400), ("http://localhost", "localhost", 302),
    ],
)  # fmt: skip
def test_a_target_with_a_host_of_its_own_counts_more_than_the_header(
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
def test_what_a_page_of_another_site_sends_changes_nothing(
    client: httpx.Client, database_url: str, headers: dict[str, str]
) -> None:
    uuid_ = create_scenario(client)["scenario_uuid"]
    answer = client.post("/scenario/init", content=BODY, headers=headers | JSON)
    assert_problem(answer, 403, "origin_not_allowed")
    assert_problem(client.post(f"/scenario/{uuid_}/shutdown", headers=headers), 403, "origin_not_allowed")
    assert client.get(f"/scenario/{uuid_}").json()["state"] == "init_startup"
    with psycopg.connect(database_url) as tx:
        assert tx.execute("SELECT count(*) FROM scenarios WHERE scenario_uuid > %s", (uuid_,)).fetchone() == (0,)


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"origin": "http://localhost:3000"}, {"origin": "https://app.example.org"}, {"origin": "http://[::1]:5173"},
        {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"},
    ],
)  # fmt: skip
def test_pages_of_allowed_hosts_and_programs_are_served(client: httpx.Client, headers: dict[str, str]) -> None:
    assert client.post("/scenario/init", content=BODY, headers=headers | JSON).status_code == 201


def test_a_page_elsewhere_may_lead_here_and_read_nothing(client: httpx.Client) -> None:
    answer = client.get("/docs", headers={"sec-fetch-site": "cross-site", "referer": "https://evil.example"})
    assert answer.status_code == 200
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in answer.headers
    preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in client.options("/scenario/init", headers=preflight).headers


@pytest.mark.parametrize(
    "kind",
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
def test_a_body_that_is_not_json_is_refused_wherever_it_is_sent(client: httpx.Client, kind: str | None) -> None:
    for path in ("/scenario/init", f"/scenario/{UNKNOWN_UUID}/shutdown", "/nothing"):
        answer = client.post(path, content=BODY, headers={} if kind is None else {"content-type": kind})
        assert_problem(answer, 415, "not_json")


def test_json_in_any_case_and_a_shutdown_without_a_body_are_taken(client: httpx.Client) -> None:
    answer = client.post("/scenario/init", content=BODY, headers={"content-type": "Application/JSON; charset=UTF-8"})
    assert answer.status_code == 201
    assert client.post(f"/scenario/{answer.json()['scenario_uuid']}/shutdown").status_code == 200


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_a_server_that_others_can_reach_says_so_loudly(
    database_url: str, caplog: pytest.LogCaptureFixture, host: str, *, warned: bool
) -> None:
    with ready_api(ApiOptions(database_url=database_url, host=host)) as client:
        assert client.get("/scenario").status_code == 200
    lines = [record for record in caplog.records if record.getMessage() == "reachable_by_others"]
    assert len(lines) == warned
    assert all(record.levelname == "WARNING" for record in lines)


def test_an_allowed_host_that_is_none_is_told_at_the_start(database_url: str) -> None:
    with pytest.raises(SetupError, match="--allowed-hosts"):
        run(ApiOptions(database_url=database_url, allowed_hosts=("http://x",), inbox=False), Stop())
