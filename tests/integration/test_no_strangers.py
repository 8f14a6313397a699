"""A whole vidflow speaks to nobody whom its configuration does not name, and writes nowhere but into its own folders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tests.integration.api_server import free_port
from tests.integration.embedded import wait_until
from tests.integration.observation import Observation, observed, require_strace
from tests.integration.processes import children

from vidflow.infra.embedded.jars import cache_folder
from vidflow.settings import environment

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

LIMIT_S = 110.0
SYSTEM = (Path("/dev"), Path("/proc"))
"""Devices, shared memory, and a process's own settings: nothing there outlives the process or leaves the machine."""


def test_a_whole_vidflow_with_an_onnx_model(tmp_path: Path, shared: Path) -> None:
    require_strace(tmp_path)
    home, data, scratch, cache = (tmp_path / name for name in ("home", "data", "scratch", "cache"))
    for folder in (home, data, scratch):
        folder.mkdir()
    cache.symlink_to(
        cache_folder(environment("VIDFLOW_CACHE_DIR"))
    )  # what is fetched once is there, as on a second start
    port = free_port()
    command = [
        "-m",
        "vidflow",
        "dev",
        "--port",
        str(port),
        "--data-dir",
        str(data),
        "--models-dir",
        str(shared / "models"),
    ]
    surroundings = {
        "HOME": str(home), "TMPDIR": str(scratch), "VIDFLOW_CACHE_DIR": str(cache), "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_CACHE_HOME": "", "ORT_DISABLE_TELEMETRY": "",
    }  # fmt: skip
    trace = tmp_path / "trace"
    with observed(trace, [sys.executable, *command], surroundings, stderr=subprocess.PIPE) as process:
        try:
            outcome = outcome_of_a_scenario(port, shared / "videos/vtest.avi")
            assert len(children(process.pid)) == 1
        finally:
            for own in children(process.pid):
                os.kill(own, signal.SIGINT)
            _, said = process.communicate(timeout=60)
            sys.stdout.write(said)
    assert outcome == "completed", said
    seen = Observation(trace)
    ports = {port} | {
        int(word) for file in ("postgres/port", "kafka/ports") for word in (data / file).read_text().split()
    }
    assert {one for one in seen.connections if one[0] != "127.0.0.1" or one[1] not in ports} == set()
    assert len(seen.connections) >= 4, "the api, PostgreSQL, Kafka and its controller were seen"
    assert (seen.datagrams, seen.look_ups) == ([], [])
    assert seen.outside([data, scratch, Path("/tmp"), cache, cache.resolve(), *SYSTEM]) == []
    assert [path for path in seen.changed if path.is_relative_to(home)] == []


def outcome_of_a_scenario(port: int, video: Path) -> str | None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:

        def answers(path: str, wanted: str) -> bool:
            try:
                return wanted in client.get(path).text
            except httpx.TransportError:
                return False

        wait_until(lambda: answers("/health/system", '"ok"'), "it is ready", LIMIT_S)
        answer = client.post("/scenario/init", json={"source": str(video), "model": "yolox_nano", "fps": 0.2})
        assert answer.status_code == 201, answer.text
        path = f"/scenario/{answer.json()['scenario_uuid']}"
        wait_until(lambda: answers(path, '"inactive"'), "it ends", LIMIT_S)
        wait_until(lambda: answers("/metrics", "vidflow_build_info"), "metrics are told")
        return str(client.get(path).json()["outcome"])


@pytest.mark.parametrize(
    ("program", "sees"),
    [
        ("import socket; socket.socket().connect_ex(('192.0.2.1', 80))", "connections"),
        (
            "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'?', ('127.0.0.1', 53))",
            "datagrams",
        ),
        ("import socket; socket.gethostbyname('name.invalid')", "look_ups"),
        ("import socket; socket.getfqdn()", "look_ups"),
        ("import pathlib, os; pathlib.Path(os.environ['HOME'], 'left').write_text('behind')", "changed"),
        ("import onnxruntime; onnxruntime.disable_telemetry_events()", "changed"),
    ],
)
def test_what_a_stranger_would_do_is_observed(tmp_path: Path, program: str, sees: str) -> None:
    """Shows that the test above can fail."""
    require_strace(tmp_path)
    home, trace = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    surroundings = {
        "HOME": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_CACHE_HOME": "",
        "ORT_DISABLE_TELEMETRY": "0",
    }
    observed(trace, [sys.executable, "-c", program], surroundings).wait()
    seen = Observation(trace)
    found = {
        "connections": {address for address, _ in seen.connections} == {"192.0.2.1"},
        "datagrams": bool(seen.datagrams),
        "look_ups": bool(seen.look_ups),
        "changed": any(path.is_relative_to(home) for path in seen.outside([*SYSTEM])),
    }
    if "onnxruntime" in program and not found[sees]:
        pytest.skip("this onnxruntime has no telemetry here")
    assert found[sees]
