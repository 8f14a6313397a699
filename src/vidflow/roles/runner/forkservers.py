"""The forkservers that make a runner's workers: a light one at once, and in its place one that has torch once that is imported.

torch takes seconds to import. A runner that waited for it would be ready late, and most scenarios need nothing of it; a worker
that does before then imports it itself. Not what a worker is given or what becomes of it: supervision.py.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import pickle
import select
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from types import ModuleType
from typing import Final

from vidflow.domain.errors import SetupError
from vidflow.infra.telemetry.logs import log
from vidflow.roles.worker.start import NoOpProcess, do_nothing

PRELOAD_MODULE: Final = "vidflow.roles.worker.preload"
TORCH_PRELOAD_MODULE: Final = "vidflow.roles.worker.preload_torch"
TORCH_AFTER_S: Final = 3.0
"""How long the runner works before the second one begins: what starts beside the runner needs the processor more."""
TEMPORARY_FOLDER_BYTES: Final = 70
"""The longest path of a temporary folder that leaves room for a socket below it: with its name, it may have 103 bytes (macOS)."""
SHORT_FOLDERS: Final = ("/tmp", "/var/tmp")  # noqa: S108 - multiprocessing makes a folder of its own there
_log = log("runner")


class Forkservers:
    """Makes processes by `context`, from then on by whichever forkserver has imported the most. Used by one thread."""

    def __init__(self) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core a worker; more of them spin on each other
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        _shorten_temporary_folder()
        self.context: ForkServerContext = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([PRELOAD_MODULE])
        with without_main():
            forkserver.ensure_running()  # it begins to import, and `prepare` waits until it has
        self._torch_due_s: float | None = None
        self._torch_server: forkserver.ForkServer | None = None
        self._torch_ready_fd: int | None = None

    def prepare(self) -> None:
        """Waits until the light one has imported everything: until a child that does nothing has been made."""
        child = self.context.Process(target=do_nothing, name="throwaway")
        with without_main():
            child.start()
        child.join()
        child.close()

    def poll(self) -> None:
        """Starts the one with torch when that is due, and lets it take over once it can. Waits for nothing."""
        if self._torch_due_s is None:
            has_torch = importlib.util.find_spec("torch") is not None
            self._torch_due_s = time.monotonic() + TORCH_AFTER_S if has_torch else float("inf")
        elif time.monotonic() >= self._torch_due_s:
            self._torch_due_s = float("inf")
            self._start_torch_server()
        elif (
            self._torch_server is not None
            and self._torch_ready_fd is not None
            and select.select([self._torch_ready_fd], [], [], 0)[0]
        ):
            self._take_over(self._torch_server, self._torch_ready_fd)
            self._torch_server = self._torch_ready_fd = None

    def _start_torch_server(self) -> None:
        """A forkserver makes its first child once it has imported everything: a child that does nothing is asked for."""
        self._torch_server = forkserver.ForkServer()
        self._torch_server.set_forkserver_preload([TORCH_PRELOAD_MODULE])
        with without_main():
            self._torch_ready_fd, task = self._torch_server.connect_to_new_process([])
        with open(task, "wb") as pipe:  # noqa: PTH123 - a file descriptor
            pipe.write(pickle.dumps({}) + pickle.dumps(NoOpProcess()))

    def _take_over(self, server: forkserver.ForkServer, answer: int) -> None:
        try:
            forkserver.read_signed(answer)
        except EOFError:
            _log.warning("torch_not_preloaded", does="workers that need it import it themselves, which takes seconds")
        else:
            forkserver.connect_to_new_process = server.connect_to_new_process
        finally:
            os.close(answer)


def _shorten_temporary_folder() -> None:
    """Use a short temporary folder where the one in use is too long for multiprocessing's sockets.

    Raises SetupError where no short one can be written to.
    """
    size_bytes = len(os.fsencode(tempfile.gettempdir()))
    if size_bytes <= TEMPORARY_FOLDER_BYTES:
        return
    short = next((folder for folder in SHORT_FOLDERS if os.access(folder, os.W_OK | os.X_OK)), None)
    if short is None:
        raise SetupError(
            f"TMPDIR is a path of {size_bytes} bytes; the sockets of the runner's workers need one of at most {TEMPORARY_FOLDER_BYTES}, "
            "and /tmp is not writable. Set TMPDIR to a shorter path"
        )
    tempfile.tempdir = short


@contextmanager
def without_main() -> Iterator[None]:
    """While a process is started: a worker needs nothing of the program that made it, and would else run its main module anew.

    (`vidflow` as installed is such a program: half a second of imports for each worker.)
    """
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program
