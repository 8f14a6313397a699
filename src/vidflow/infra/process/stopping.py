"""Stop requests: one event per process that all loops wait on, set by SIGTERM, SIGINT or the failure of a thread."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from types import FrameType
from typing import Final

from vidflow.infra.telemetry.logs import log

ITERATION_S: Final = 1.0

_log = log("stopping")


class Stop:
    """A stop request shared by all threads of a role. Loops sleep only by `stop.wait(seconds)`."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._iteration_callback: Callable[[], None] | None = None
        self.error: BaseException | None = None

    def on_iteration(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the main thread checks for a stop, and each second while it waits, as a sign that its loop runs."""
        self._iteration_callback = callback

    @property
    def requested(self) -> bool:
        """Whether a stop was requested."""
        self._notify_iteration()
        return self._event.is_set()

    def request(self, error: BaseException | None = None) -> None:
        """Request a stop. `error` is the failure that caused it; the first one is kept."""
        if error is not None and self.error is None:
            self.error = error
        self._event.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait up to `seconds`, or without a limit, for a stop request. Return whether a stop was requested."""
        if self._iteration_callback is None or threading.current_thread() is not threading.main_thread():
            return self._event.wait(seconds)
        end_s = None if seconds is None else time.monotonic() + seconds
        while True:
            self._notify_iteration()
            left_s = ITERATION_S if end_s is None else min(ITERATION_S, end_s - time.monotonic())
            if self._event.wait(max(0.0, left_s)) or (end_s is not None and time.monotonic() >= end_s):
                return self._event.is_set()

    def _notify_iteration(self) -> None:
        if self._iteration_callback is not None and threading.current_thread() is threading.main_thread():
            self._iteration_callback()

    def request_on_signals(self) -> None:
        """Request a stop on SIGTERM and SIGINT. Call this on the main thread."""
        # A handler runs on the main thread, which may hold the event's lock at that moment: `Event.set` would never return.
        # `SimpleQueue.put` is reentrant.
        signals: SimpleQueue[int] = SimpleQueue()

        def handle(number: int, _frame: FrameType | None) -> None:
            signals.put(number)

        def wait_for_signal() -> None:
            signals.get()
            self.request()

        threading.Thread(target=wait_for_signal, name="stop signals", daemon=True).start()
        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)


def exit_on_signals() -> None:
    """Raise SystemExit in the main thread on SIGTERM and SIGINT, so that a command cleans up before it exits.

    The exit code is 128 + the signal number, as in a shell.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def start_thread(name: str, body: Callable[[], None], stop: Stop) -> threading.Thread:
    """Start a named daemon thread. An error in it is logged and stops the whole role. The caller joins the thread."""

    def run() -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - the owner raises it from stop.error
            _log.error("thread_died", thread=name, error=f"{type(error).__name__}: {error}")
            stop.request(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
