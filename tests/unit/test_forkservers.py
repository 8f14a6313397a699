"""The runner's two forkservers, on the parts of multiprocessing that are not public. Every supported Python runs this test.

docs/decisions/0010-two-forkservers.md says why these parts are used.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from vidflow.roles.runner import forkservers as module
from vidflow.roles.runner.forkservers import Forkservers, without_main

FIRST, SECOND = "preloaded_by_the_first", "preloaded_by_the_second"
PROBE = f"""
import sys

def send_preloaded(connection):
    connection.send([name for name in ({FIRST!r}, {SECOND!r}) if name in sys.modules])
"""
"""A module that a child imports quickly."""


def stop(server: Any) -> None:
    server._stop()  # multiprocessing's own tests stop it by this method too


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forkservers]:
    """Forkservers that preload two modules of this test instead of a worker's libraries."""
    stop(forkserver._forkserver)  # another test may have started it with other imports
    monkeypatch.setattr(forkserver, "connect_to_new_process", forkserver.connect_to_new_process)  # restored at the end
    monkeypatch.setattr(module, "PRELOAD_MODULE", FIRST)
    monkeypatch.setattr(module, "TORCH_PRELOAD_MODULE", SECOND)
    for name in (FIRST, SECOND):
        (tmp_path / f"{name}.py").touch()
    (tmp_path / "probe.py").write_text(PROBE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    servers = Forkservers()
    servers._torch_due_s = 0.0
    try:
        yield servers
    finally:
        stop(forkserver._forkserver)
        sys.modules.pop("probe", None)


def preloaded_in_a_child(servers: Forkservers) -> list[str]:
    receiver, sender = servers.context.Pipe(duplex=False)
    child = servers.context.Process(target=importlib.import_module("probe").send_preloaded, args=(sender,))
    with without_main():
        child.start()
    sender.close()
    names: list[str] = receiver.recv()
    child.join()
    assert child.exitcode == 0
    child.close()
    receiver.close()
    return names


def wait_for_the_second(servers: Forkservers) -> module._StartingForkserver:
    assert servers._torch_server is not None
    second = servers._torch_server
    second._thread.join()
    return second


def test_processes_start_from_the_second_server_once_it_has_imported_everything(servers: Forkservers) -> None:
    assert preloaded_in_a_child(servers) == [FIRST]
    servers.poll()
    second = wait_for_the_second(servers)
    servers.poll()
    assert preloaded_in_a_child(servers) == [SECOND]
    stop(second.server)


def test_the_runner_does_not_wait_for_the_imports_of_the_second_server(servers: Forkservers, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    (tmp_path / f"{SECOND}.py").write_text(f"open({str(tmp_path / 'gate')!r}).close()")
    for _ in range(3):
        servers.poll()
    assert preloaded_in_a_child(servers) == [FIRST]
    (tmp_path / "gate").write_text("")  # returns once the second server has arrived there, and lets it pass
    second = wait_for_the_second(servers)
    servers.poll()
    assert preloaded_in_a_child(servers) == [SECOND]
    stop(second.server)


def test_a_second_server_that_dies_is_reported_and_the_first_stays_in_use(
    servers: Forkservers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f"{SECOND}.py").write_text("import os; os._exit(3)")
    servers.poll()
    second = wait_for_the_second(servers)
    servers.poll()
    assert not second.is_ready
    assert "torch_not_preloaded" in caplog.text
    assert preloaded_in_a_child(servers) == [FIRST]


def test_no_child_runs_the_main_module_again(servers: Forkservers) -> None:
    spawn = importlib.import_module("multiprocessing.spawn")
    with without_main():
        data = spawn.get_preparation_data("child")
    assert not {"init_main_from_name", "init_main_from_path"} & data.keys()
    assert preloaded_in_a_child(servers) == [FIRST]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports who connects")
@pytest.mark.usefixtures("servers")
def test_a_guarded_server_starts_processes_for_its_runner_only() -> None:
    stop(forkserver._forkserver)
    guarded = Forkservers(confined=True)
    assert preloaded_in_a_child(guarded) == [FIRST]
    server: Any = forkserver._forkserver
    stranger = """if True:
        import socket, sys
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(sys.argv[1])
            connection.settimeout(30)
            print(connection.recv(1))
    """
    result = subprocess.run(
        [sys.executable, "-c", stranger, server._forkserver_address], capture_output=True, text=True, check=True
    )
    assert result.stdout == "b''\n"
    assert preloaded_in_a_child(guarded) == [FIRST], "it goes on"
