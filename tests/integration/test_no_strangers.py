"""A whole vidflow connects only to configured addresses and writes only to its own folders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tests.integration.api_server import free_port
from tests.integration.processes import children
from tests.integration.server_owner import wait_until
from tests.integration.syscall_trace import SyscallTrace, require_strace, start_traced

from vidflow.infra.embedded.jars import cache_folder
from vidflow.settings import read_environment_variable

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

LIMIT_S = 110.0
SYSTEM = (Path("/dev"), Path("/proc"))
"""Devices, shared memory and process settings: changes there do not outlive the process or leave the machine."""


def test_a_whole_vidflow_uses_only_its_own_addresses_and_folders(tmp_path: Path, shared: Path) -> None:
    require_strace(tmp_path)
    home, data, scratch, cache = (tmp_path / name for name in ("home", "data", "scratch", "cache"))
    for folder in (home, data, scratch):
        folder.mkdir()
    # The jars are in the cache, as after a first start.
    cache.symlink_to(cache_folder(read_environment_variable("VIDFLOW_CACHE_DIR")))
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
    environment = {
        "HOME": str(home), "TMPDIR": str(scratch), "VIDFLOW_CACHE_DIR": str(cache), "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_CACHE_HOME": "", "ORT_DISABLE_TELEMETRY": "",
    }  # fmt: skip
    trace_file = tmp_path / "trace"
    with start_traced(trace_file, [sys.executable, *command], environment, stderr=subprocess.PIPE) as process:
        try:
            outcome = run_scenario(port, shared / "videos/vtest.avi")
            assert len(children(process.pid)) == 1
        finally:
            for pid in children(process.pid):
                os.kill(pid, signal.SIGINT)
            _, stderr = process.communicate(timeout=60)
            sys.stdout.write(stderr)
    assert outcome == "completed", stderr
    trace = SyscallTrace(trace_file)
    ports = {port} | {
        int(word) for file in ("postgres/port", "kafka/ports") for word in (data / file).read_text().split()
    }
    assert {place for place in trace.connections if place[0] != "127.0.0.1" or place[1] not in ports} == set()
    assert len(trace.connections) >= 4, "connections to the api, PostgreSQL, Kafka or its controller are missing"
    assert (trace.datagrams, trace.name_lookups) == ([], [])
    assert trace.changes_outside([data, scratch, Path("/tmp"), cache, cache.resolve(), *SYSTEM]) == []
    assert [path for path in trace.changed_paths if path.is_relative_to(home)] == []


def run_scenario(port: int, video: Path) -> str | None:
    """Run a scenario with an ONNX model, read the metrics, and return the scenario's outcome."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:

        def answer_contains(path: str, text: str) -> bool:
            try:
                return text in client.get(path).text
            except httpx.TransportError:
                return False

        wait_until(lambda: answer_contains("/health/system", '"ok"'), "vidflow is ready", LIMIT_S)
        answer = client.post("/scenario/init", json={"source": str(video), "model": "yolox_nano", "fps": 0.2})
        assert answer.status_code == 201, answer.text
        path = f"/scenario/{answer.json()['scenario_uuid']}"
        wait_until(lambda: answer_contains(path, '"inactive"'), "the scenario is inactive", LIMIT_S)
        wait_until(lambda: answer_contains("/metrics", "vidflow_build_info"), "the api serves metrics")
        return str(client.get(path).json()["outcome"])


@pytest.mark.parametrize(
    ("program", "detected"),
    [
        ("import socket; socket.socket().connect_ex(('192.0.2.1', 80))", "connections"),
        (
            "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'?', ('127.0.0.1', 53))",
            "datagrams",
        ),
        ("import socket; socket.gethostbyname('name.invalid')", "name_lookups"),
        ("import socket; socket.getfqdn()", "name_lookups"),
        ("import pathlib, os; pathlib.Path(os.environ['HOME'], 'left').write_text('x')", "changed_paths"),
        ("import onnxruntime; onnxruntime.disable_telemetry_events()", "changed_paths"),
    ],
)
def test_unexpected_access_is_detected(tmp_path: Path, program: str, detected: str) -> None:
    """This shows that the test above can fail."""
    require_strace(tmp_path)
    home, trace_file = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    environment = {
        "HOME": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_CACHE_HOME": "",
        "ORT_DISABLE_TELEMETRY": "0",
    }
    start_traced(trace_file, [sys.executable, "-c", program], environment).wait()
    trace = SyscallTrace(trace_file)
    found = {
        "connections": {address for address, _ in trace.connections} == {"192.0.2.1"},
        "datagrams": bool(trace.datagrams),
        "name_lookups": bool(trace.name_lookups),
        "changed_paths": any(path.is_relative_to(home) for path in trace.changes_outside([*SYSTEM])),
    }
    if "onnxruntime" in program and not found[detected]:
        pytest.skip("this build of onnxruntime has no telemetry")
    assert found[detected]
