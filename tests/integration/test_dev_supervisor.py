"""Child processes that are kept running, by real ones."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.integration.server_owner import wait_until

from vidflow.commands.dev.supervisor import ChildSupervisor
from vidflow.domain.errors import Unavailable
from vidflow.infra.embedded.child_process import start_child
from vidflow.infra.process.stopping import Stop

IN_USE = Unavailable("the port is still in use")


def sleeper() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]
    return start_child(command, output=subprocess.DEVNULL, death_signal=signal.SIGKILL)


class Launches:
    """Starts sleepers, and fails at the launches that it is told to fail at."""

    def __init__(self, *, fails_at: tuple[int, ...] = (), by: Exception = IN_USE) -> None:
        self.started: list[subprocess.Popen[bytes]] = []
        self.count = 0
        self._fails_at = fails_at
        self._by = by

    def __call__(self) -> subprocess.Popen[bytes]:
        self.count += 1
        if self.count in self._fails_at:
            raise self._by
        self.started.append(sleeper())
        return self.started[-1]


@pytest.fixture
def stop() -> Iterator[Stop]:
    stop = Stop()
    yield stop
    stop.request()


def make_keeper(launches: Launches, said: list[str], stop: Stop) -> ChildSupervisor:
    return ChildSupervisor("sleeper", launches, said.append, stop, stop_signal=signal.SIGTERM, grace_s=10)


def test_a_killed_child_is_started_again_and_that_is_said(stop: Stop) -> None:
    said, launches = list[str](), Launches()
    kept = make_keeper(launches, said, stop)
    kept.start()
    first = launches.started[0].pid
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: kept.pid not in {first, None}, "another process runs")
    assert said == ["sleeper was killed by SIGKILL: starting it again in 0.2 s"]
    kept.end()


def test_a_start_that_fails_is_tried_again_after_a_longer_pause(stop: Stop) -> None:
    said, launches = list[str](), Launches(fails_at=(2,))
    kept = make_keeper(launches, said, stop)
    kept.start()
    launches.started[0].kill()
    wait_until(lambda: launches.count == 3, "it is started a third time")
    assert said[1] == "the port is still in use; trying again in 0.4 s"
    kept.end()


def test_a_start_that_the_system_refuses_is_tried_again_too(stop: Stop) -> None:
    said, launches = list[str](), Launches(fails_at=(2,), by=OSError(errno.ENOSPC, "No space left on device"))
    kept = make_keeper(launches, said, stop)
    kept.start()
    launches.started[0].kill()
    wait_until(lambda: launches.count == 3, "it is started a third time")
    assert "No space left on device; trying again in 0.4 s" in said[1]
    assert not stop.requested
    kept.end()


def test_what_was_ended_stays_ended(stop: Stop) -> None:
    launches = Launches()
    kept = make_keeper(launches, [], stop)
    kept.start()
    kept.end()
    assert kept.pid is None
    assert launches.count == 1


def test_nothing_is_started_again_once_a_stop_is_requested(stop: Stop) -> None:
    said, launches = list[str](), Launches()
    kept = make_keeper(launches, said, stop)
    kept.start()
    stop.request()
    launches.started[0].kill()
    kept.end()
    assert (launches.count, said) == (1, [])
