"""Starting and stopping child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.integration.server_owner import wait_until

from vidflow.infra.embedded.child_process import start_child, stop_child

SLEEPER = [sys.executable, "-c", "import sys, time; sys.stdout.write('up'); sys.stdout.flush(); time.sleep(60)"]
IGNORES_SIGTERM = [
    sys.executable,
    "-c",
    "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); sys.stdout.write('up'); sys.stdout.flush(); time.sleep(60)",
]


def child(command: list[str]) -> subprocess.Popen[bytes]:
    started = start_child(command, output=subprocess.PIPE, death_signal=signal.SIGKILL)
    assert started.stdout is not None
    assert started.stdout.read(2) == b"up"
    return started


def test_a_child_outlives_the_thread_that_started_it() -> None:
    started: list[subprocess.Popen[bytes]] = []
    thread = threading.Thread(target=lambda: started.append(child(SLEEPER)), name="starter")
    thread.start()
    thread.join()
    wait_until(lambda: not Path(f"/proc/self/task/{thread.native_id}").exists(), "the thread is gone")
    with started[0] as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.kill()


def test_a_child_has_its_own_session_so_that_ctrl_c_does_not_reach_it() -> None:
    with child(SLEEPER) as process:
        assert os.getsid(process.pid) == process.pid
        process.kill()


def test_a_child_that_handles_the_signal_ends_by_it() -> None:
    with child(SLEEPER) as process:
        assert stop_child(process, signal.SIGTERM, grace_s=20) == -signal.SIGTERM


def test_a_child_that_ignores_the_signal_is_killed_after_its_grace_period() -> None:
    with child(IGNORES_SIGTERM) as process:
        assert stop_child(process, signal.SIGTERM, grace_s=0.1) == -signal.SIGKILL


def test_a_program_that_does_not_exist_ends_at_once_with_an_error_on_its_output() -> None:
    with start_child(["/does/not/exist"], output=subprocess.PIPE, death_signal=signal.SIGKILL) as process:
        assert b"FileNotFoundError" in process.communicate()[0]
        assert process.returncode == 1
