"""Keeps one child process running: starts it, waits for its end, starts it again after a pause. What it runs is not its matter."""

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
"""Who ran for so long had started well: the pauses begin anew."""

Launch = Callable[[], subprocess.Popen[bytes]]


def next_backoff_s(last_s: float | None, ran_s: float) -> float:
    """How long to wait before the next start: 0.2 s, doubling to 5 s, anew after 10 s alive. `last_s`: the pause before this one."""
    if last_s is None or ran_s >= STABLE_AFTER_S:
        return MIN_BACKOFF_S
    return min(2 * last_s, MAX_BACKOFF_S)


class ChildSupervisor:
    """The owner of one child process. Its thread sleeps in the wait for the child's end."""

    def __init__(
        self, name: str, launch: Launch, say: Notify, stop: Stop, *, stop_signal: signal.Signals, grace_s: float
    ) -> None:
        """`launch` starts the child, the first time and again; it ends by the signal `stop_signal` within `grace_s`, or by force."""
        self.name = name
        self.last_exit_code: int | None = None
        self.consecutive_exits = 0
        """How often the child has ended since it last ran for STEADY_S."""
        self._launch = launch
        self._stop_signal = stop_signal
        self._grace_s = grace_s
        self._say = say
        self._stop = stop
        self._start_lock = threading.Lock()  # held while the child changes, so that nothing starts behind the end
        self._ending = False
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """The process that runs now, None where none does."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Starts the child for the first time: raises what `launch` raises. From then on it is kept."""
        self._process = self._launch()
        self._thread = start_thread(f"keeps {self.name}", self._supervise, self._stop)

    def request_end(self) -> None:
        """Asks the child to end, and does not wait."""
        with self._start_lock:
            self._ending = True
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(self._stop_signal)

    def end(self) -> None:
        """Ends the child, by force after its grace time, and the keeping."""
        with self._start_lock:
            self._ending = True
            if self._process is not None:
                stop_child(self._process, self._stop_signal, self._grace_s)
        if self._thread is not None:
            self._thread.join()

    def _supervise(self) -> None:
        pause_s: float | None = None
        while self._process is not None:
            began_s = time.monotonic()
            code = self._process.wait()
            if self._is_ending():
                return
            ran_s = time.monotonic() - began_s
            self.consecutive_exits = 1 if ran_s >= STABLE_AFTER_S else self.consecutive_exits + 1
            self.last_exit_code = code
            pause_s = next_backoff_s(pause_s, ran_s)
            self._say(f"{self.name} {_describe_exit(code)}: starting it again in {pause_s:g} s")
            self._restart(pause_s)

    def _restart(self, pause_s: float) -> None:
        while not self._stop.wait(pause_s):
            try:
                with self._start_lock:
                    if not self._is_ending():
                        self._process = self._launch()
            except (VidflowError, OSError) as error:  # a full disk passes, and takes no new settings either
                pause_s = next_backoff_s(pause_s, 0.0)
                self._say(f"{error}; trying again in {pause_s:g} s")
            else:
                return

    def _is_ending(self) -> bool:
        return self._ending or self._stop.requested


def _describe_exit(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
