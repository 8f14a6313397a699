"""Where the lines go that the roles write: to the terminal with the role's name before them, or kept for when something fails."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import IO, Final

from vidflow.infra.telemetry.logs import safe_line

LineHandler = Callable[[str, str], None]
"""Takes a line of a role: its name and the line. Called from several threads."""

_NAME_WIDTH: Final = 14
_COLOURS: Final = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
_ERROR_PREFIX: Final = "vidflow: "
_LINE_LIMIT_BYTES: Final = 64 * 1024


class PrefixedOutput:
    """Shows each line on standard error behind its role's name, in a colour of its own on a terminal."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour
        self._colour_by_name: dict[str, int] = {}
        self._lock = threading.Lock()

    def show(self, name: str, line: str) -> None:
        """Shows a line of the role `name`: whatever it holds, it is one line, and drives no terminal."""
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
    """Keeps the last lines of each role, for the case that something fails."""

    def __init__(self, count: int = 20) -> None:
        self._count = count
        self._lines: dict[str, deque[str]] = {}

    def keep(self, name: str, line: str) -> None:
        """Keeps a line of the role `name`."""
        self._lines.setdefault(name, deque(maxlen=self._count)).append(line)

    def find_error(self, name: str) -> str:
        """What the role said to its end: its own error, `vidflow: …`, or else its last lines in one."""
        lines = [line.strip() for line in self._lines.get(name, ())]
        said = [line.removeprefix(_ERROR_PREFIX) for line in lines if line.startswith(_ERROR_PREFIX)]
        return said[-1] if said else " | ".join(line for line in lines[-5:] if line)


def forward_lines(name: str, output: IO[bytes], show: LineHandler) -> None:
    """Hands on what a child writes, line by line, until it and all that it started have closed their output."""
    with output:
        for line in iter(lambda: output.readline(_LINE_LIMIT_BYTES), b""):
            show(name, line.decode(errors="replace").rstrip("\r\n"))
