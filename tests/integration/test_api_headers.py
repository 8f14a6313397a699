"""Headers of responses that HTTP defines: dates, entity tags, content types, and problems wherever a request is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from http import HTTPStatus

import httpx
import pytest
from tests.integration.api_server import create_scenario, ready_api, write_deployment, write_results
from tests.integration.raw_http import send_raw_request

from vidflow.settings import ApiOptions

HOST = b"Host: localhost\r\n"
POST = b"POST /scenario/init HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
IMF_FIXDATE = re.compile(
    r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), [0-3]\d (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) 20\d\d [0-2]\d:[0-5]\d:[0-6]\d GMT"
)


@pytest.fixture(scope="module")
def client(database_url: str) -> Iterator[httpx.Client]:
    with ready_api(ApiOptions(database_url=database_url)) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health/live"), ("HEAD", "/health/live"), ("GET", "/docs"), ("GET", "/"), ("GET", "/metrics"), ("GET", "/nothing"),
        ("OPTIONS", "/scenario"), ("PUT", "/scenario"), ("POST", "/scenario/init"), ("GET", "/health/system"),
    ],
)  # fmt: skip
def test_each_response_has_one_date_in_the_form_of_rfc_9110(client: httpx.Client, method: str, path: str) -> None:
    [date] = client.request(method, path).headers.get_list("date", split_commas=False)
    assert IMF_FIXDATE.fullmatch(date), date


def test_an_unavailable_part_says_when_to_try_again_in_seconds(client: httpx.Client) -> None:
    response = client.get("/health/system")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_a_list_of_tags_is_read_by_the_grammar(client: httpx.Client, database_url: str) -> None:
    uuid = create_scenario(client)["scenario_uuid"]
    write_deployment(database_url, uuid)
    write_results(database_url, uuid, range(2))
    for path in (f"/scenario/{uuid}", f"/prediction?scenario_uuid={uuid}"):
        tag = client.get(path).headers["etag"]
        for known in (tag, f"W/{tag}", f'"x", {tag}', f'"x,y" , W/{tag}', "*", f", {tag},"):
            response = client.get(path, headers={"If-None-Match": known})
            assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", tag), known
        assert client.get(path, headers=[("If-None-Match", '"x"'), ("If-None-Match", tag)]).status_code == 304
        for other in ('"x"', f'"x,{tag[1:]}', tag.strip('"'), f"w/{tag}", f"{tag} {tag}", ""):
            assert client.get(path, headers={"If-None-Match": other}).status_code == 200, other


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"nonsense\r\n\r\n", 400, "request_malformed"), (b"\x16\x03\x01\x02\x00\x01", 400, "request_malformed"),
        (b"GET / HTTP/9.9\r\n" + HOST + b"\r\n", 400, "request_malformed"), (b"GET / HTTP/1.1\r\nbad\r\n\r\n", 400, "request_malformed"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 40_000 + b"\r\n\r\n", 431, "head_too_large"),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 431, "head_too_large"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nno length\r\n", 400, "request_malformed"),
        (POST + b"Transfer-Encoding: gzip\r\n\r\n{}", 400, "request_malformed"),
        (POST + b"Content-Length: -1\r\n\r\n{}", 400, "request_malformed"),
        (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "request_malformed"),
        (POST + b"Content-Length: 9999999\r\n\r\n{", 413, "body_too_large"), (POST + b"Content-Length: 0\r\n\r\n", 400, "body_malformed"),
        (b"GET /scenario HTTP/1.1\r\n\r\n", 400, "host_invalid"), (b"GET /nothing HTTP/1.1\r\n" + HOST + b"\r\n", 404, "not_found"),
        (b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n", 400, "request_malformed"),
        (b"DELETE / HTTP/1.1\r\n" + HOST + b"\r\n", 405, "method_not_allowed"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\nx", 415, "not_json"),
        (b"CONNECT localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n", 400, "request_malformed"),
        (b"GET /scenario/\xff HTTP/1.1\r\n" + HOST + b"\r\n", 400, "request_malformed"),
    ],
)  # fmt: skip
def test_each_refusal_is_a_complete_problem_of_whatever_part_refuses(
    client: httpx.Client, data: bytes, status: int, code: str
) -> None:
    response = send_raw_request(client, data)
    problem = json.loads(response.body)
    assert (response.status, problem["status"], problem["code"]) == (status, status, code)
    assert response.headers["content-type"] == "application/problem+json"
    assert (problem["type"], problem["title"]) == (f"urn:vidflow:problem:{code}", HTTPStatus(status).phrase)
    assert problem["detail"].endswith(".")
    assert problem["request_id"] == response.headers["x-request-id"]
    assert IMF_FIXDATE.fullmatch(response.headers["date"])
    assert response.headers["x-content-type-options"] == "nosniff"
    assert int(response.headers["content-length"]) == len(response.body)
