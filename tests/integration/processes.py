"""Looks at processes of this machine as the kernel tells of them. One may end at any moment: that is no error here."""

from __future__ import annotations

from pathlib import Path


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and was not waited for does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # gone before it was opened, or between that and the reading
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def children(pid: int) -> set[int]:
    """The processes that this one has started."""
    return {child for thread in _threads(pid) for child in _started_by(thread)}


def descendants(pid: int) -> set[int]:
    """The processes that this one has started, and those that they have."""
    direct = children(pid)
    return direct.union(*(descendants(child) for child in direct))


def _threads(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _started_by(thread: Path) -> list[int]:
    try:
        return [int(word) for word in (thread / "children").read_text().split()]
    except OSError:
        return []
