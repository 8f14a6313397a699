"""The first session of the README and of the documentation works as typed, in one shell beside a running vidflow."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.vidflow_process import VidflowClient, running_vidflow

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
DEV = ".venv/bin/vidflow dev\n"
SESSIONS = {"README.md": "## A first session", "docs/how-to/first-session.md": "## Keep it running"}


@pytest.fixture(scope="module")
def vidflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VidflowClient]:
    with running_vidflow(tmp_path_factory.mktemp("first-session")) as vidflow:
        yield vidflow


def session(page: str, heading: str) -> list[str]:
    """Return the blocks of the second shell: those between `vidflow dev` and the next section."""
    section = (ROOT / page).read_text().partition(heading)[2].partition("\n## ")[0]
    first, *others = BLOCK.findall(section)
    assert first == DEV
    return others


@pytest.mark.parametrize("page", SESSIONS)
def test_each_command_of_the_first_session_works_as_typed(vidflow: VidflowClient, page: str) -> None:
    script = "set -euo pipefail\n" + "".join(session(page, SESSIONS[page])) + 'echo; echo "uuid=$uuid"'
    script = script.replace("localhost:8000", f"localhost:{vidflow.stack.port}")
    result = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True, timeout=60)
    output, _, uuid = result.stdout.rpartition("\nuuid=")
    uuid = uuid.strip()
    answers = list(decode_all(output))
    assert answers[0]["scenario_uuid"] == uuid
    assert answers[0]["source"].endswith("bikes.mp4")
    assert {"items", "next", "complete"} <= answers[1].keys()
    assert answers[2]["items"][0]["to_state"] == "init_startup"
    assert vidflow.wait_until_inactive(uuid)["error"] is None
    assert vidflow.frames(uuid) or page != "README.md"  # the other session shuts its scenario down


def test_the_answers_shown_in_the_readme_are_those_of_the_api(vidflow: VidflowClient) -> None:
    section = (ROOT / "README.md").read_text().partition("## A first session")[2].partition("\n## ")[0]
    [shown] = re.findall(r"^```json\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    problem = json.loads(shown)
    headers = {"X-Request-Id": problem["request_id"]}
    refused = vidflow.http.post("/scenario/init", json={"source": "/tmp/none.mp4"}, headers=headers)
    assert refused.json() == problem
    uuid = vidflow.create_scenario(Path("sample:bikes"), "yolox_nano", 2)
    assert vidflow.wait_until_inactive(uuid)["outcome"] == "completed"
    frame, following = vidflow.frames(uuid)[3:5]
    shown_detection = json.loads(re.search(r'\{"label":[^}]*\}', section)[0])  # type: ignore[index]
    best = frame["detections"][0]
    assert best["label"] == shown_detection["label"]
    # Other processors add in another order.
    assert best["score"] == pytest.approx(shown_detection["score"], abs=0.01)
    assert best["box"] == pytest.approx(shown_detection["box"], abs=1)
    for shown in (frame, following):
        assert f'"time_s":{shown["time_s"]},' in section
    assert f'"width":{frame["width"]},"height":{frame["height"]},' in section


def test_the_default_model_finds_what_the_readme_shows(vidflow: VidflowClient) -> None:
    command = ["run", "sample:bikes", "--fps", "2"]
    assert f"vidflow {' '.join(command)}\n" in (ROOT / "README.md").read_text()
    environment = {**os.environ, "VIDFLOW_URL": vidflow.stack.url}
    result = subprocess.run(
        [sys.executable, "-m", "vidflow", *command],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    table = result.stdout.splitlines()
    assert re.fullmatch(r" +3 +1\.48s  1 person \(0\.9\d\), 2 car .*", table[4])
    assert re.match(r"20 frames; total: 1\d car, \d person, ", table[-1])


def test_a_sample_runs_from_the_command_line(vidflow: VidflowClient) -> None:
    command = [
        sys.executable,
        "-m",
        "vidflow",
        "run",
        "sample:carphone",
        "--model",
        "motion",
        "--fps",
        "1",
        "--output",
        "ndjson",
    ]
    environment = {**os.environ, "VIDFLOW_URL": vidflow.stack.url}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=100)
    numbers = [json.loads(line)["frame_number"] for line in result.stdout.splitlines()]
    assert numbers == list(range(len(numbers)))
    assert numbers


def decode_all(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects that stand one after the other in a text."""
    decoder, position = json.JSONDecoder(), 0
    while position < len(text):
        answer, position = decoder.raw_decode(text, position)
        yield answer
        while position < len(text) and text[position].isspace():
            position += 1
