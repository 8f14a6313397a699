"""How a role learns that it is to stop: one event that loops wait on, set by SIGTERM, by SIGINT or by a thread that died."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

from vidflow.infra.telemetry.logs import log

ITERATION_S: Final = 1.0

_log = log("stopping")


class Stop:
    """Asked for once, seen by all: `stop.wait(seconds)` is the only sleep of a loop."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._iteration_callback: Callable[[], None] | None = None
        self.error: BaseException | None = None

    def on_iteration(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever the main thread asks whether to stop, and each second while it waits: its loop turns."""
        self._iteration_callback = callback

    @property
    def requested(self) -> bool:
        """Whether the role is to stop."""
        self._notify_iteration()
        return self._event.is_set()

    def request(self, error: BaseException | None = None) -> None:
        """Asks all loops to end; `error` is why, where something died."""
        if error is not None and self.error is None:
            self.error = error
        self._event.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until a stop is requested, for at most `seconds`; whether it is."""
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
        """Lets SIGTERM and SIGINT ask for the stop. For the main thread."""

        def handle(_number: int, _frame: FrameType | None) -> None:
            self.request()

        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)


def exit_on_signals() -> None:
    """For a command that ends by itself: SIGTERM and SIGINT raise SystemExit in the main thread, with 128 + their number as
    a shell has it, so that what was begun is cleaned up on the way out."""

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)


def start_thread(name: str, body: Callable[[], None], stop: Stop) -> threading.Thread:
    """Starts a named thread whose death by an error stops the role: nothing goes on half alive. The caller joins it."""

    def run() -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - told to the owner, who raises it
            _log.error("thread_died", thread=name, error=f"{type(error).__name__}: {error}")
            stop.request(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
