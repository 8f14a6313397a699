"""vidflow's commands as processes of their own, what they print and how they end; and a port at which nobody serves. For tests."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tests.integration.server_owner import wait_until

LIMIT_S = 60.0
STOP_LIMIT_S = 15.0


def build_environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a command is given: nothing of this process's own VIDFLOW_…, but for where Kafka's jars are kept."""
    kept = {name: os.environ[name] for name in ("HOME", "PYTHONPATH", "VIDFLOW_CACHE_DIR") if name in os.environ}
    return {"PATH": "/usr/bin:/bin", "COLUMNS": "300", "TERM": "dumb", **kept, **(variables or {})}


def run_command(*arguments: str, variables: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command that has run to its end."""
    command = [sys.executable, "-m", "vidflow", *arguments]
    return subprocess.run(
        command, env=build_environment(variables), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


class RunningCommand:
    """A command that runs; what it has printed so far."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.process = process
        self._out = out
        self._err = err

    @property
    def stdout(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._err.read_text(errors="replace")

    def error_lines(self, pattern: str) -> list[str]:
        """The lines of standard error in which the pattern is found."""
        return [line for line in self.stderr.splitlines() if re.search(pattern, line)]

    def wait_for(self, pattern: str, limit_s: float = LIMIT_S) -> None:
        """Waits until it has said something."""
        wait_until(
            lambda: bool(self.error_lines(pattern)) or self.process.poll() is not None,
            f"{self.process.args!r} says {pattern}; it said {self.stderr}",
            limit_s,
        )
        assert self.error_lines(pattern), f"{self.process.args!r} ended with {self.process.poll()}: {self.stderr}"

    def is_running(self) -> bool:
        return self.process.poll() is None

    def stop(self, number: signal.Signals = signal.SIGTERM, limit_s: float = STOP_LIMIT_S) -> int:
        """Its exit code, once it was asked to end."""
        self.process.send_signal(number)
        return self.process.wait(limit_s)


@contextmanager
def running_command(
    folder: Path, *arguments: str, variables: Mapping[str, str] | None = None
) -> Iterator[RunningCommand]:
    """A command that runs until the block ends; then it is killed, if it still does. `folder` takes what it prints."""
    name = f"{arguments[0]}-{len(list(folder.iterdir()))}"
    out, err = folder / f"{name}.out", folder / f"{name}.err"
    command = [sys.executable, "-m", "vidflow", *arguments]
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(command, env=build_environment(variables), stdout=stdout, stderr=stderr)
    with process:
        try:
            yield RunningCommand(process, out, err)
        finally:
            process.kill()


class RefusingServer:
    """A port of the loopback interface that hangs up on everybody, and counts the calls."""

    def __init__(self) -> None:
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._hang_up, name="hangs up")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._listener.close()

    def _hang_up(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            caller.close()


def hides_internals(text: str) -> bool:
    """Whether a program's words hold no traceback and no password of these tests."""
    return "Traceback" not in text and SECRET not in text


SECRET = "s3cret"  # noqa: S105 - to be looked for
CLOSED_DATABASE = f"postgresql://vidflow:{SECRET}@127.0.0.1:1/vidflow"
CLOSED_KAFKA = "127.0.0.1:1"
