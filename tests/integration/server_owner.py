"""A separate process that owns an embedded server, for tests that kill it. This file is also that process's program."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vidflow.infra.embedded.kafka import EmbeddedKafka
from vidflow.infra.embedded.postgres import EmbeddedPostgres
from vidflow.infra.embedded.server import EmbeddedServer
from vidflow.infra.process.stopping import Stop
from vidflow.settings import read_environment_variable


@contextmanager
def running_owner(server: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a process that owns a server, `postgres` or `kafka`, in the folder. Yield the process and the server's port."""
    with subprocess.Popen([sys.executable, __file__, server, folder], stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout is not None
            yield owner, int(owner.stdout.readline())
        finally:
            owner.kill()


def wait_until(condition: Callable[[], bool], goal: str, limit_s: float = 20.0) -> None:
    """Wait until the condition holds. `goal` describes it if it does not hold within `limit_s`."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not reached within {limit_s} s: {goal}"
        time.sleep(0.02)


def _run_server(kind: str, folder: Path) -> None:
    stop = Stop()
    server: EmbeddedServer
    if kind == "postgres":
        server = EmbeddedPostgres(folder, notify=_print, stop=stop)
    else:
        server = EmbeddedKafka(folder, notify=_print, stop=stop, cache=read_environment_variable("VIDFLOW_CACHE_DIR"))
    server.start()
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    stop.wait()


def _print(message: str) -> None:
    sys.stderr.write(message + "\n")


if __name__ == "__main__":
    _run_server(sys.argv[1], Path(sys.argv[2]))
