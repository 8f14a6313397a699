"""The runner's forkservers: what the processes that they start have imported."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from tests.integration.server_owner import wait_until

from vidflow.roles.runner.forkservers import Forkservers, without_main


@pytest.fixture
def forkservers(monkeypatch: pytest.MonkeyPatch) -> Forkservers:
    monkeypatch.setattr(forkserver, "connect_to_new_process", forkserver.connect_to_new_process)  # restored at the end
    forkservers = Forkservers()
    forkservers.prepare()
    return forkservers


def send_imported_modules(connection: Connection) -> None:
    connection.send([name for name in ("confluent_kafka", "torch") if name in sys.modules])


def imported_in_a_child(forkservers: Forkservers) -> list[str]:
    receiver, sender = forkservers.context.Pipe(duplex=False)
    child = forkservers.context.Process(target=send_imported_modules, args=(sender,))
    with without_main():
        child.start()
    sender.close()
    names: list[str] = receiver.recv()
    child.join()
    return names


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_workers_start_without_torch_at_first_and_with_it_once_it_is_imported(forkservers: Forkservers) -> None:
    assert imported_in_a_child(forkservers) == ["confluent_kafka"]

    def has_taken_over() -> bool:
        forkservers.poll()
        return "torch" in imported_in_a_child(forkservers)

    wait_until(has_taken_over, "the forkserver with torch has taken over", limit_s=60)
    assert imported_in_a_child(forkservers) == ["confluent_kafka", "torch"]


@pytest.mark.long
def test_a_temporary_folder_with_too_long_a_path_for_a_socket_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    program = "from vidflow.roles.runner.forkservers import Forkservers; Forkservers().prepare(); print('ready')"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.stdout, result.returncode) == ("ready\n", 0), result.stderr
