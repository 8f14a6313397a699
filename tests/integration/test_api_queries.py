"""Parameters of queries and paths: unknown and repeated ones are refused by name, and all faults are reported together."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from tests.integration.api_server import UNKNOWN_UUID, assert_problem, create_scenario, ready_api

from vidflow.settings import ApiOptions

PATHS = {
    "/": "none", "/docs": "none", "/docs/openapi.json": "none", "/docs/assets/start.js": "none", "/health/live": "none",
    "/health/ready": "none", "/health/system": "none", "/metrics": "none", "/models": "none", "/scenario": "state, after, limit",
    f"/scenario/{UNKNOWN_UUID}": "none", f"/scenario/{UNKNOWN_UUID}/history": "after, limit",
    f"/scenario/{UNKNOWN_UUID}/gaps": "after, limit",
    f"/prediction?scenario_uuid={UNKNOWN_UUID}": "scenario_uuid, after, limit",
}  # fmt: skip
"""Each path with a GET, and its parameters."""


@pytest.fixture(scope="module")
def client(database_url: str) -> Iterator[httpx.Client]:
    with ready_api(ApiOptions(database_url=database_url)) as client:
        yield client


def faults(response: httpx.Response) -> dict[str, str]:
    problem = assert_problem(response, 400, "request_malformed")
    return {one["field"]: one["message"] for one in problem["errors"]}


@pytest.mark.parametrize("path", PATHS)
def test_an_unknown_parameter_is_refused_with_the_names_of_those_that_exist(client: httpx.Client, path: str) -> None:
    sign = "&" if "?" in path else "?"
    for method in ("GET", "HEAD"):
        response = client.request(method, f"{path}{sign}cursor=5")
        assert response.status_code == 400
    message = f"Unknown parameter. The parameters of this path: {PATHS[path]}."
    response = client.get(f"{path}{sign}cursor=5&Limit=5")
    assert faults(response) == {"Limit": message, "cursor": message}
    assert PATHS[path] in response.json()["detail"]


def test_a_post_takes_no_parameters(client: httpx.Client) -> None:
    uuid = create_scenario(client)["scenario_uuid"]
    body = {"source": "http://camera.example/v.mp4", "model": "motion"}
    for response in (client.post("/scenario/init?fps=2", json=body), client.post(f"/scenario/{uuid}/shutdown?fps=2")):
        assert faults(response) == {"fps": "Unknown parameter. The parameters of this path: none."}
    assert len(client.get("/scenario").json()["items"]) == 1
    assert client.get(f"/scenario/{uuid}").json()["state"] == "init_startup"


@pytest.mark.parametrize(
    "query", ["limit=5&limit=5", "limit=5&limit=", "limit=x&limit=5", "limit=5&%6Cimit=6", "limit=5&after=&limit=0"]
)
def test_a_repeated_parameter_is_refused(client: httpx.Client, query: str) -> None:
    assert faults(client.get(f"/scenario?{query}"))["limit"] == "Given 2 times. Give it once."


def test_all_faults_of_a_query_and_a_path_are_reported_together(client: httpx.Client) -> None:
    query = "limit=0&after=x&x=1&limit=5"
    response = client.get(f"/scenario/nonsense/history?{query}")
    assert faults(response) == {
        "scenario_uuid": "Invalid UUID.",
        "after": "Expected a whole number. Allowed: `next` of the previous page: the number of its last transition.",
        "limit": "Given 2 times. Give it once.",
        "x": "Unknown parameter. The parameters of this path: after, limit.",
    }
    assert list(faults(client.get("/prediction?limit=0&x"))) == ["scenario_uuid", "limit", "x"]
    assert "Missing" in faults(client.get("/prediction"))["scenario_uuid"]
    states = "init_startup, in_startup_processing, active, init_shutdown, in_shutdown_processing, inactive"
    assert faults(client.get("/scenario?state=ACTIVE"))["state"].endswith(f"Allowed: {states}.")


@pytest.mark.parametrize(
    "limit", ["1.0", "1e1", "+5", " 5", "5 ", "0x5", "1_0", "\u0665", "\uff15", "null", "true", "", "5%00", "1" * 5000]
)
def test_only_digits_are_a_whole_number(client: httpx.Client, limit: str) -> None:
    assert list(faults(client.get(f"/scenario?limit={limit}"))) == ["limit"]


@pytest.mark.parametrize(
    "query", ["state=null", "after=null", "after=NULL", f"after=urn:uuid:{UNKNOWN_UUID}", f"after=%7B{UNKNOWN_UUID}%7D"]
)
def test_a_value_is_not_read_leniently(client: httpx.Client, query: str) -> None:
    assert list(faults(client.get(f"/scenario?{query}"))) == [query.partition("=")[0]]
    assert list(faults(client.get(f"/scenario/{UNKNOWN_UUID}/gaps?after=null"))) == ["after"]


def test_the_answer_to_thousands_of_faults_is_short(client: httpx.Client) -> None:
    response = client.get("/scenario?" + "&".join(f"x{number}" for number in range(4000)))
    assert_problem(response, 400, "request_malformed")
    assert len(response.json()["errors"]) == 100
    assert response.json()["detail"].endswith("And 90 more.")
    response = client.get(f"/scenario?{'x' * 20_000}=1&state={'y' * 10_000}")
    assert len(response.content) < 4000


def test_secrets_in_a_query_are_not_repeated(client: httpx.Client) -> None:
    response = client.get("/scenario?state=rtsp://me:hidden@camera.example/1&token=hidden")
    assert "hidden" not in response.text
    assert sorted(faults(response)) == ["state", "token"]


def test_options_has_no_parameters_to_refuse(client: httpx.Client) -> None:
    assert client.options("/scenario?limit=5&x=1").status_code == 204
