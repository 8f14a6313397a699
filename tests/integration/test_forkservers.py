"""The runner's forkservers, by what the processes that they make have imported."""

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
    monkeypatch.setattr(forkserver, "connect_to_new_process", forkserver.connect_to_new_process)  # put back at the end
    made = Forkservers()
    made.prepare()
    return made


def tell_what_is_imported(told: Connection) -> None:
    told.send([name for name in ("confluent_kafka", "torch") if name in sys.modules])


def imported_in_a_child(of: Forkservers) -> list[str]:
    hear, told = of.context.Pipe(duplex=False)
    child = of.context.Process(target=tell_what_is_imported, args=(told,))
    with without_main():
        child.start()
    told.close()
    names: list[str] = hear.recv()
    child.join()
    return names


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_workers_are_made_at_once_without_torch_and_with_it_once_it_is_imported(forkservers: Forkservers) -> None:
    assert imported_in_a_child(forkservers) == ["confluent_kafka"]

    def has_taken_over() -> bool:
        forkservers.poll()
        return "torch" in imported_in_a_child(forkservers)

    wait_until(has_taken_over, "the forkserver with torch makes the processes", limit_s=60)
    assert imported_in_a_child(forkservers) == ["confluent_kafka", "torch"]


def test_a_temporary_folder_too_long_for_a_socket_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    program = "from vidflow.roles.runner.forkservers import Forkservers; Forkservers().prepare(); print('ready')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("ready\n", 0), done.stderr
