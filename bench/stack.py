"""A `vidflow dev` for benchmarks, with its processes and its output over time. Its data are deleted at the end. Linux only."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # for the process helpers of the tests

from tests.integration.processes import children, descendants

from vidflow.commands.dev.stack import ENVIRONMENT
from vidflow.infra.kafka.settings import KafkaSettings

READY_LIMIT_S = 120.0
SERVERS = ("postgres", "kafka")
_TICKS = os.sysconf("SC_CLK_TCK")


class DevProcess:
    """A started `vidflow dev`. `lines` is its output: seconds since the start, process, text."""

    def __init__(self, folder: Path, options: tuple[str, ...]) -> None:
        self.folder = folder
        self.lines: list[tuple[float, str, str]] = []
        self.ready_s = 0.0
        self.url = ""
        self._ready = threading.Event()
        self._began_s = time.perf_counter()
        command = [sys.executable, "-m", "vidflow", "dev", "--port", "0", "--data-dir", str(folder), *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, name="dev output reader")
        self._reader.start()

    @property
    def kafka(self) -> KafkaSettings:
        """The settings of its broker."""
        return KafkaSettings(f"127.0.0.1:{Path(self.folder, 'kafka', 'ports').read_text().split()[0]}")

    @property
    def database_url(self) -> str:
        """The URL of its database, with the password."""
        lines = Path(self.folder, ENVIRONMENT).read_text().splitlines()
        return next(
            shlex.split(line)[0].partition("=")[2] for line in lines if line.startswith("VIDFLOW_DATABASE_URL=")
        )

    def wait_until_ready(self) -> None:
        """Wait until it reports that it is ready."""
        if not self._ready.wait(READY_LIMIT_S) or not self.url:
            output = "\n".join(f"{name}: {line}" for _, name, line in self.lines[-20:])
            raise SystemExit(f"vidflow dev did not become ready. Its last output:\n{output}")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(READY_LIMIT_S)
        self._reader.join()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for text in self.process.stderr:
            seconds = time.perf_counter() - self._began_s
            name, _, line = text.rstrip().partition("│ ")
            self.lines.append((seconds, name.strip(), line))
            if line.startswith("ready after"):
                self.url = line.rsplit(" ", 1)[-1]
                self.ready_s = seconds
                self._ready.set()
        self._ready.set()


@contextmanager
def stack(*options: str) -> Iterator[DevProcess]:
    """Start `vidflow dev` with these options and wait until it is ready."""
    with tempfile.TemporaryDirectory(prefix="vidflow-bench-", ignore_cleanup_errors=True) as folder:
        running = DevProcess(Path(folder), options)
        try:
            running.wait_until_ready()
            yield running
        finally:
            running.stop()


def processes_by_role(dev: int) -> dict[str, list[int]]:
    """Return the process ids of a `vidflow dev` by role."""
    pids: dict[str, list[int]] = {"dev": [dev]}
    for pid in children(dev):
        name, subprocesses = _name(pid), sorted(descendants(pid))
        is_server = name in SERVERS
        pids.setdefault(name, []).extend([pid, *subprocesses] if is_server else [pid])
        if subprocesses and not is_server:
            pids[f"{name}'s forkserver"] = subprocesses
    return pids


def workers_of(runner: int) -> list[int]:
    """Return the process ids of a runner's workers and inference processes, which are the children of its forkservers."""
    return [worker for forkserver in children(runner) for worker in children(forkserver)]


def cpu_s(pid: int, *, with_ended: bool = False) -> float:
    """Return the CPU seconds of a process, user and system. `with_ended` adds those of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11 : 15 if with_ended else 13])) / _TICKS


def _name(pid: int) -> str:
    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    if "vidflow" in command:
        return command[command.index("vidflow") + 1]
    return "kafka" if "kafka.Kafka" in command else Path(command[0]).name
