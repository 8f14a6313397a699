"""The OpenAPI document and the page to try the API: valid, correct, and without content from other hosts."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from openapi_spec_validator import validate
from tests.integration.api_server import ready_api

from vidflow.settings import ApiOptions


@pytest.fixture(scope="module")
def client(database_url: str) -> Iterator[httpx.Client]:
    with ready_api(ApiOptions(database_url=database_url)) as client:
        yield client


def test_the_document_is_valid_and_names_every_path(client: httpx.Client) -> None:
    document = client.get("/docs/openapi.json").json()
    validate(document)
    assert {(path, method) for path, item in document["paths"].items() for method in item if method in {"get", "post"}} == {
        ("/scenario/init", "post"), ("/scenario", "get"), ("/scenario/{scenario_uuid}", "get"),
        ("/scenario/{scenario_uuid}/shutdown", "post"), ("/scenario/{scenario_uuid}/history", "get"),
        ("/scenario/{scenario_uuid}/gaps", "get"), ("/prediction", "get"), ("/models", "get"),
        ("/health/live", "get"), ("/health/ready", "get"), ("/health/system", "get"),
    }  # fmt: skip


def test_the_document_shows_examples_and_problems(client: httpx.Client) -> None:
    document = client.get("/docs/openapi.json").json()
    operation = document["paths"]["/scenario/init"]["post"]
    assert len(operation["requestBody"]["content"]["application/json"]["schema"]["examples"]) == 2
    for status in ("400", "413", "415", "422", "503"):
        assert "application/problem+json" in operation["responses"][status]["content"], status
    assert "ScenarioResponse" in str(operation["responses"]["201"])
    assert "PredictionPage" in str(document["paths"]["/prediction"]["get"]["responses"]["200"])


def test_the_examples_of_the_document_are_accepted(client: httpx.Client, database_url: str) -> None:
    operation = client.get("/docs/openapi.json").json()["paths"]["/scenario/init"]["post"]
    examples = operation["requestBody"]["content"]["application/json"]["schema"]["examples"]
    with ready_api(ApiOptions(database_url=database_url, any_file=True)) as open_client:
        for example in examples:
            response = open_client.post("/scenario/init", json=example)
            assert response.status_code == 201 or response.json()["code"] in {"source_missing", "model_unknown"}, (
                response.text
            )


def test_the_root_redirects_to_the_page(client: httpx.Client) -> None:
    response = client.get("/", follow_redirects=True)
    assert response.url.path == "/docs"
    assert response.headers["content-type"].startswith("text/html")


def test_the_page_loads_only_files_of_this_server(client: httpx.Client) -> None:
    page = client.get("/docs").text
    assert "://" not in page
    assert "default-src 'self'" in page
    files = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(files) == 4
    for path in files:
        response = client.get(path)
        assert response.status_code == 200, path
        assert response.content
    start = client.get("/docs/assets/start.js").text
    assert "validatorUrl: null" in start
    document = re.search(r'url: "([^"]+)"', start)
    assert document
    assert client.get(document[1]).json()["openapi"].startswith("3.1")


def test_the_api_imports_no_heavy_libraries() -> None:
    heavy = {"torch", "torchvision", "numpy", "av", "onnxruntime", "flask", "scipy", "confluent_kafka"}
    program = f"import sys, vidflow.roles.api; print(sorted({heavy!r} & set(sys.modules)))"
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == "[]"
