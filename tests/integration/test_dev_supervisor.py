"""Supervision of real child processes."""

from __future__ import annotations

import errno
import os
import re
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

IN_USE = Unavailable("The port is still in use.")


def sleeper() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]
    return start_child(command, output=subprocess.DEVNULL, death_signal=signal.SIGKILL)


class Launches:
    """Starts sleepers. The launches numbered in `fails_at` raise `error` instead."""

    def __init__(self, *, fails_at: tuple[int, ...] = (), error: Exception = IN_USE) -> None:
        self.started: list[subprocess.Popen[bytes]] = []
        self.count = 0
        self._fails_at = fails_at
        self._error = error

    def __call__(self) -> subprocess.Popen[bytes]:
        self.count += 1
        if self.count in self._fails_at:
            raise self._error
        self.started.append(sleeper())
        return self.started[-1]


@pytest.fixture
def stop() -> Iterator[Stop]:
    stop = Stop()
    try:
        yield stop
    finally:
        stop.request()


def create_supervisor(launches: Launches, notifications: list[str], stop: Stop) -> ChildSupervisor:
    return ChildSupervisor("sleeper", launches, notifications.append, stop, stop_signal=signal.SIGTERM, grace_s=10)


def test_a_killed_child_is_restarted_with_a_notification(stop: Stop) -> None:
    notifications, launches = list[str](), Launches()
    supervisor = create_supervisor(launches, notifications, stop)
    supervisor.start()
    first = launches.started[0].pid
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: supervisor.pid not in {first, None}, "another process runs")
    assert notifications == ["sleeper was killed by SIGKILL; restarting it in 0.2 s"]
    supervisor.end()


def test_a_failed_start_is_repeated_after_a_longer_pause(stop: Stop) -> None:
    notifications, launches = list[str](), Launches(fails_at=(2,))
    supervisor = create_supervisor(launches, notifications, stop)
    supervisor.start()
    launches.started[0].kill()
    wait_until(lambda: launches.count == 3, "it is started a third time")
    assert notifications[1] == "cannot restart sleeper, trying again in 0.4 s: The port is still in use."
    supervisor.end()


def test_a_start_refused_by_the_system_is_repeated_too(stop: Stop) -> None:
    notifications = list[str]()
    launches = Launches(fails_at=(2,), error=OSError(errno.ENOSPC, "No space left on device"))
    supervisor = create_supervisor(launches, notifications, stop)
    supervisor.start()
    launches.started[0].kill()
    wait_until(lambda: launches.count == 3, "it is started a third time")
    assert re.fullmatch("cannot restart sleeper, trying again in 0.4 s: .*No space left on device", notifications[1])
    assert not stop.requested
    supervisor.end()


def test_an_ended_child_is_not_restarted(stop: Stop) -> None:
    launches = Launches()
    supervisor = create_supervisor(launches, [], stop)
    supervisor.start()
    supervisor.end()
    assert supervisor.pid is None
    assert launches.count == 1


def test_no_child_is_restarted_after_a_stop_is_requested(stop: Stop) -> None:
    notifications, launches = list[str](), Launches()
    supervisor = create_supervisor(launches, notifications, stop)
    supervisor.start()
    stop.request()
    launches.started[0].kill()
    supervisor.end()
    assert (launches.count, notifications) == (1, [])
