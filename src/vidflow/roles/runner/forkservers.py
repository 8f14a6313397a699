"""The forkservers that start a runner's workers: one without torch at first, replaced by one with torch once torch is imported.

Importing torch takes seconds and most scenarios do not need it, so the runner does not wait for it. A worker that needs torch
earlier imports it itself. supervision.py starts and watches the workers. multiprocessing offers one forkserver per process, so
the second one uses parts of it that are not public (docs/decisions/0010-two-forkservers.md).
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import pickle
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import AuthenticationError, forkserver
from multiprocessing.context import ForkServerContext
from types import ModuleType
from typing import Final

from vidflow.domain.errors import SetupError
from vidflow.infra.process.sandbox import GUARD_MODULE
from vidflow.infra.telemetry.logs import log
from vidflow.roles.worker.start import NoOpProcess, do_nothing

PRELOAD_MODULE: Final = "vidflow.roles.worker.preload"
TORCH_PRELOAD_MODULE: Final = "vidflow.roles.worker.preload_torch"
TORCH_AFTER_S: Final = 3.0
"""Delay before the second forkserver starts, to leave the CPU to the processes that start together with the runner."""
TEMPORARY_FOLDER_BYTES: Final = 70
"""Longest path of a temporary folder. With the name of a socket appended, a path may have at most 103 bytes (macOS)."""
SHORT_FOLDERS: Final = ("/tmp", "/var/tmp")  # noqa: S108 - multiprocessing creates its own folder there
_log = log("runner")


class Forkservers:
    """Starts processes through `context`, which always uses the forkserver that has imported the most. Not thread-safe."""

    def __init__(self, *, confined: bool = False) -> None:
        """`confined`: start processes for this one only, see forkserver_guard.py."""
        # One core per worker: more threads would spin while they wait for each other.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        _shorten_temporary_folder()
        self.context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._guard = [GUARD_MODULE] if confined else []
        self.context.set_forkserver_preload([*self._guard, PRELOAD_MODULE])
        with without_main():
            forkserver.ensure_running()  # starts the imports; `prepare` waits for them
        self._torch_due_s: float | None = None
        self._torch_server: _StartingForkserver | None = None

    def prepare(self) -> None:
        """Wait until the first forkserver has imported everything, which is when it has started a child."""
        child = self.context.Process(target=do_nothing, name="throwaway")
        with without_main():
            child.start()
        child.join()
        child.close()

    def poll(self) -> None:
        """Start the forkserver with torch when it is due and switch to it when it is ready. Never blocks."""
        if self._torch_due_s is None:
            has_torch = importlib.util.find_spec("torch") is not None
            self._torch_due_s = time.monotonic() + TORCH_AFTER_S if has_torch else float("inf")
        elif time.monotonic() >= self._torch_due_s:
            self._torch_due_s = float("inf")
            self._start_torch_server()
        elif self._torch_server is not None and not self._torch_server.is_starting():
            self._take_over(self._torch_server)
            self._torch_server = None

    def _start_torch_server(self) -> None:
        self._torch_server = _StartingForkserver([*self._guard, TORCH_PRELOAD_MODULE])

    def _take_over(self, starting: _StartingForkserver) -> None:
        if starting.is_ready:
            forkserver.connect_to_new_process = starting.server.connect_to_new_process
        else:
            _log.warning(
                "torch_not_preloaded", does="workers that need torch import it themselves, which takes seconds"
            )


class _StartingForkserver:
    """A second forkserver. A thread waits for its imports, because from Python 3.14 a connection to it blocks until then."""

    def __init__(self, preload_modules: list[str]) -> None:
        self.server = forkserver.ForkServer()
        self.server.set_forkserver_preload(preload_modules)
        with without_main():
            self.server.ensure_running()
        self.is_ready = False
        self._thread = threading.Thread(target=self._wait_for_imports, name="second forkserver", daemon=True)
        self._thread.start()

    def is_starting(self) -> bool:
        """Return whether its imports are still running. Afterwards `is_ready` says whether they succeeded."""
        return self._thread.is_alive()

    def _wait_for_imports(self) -> None:
        """Start a child that does nothing, which starts once everything is imported."""
        try:
            status, task = self.server.connect_to_new_process([])
            with open(status, "rb"):  # noqa: PTH123 - a file descriptor
                with open(task, "wb") as pipe:  # noqa: PTH123
                    pipe.write(pickle.dumps({}) + pickle.dumps(NoOpProcess()))
                forkserver.read_signed(status)
        except (OSError, EOFError, AuthenticationError):
            return  # it has died
        self.is_ready = True


def _shorten_temporary_folder() -> None:
    """Use a short temporary folder if the path of the current one is too long for multiprocessing's sockets.

    Raises SetupError if no short one is writable.
    """
    size_bytes = len(os.fsencode(tempfile.gettempdir()))
    if size_bytes <= TEMPORARY_FOLDER_BYTES:
        return
    short = next((folder for folder in SHORT_FOLDERS if os.access(folder, os.W_OK | os.X_OK)), None)
    if short is None:
        raise SetupError(
            f"TMPDIR is a path of {size_bytes} bytes, but the sockets of the runner's workers need one of at most "
            f"{TEMPORARY_FOLDER_BYTES}, and /tmp is not writable. Set TMPDIR to a shorter path."
        )
    tempfile.tempdir = short


@contextmanager
def without_main() -> Iterator[None]:
    """Hide the main module while a process is started, since multiprocessing would run it again in every child.

    Workers do not need it. With the installed `vidflow` program, it costs each worker half a second of imports.
    """
    main_module = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main_module
