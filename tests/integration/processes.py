"""Inspect processes by /proc. A process may end at any moment, which is not an error."""

from __future__ import annotations

from pathlib import Path


def is_alive(pid: int) -> bool:
    """Return whether the process is running. A zombie is not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it ended before or after the file was opened
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def name_of(pid: int) -> str:
    """Return the process's name as in `ps`, empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def children(pid: int) -> set[int]:
    """Return the pids of the process's children."""
    return {child for thread in _threads(pid) for child in _children_of_thread(thread)}


def descendants(pid: int) -> set[int]:
    """Return the pids of the process's children, their children, and so on."""
    direct = children(pid)
    return direct.union(*(descendants(child) for child in direct))


def _threads(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _children_of_thread(thread: Path) -> list[int]:
    try:
        return [int(word) for word in (thread / "children").read_text().split()]
    except OSError:
        return []
