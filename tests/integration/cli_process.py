"""Test support: vidflow's commands as processes, and servers that are not available."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import msgspec
from tests.integration.many_commands import Command
from tests.integration.server_owner import wait_until

ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0
STOP_LIMIT_S = 15.0


def build_environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return a command's environment: none of this process's VIDFLOW_… variables except the cache of Kafka's jars."""
    kept = {name: os.environ[name] for name in ("HOME", "PYTHONPATH", "VIDFLOW_CACHE_DIR") if name in os.environ}
    return {"PATH": "/usr/bin:/bin", "COLUMNS": "300", "TERM": "dumb", **kept, **(variables or {})}


def run_command(*arguments: str, variables: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "vidflow", *arguments]
    return subprocess.run(
        command, env=build_environment(variables), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def run_commands(folder: Path, commands: Sequence[Command]) -> list[subprocess.CompletedProcess[str]]:
    """Run several commands to their ends, faster than one by one. `folder` is empty and gets their output."""
    codes = subprocess.run(
        [sys.executable, "-m", "tests.integration.many_commands", str(folder)],
        input=msgspec.json.encode(dict(enumerate(commands))),
        stdout=subprocess.PIPE,
        timeout=LIMIT_S,
        check=True,
        cwd=ROOT,
    ).stdout
    return [
        subprocess.CompletedProcess(
            commands[number].arguments,
            code,
            (folder / f"{number}.out").read_text(),
            (folder / f"{number}.err").read_text(),
        )
        for number, code in sorted(msgspec.json.decode(codes, type=dict[int, int]).items())
    ]


class RunningCommand:
    """A running command and its output so far."""

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
        """Return the lines of standard error that contain the pattern."""
        return [line for line in self.stderr.splitlines() if re.search(pattern, line)]

    def wait_for(self, pattern: str, limit_s: float = LIMIT_S) -> None:
        """Wait until a line of standard error contains the pattern."""
        wait_until(
            lambda: bool(self.error_lines(pattern)) or self.process.poll() is not None,
            f"{self.process.args!r} prints {pattern}; it printed {self.stderr}",
            limit_s,
        )
        assert self.error_lines(pattern), f"{self.process.args!r} ended with {self.process.poll()}: {self.stderr}"

    def is_running(self) -> bool:
        return self.process.poll() is None

    def stop(self, stop_signal: signal.Signals = signal.SIGTERM, limit_s: float = STOP_LIMIT_S) -> int:
        """Ask the command to end, and return its exit code."""
        self.process.send_signal(stop_signal)
        return self.process.wait(limit_s)


@contextmanager
def running_command(
    folder: Path, *arguments: str, variables: Mapping[str, str] | None = None
) -> Iterator[RunningCommand]:
    """Start a command, and kill it after the block if it still runs. Its output is written to `folder`."""
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
    """A loopback port that closes every connection at once and counts them."""

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
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()


def hides_internals(text: str) -> bool:
    """Return whether the output has no traceback and no password of these tests."""
    return "Traceback" not in text and SECRET not in text


SECRET = "s3cret"  # noqa: S105 - searched for in output
CLOSED_DATABASE = f"postgresql://vidflow:{SECRET}@127.0.0.1:1/vidflow"
CLOSED_KAFKA = "127.0.0.1:1"
