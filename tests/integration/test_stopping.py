"""A stop signal reaches a role wherever its main thread happens to be."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

TRIALS: Final = 60

WAITS_WITHOUT_PAUSE: Final = f"""
import os, signal, threading
from vidflow.infra.process.stopping import Stop

for _ in range({TRIALS}):
    stop = Stop()
    stop.request_on_signals()
    threading.Timer(0.005, os.kill, (os.getpid(), signal.SIGTERM)).start()
    while not stop.wait(0):
        pass
print("stopped {TRIALS} times")
"""


def test_a_signal_during_a_check_for_a_stop_does_not_block_the_process() -> None:
    """A handler that sets an event blocks forever if the main thread holds the event's lock at that moment."""
    result = subprocess.run(
        [sys.executable, "-c", WAITS_WITHOUT_PAUSE], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout == f"stopped {TRIALS} times\n", result.stderr
