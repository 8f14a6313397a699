"""A process of its own that owns an embedded server, to be killed by a test. Run as a program, it is that process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vidflow.infra.embedded.kafka import EmbeddedKafka
from vidflow.infra.embedded.postgres import EmbeddedPostgres
from vidflow.infra.process.stopping import Stop
from vidflow.settings import read_environment_variable


@contextmanager
def running_owner(server: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that has started `postgres` or `kafka` in the folder, and the server's port."""
    with subprocess.Popen([sys.executable, __file__, server, folder], stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout is not None
            yield owner, int(owner.stdout.readline())
        finally:
            owner.kill()


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 20.0) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, f"not within {limit_s} s: {what}"
        time.sleep(0.02)


def _own(what: str, folder: Path) -> None:
    stop = Stop()
    server: EmbeddedPostgres | EmbeddedKafka
    if what == "postgres":
        server = EmbeddedPostgres(folder, notify=_say, stop=stop)
    else:
        server = EmbeddedKafka(folder, notify=_say, stop=stop, cache=read_environment_variable("VIDFLOW_CACHE_DIR"))
    server.start()
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    stop.wait()


def _say(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")


if __name__ == "__main__":
    _own(sys.argv[1], Path(sys.argv[2]))
