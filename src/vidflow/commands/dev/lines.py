"""The output of the roles: printed to the terminal with the role's name, or kept to explain a failure."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import IO, Final

from vidflow.infra.telemetry.logs import safe_line

LineHandler = Callable[[str, str], None]
"""Called with a role's name and a line of its output, from several threads."""

_NAME_WIDTH: Final = 14
_COLOURS: Final = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
_ERROR_PREFIX: Final = "vidflow: "
_LINE_LIMIT_BYTES: Final = 64 * 1024


class PrefixedOutput:
    """Prints lines on standard error after their role's name, which has its own colour on a terminal."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour
        self._colour_by_name: dict[str, int] = {}
        self._lock = threading.Lock()

    def show(self, name: str, line: str) -> None:
        """Print a line of the role `name`. It is escaped, so that it stays one line and cannot control the terminal."""
        line = safe_line(line)
        with self._lock:
            sys.stderr.write(f"{self._prefix(name)} {line}\n")
            sys.stderr.flush()

    def _prefix(self, name: str) -> str:
        text = f"{name:<{_NAME_WIDTH}}│"
        if not self._colour:
            return text
        colour = self._colour_by_name.setdefault(name, _COLOURS[len(self._colour_by_name) % len(_COLOURS)])
        return f"\x1b[{colour}m{text}\x1b[0m"


class LastLines:
    """Keeps the last lines of each role, to explain a failure."""

    def __init__(self, count: int = 20) -> None:
        self._count = count
        self._lines: dict[str, deque[str]] = {}

    def keep(self, name: str, line: str) -> None:
        """Keep a line of the role `name`."""
        self._lines.setdefault(name, deque(maxlen=self._count)).append(line)

    def find_error(self, name: str) -> str:
        """Return the role's last error, which it prints as `vidflow: …`, or else its last lines in one."""
        lines = [line.strip() for line in self._lines.get(name, ())]
        errors = [line.removeprefix(_ERROR_PREFIX) for line in lines if line.startswith(_ERROR_PREFIX)]
        return errors[-1] if errors else " | ".join(line for line in lines[-5:] if line)


def forward_lines(name: str, output: IO[bytes], show: LineHandler) -> None:
    """Pass on a child's output line by line, until the child and all its descendants have closed it."""
    with output:
        for line in iter(lambda: output.readline(_LINE_LIMIT_BYTES), b""):
            show(name, line.decode(errors="replace").rstrip("\r\n"))
