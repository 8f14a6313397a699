"""Supervision of a child process: start it, wait for its end, and start it again after a pause."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Final

from vidflow.domain.errors import VidflowError
from vidflow.infra.embedded.child_process import Notify, stop_child
from vidflow.infra.process.stopping import Stop, start_thread

MIN_BACKOFF_S: Final = 0.2
MAX_BACKOFF_S: Final = 5.0
STABLE_AFTER_S: Final = 10.0
"""A child that ran this long had started well, so the pauses begin again at the shortest."""

Launch = Callable[[], subprocess.Popen[bytes]]


def next_backoff_s(last_s: float | None, ran_s: float) -> float:
    """Return the pause before the next start: 0.2 s, doubling up to 5 s, and 0.2 s again after the child ran for 10 s.

    `last_s`: the previous pause, None if there was none. `ran_s`: how long the child ran after it.
    """
    if last_s is None or ran_s >= STABLE_AFTER_S:
        return MIN_BACKOFF_S
    return min(2 * last_s, MAX_BACKOFF_S)


class ChildSupervisor:
    """The owner of a child process. Its thread waits for the child's end."""

    def __init__(
        self, name: str, launch: Launch, notify: Notify, stop: Stop, *, stop_signal: signal.Signals, grace_s: float
    ) -> None:
        """`launch` starts the child each time. `stop_signal` asks it to end; after `grace_s` it is killed."""
        self.name = name
        self.last_exit_code: int | None = None
        self.consecutive_exits = 0
        """How often the child has ended since it last ran for STABLE_AFTER_S."""
        self._launch = launch
        self._stop_signal = stop_signal
        self._grace_s = grace_s
        self._notify = notify
        self._stop = stop
        self._start_lock = threading.Lock()  # held while the child changes, so that none starts after `end`
        self._ending = False
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """The id of the running process, None if there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start the child and, from then on, restart it whenever it ends. Raises what the first `launch` raises."""
        self._process = self._launch()
        self._thread = start_thread(f"keeps {self.name}", self._supervise, self._stop)

    def request_end(self) -> None:
        """Ask the child to end, without waiting for it."""
        with self._start_lock:
            self._ending = True
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(self._stop_signal)

    def end(self) -> None:
        """End the child, by force after its grace time, and its supervision."""
        with self._start_lock:
            self._ending = True
            if self._process is not None:
                stop_child(self._process, self._stop_signal, self._grace_s)
        if self._thread is not None:
            self._thread.join()

    def _supervise(self) -> None:
        pause_s: float | None = None
        while self._process is not None:
            started_s = time.monotonic()
            exit_code = self._process.wait()
            if self._is_ending():
                return
            ran_s = time.monotonic() - started_s
            self.consecutive_exits = 1 if ran_s >= STABLE_AFTER_S else self.consecutive_exits + 1
            self.last_exit_code = exit_code
            pause_s = next_backoff_s(pause_s, ran_s)
            self._notify(f"{self.name} {_describe_exit(exit_code)}; restarting it in {pause_s:g} s")
            self._restart(pause_s)

    def _restart(self, pause_s: float) -> None:
        while not self._stop.wait(pause_s):
            try:
                with self._start_lock:
                    if not self._is_ending():
                        self._process = self._launch()
            except (VidflowError, OSError) as error:  # even a full disk may be temporary
                pause_s = next_backoff_s(pause_s, 0.0)
                self._notify(f"cannot restart {self.name}, trying again in {pause_s:g} s: {error}")
            else:
                return

    def _is_ending(self) -> bool:
        return self._ending or self._stop.requested


def _describe_exit(exit_code: int) -> str:
    return f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"ended with exit code {exit_code}"
