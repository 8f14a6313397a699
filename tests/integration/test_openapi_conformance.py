"""The api behaves as its OpenAPI document says, for requests that schemathesis derives from the document, valid and invalid ones.

It covers single operations, and sequences in which a response gives the parameters of the next request.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.integration.api_server import api_with_clip

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is in the extra dev only")

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
SEED = 20261129
MAX_EXAMPLES = 150
CONFIG = """
[checks]
# A source that has the form of a URL or a path need not exist here.
positive_data_acceptance.enabled = false

# No other role runs here, so that the check of the whole system fails, as it should.
[[operations]]
include-path = "/health/system"
checks.not_a_server_error.enabled = false
"""
"""All other checks are on: statuses, headers, content types, schemas, other methods, and what was created is there."""


@pytest.fixture(scope="module")
def client(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with api_with_clip(database_url, tmp_path_factory.mktemp("media")) as client:
        yield client


def test_every_response_conforms_to_the_document(client: httpx.Client, tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        f"--config-file={config}",
        "run",
        f"{client.base_url}/docs/openapi.json",
    ]
    options = [
        f"--seed={SEED}", f"--max-examples={MAX_EXAMPLES}", "--phases=examples,coverage,fuzzing,stateful", "--continue-on-failure",
        "--generation-database=none", "--suppress-health-check=all", "--no-color",
    ]  # fmt: skip
    run = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2000:]
    for phase in ("Examples", "Coverage", "Fuzzing", "Stateful"):
        assert phase in run.stdout
    assert client.get("/scenario").json()["items"], "no valid request was among them"
