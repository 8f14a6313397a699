"""What the system says of memory: how much a process has, and how much this machine or container allows."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
CGROUPS: Final = Path("/sys/fs/cgroup")
_V1_LIMIT: Final = "memory.limit_in_bytes"
_V2_LIMIT: Final = "memory.max"
_OOM_SCORE: Final = 500
"""Of 1000: the kernel ends a worker before its runner or a server beside it."""


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process, what it shares with others included; 0 if it is gone."""
    if sys.platform != "linux":  # macOS: untested
        answer = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return int(answer.stdout.strip() or 0) * 1024
    try:
        pages = (PROC / str(pid) / "statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def available_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return how much memory this process and its children may have: that of the machine, or a lower limit of a cgroup."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *_cgroup_limits(proc / "self" / "cgroup", cgroups)])


def prefer_as_oom_victim() -> None:
    """Let the kernel end this process first if memory runs out, where the system has such a setting and lets it be changed."""
    with contextlib.suppress(OSError):
        (PROC / "self" / "oom_score_adj").write_text(str(_OOM_SCORE))


def _cgroup_limits(membership: Path, cgroups: Path) -> Iterator[int]:
    """The limits of this process's cgroups and of those around them, in version 1 and 2 alike.

    Inside a container the path may be the host's: then only the folder at the top is there, which is the container's own.
    """
    if not membership.exists():
        return
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, name = cgroups, _V2_LIMIT
        elif "memory" in controllers.split(","):
            top, name = cgroups / "memory", _V1_LIMIT
        else:
            continue
        inner = Path(path.lstrip("/"))
        for folder in (inner, *inner.parents):
            limit = _limit(top / folder / name)
            if limit is not None:
                yield limit


def _limit(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() and int(text) > 0 else None
