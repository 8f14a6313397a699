"""The memory that a process uses, and the memory that this machine or container allows."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from vidflow.infra.process.cgroups import CGROUPS, PROC, list_limit_files

_V1_LIMIT: Final = "memory.limit_in_bytes"
_V2_LIMIT: Final = "memory.max"
_OOM_SCORE: Final = 500
"""Of 1000. The kernel kills a worker before its runner or other servers on the machine."""


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process, including shared memory; 0 if the process has ended."""
    if sys.platform != "linux":  # macOS: untested
        ps = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return int(ps.stdout.strip() or 0) * 1024
    try:
        pages = (PROC / str(pid) / "statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def available_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return how much memory this process and its children may use: the machine's memory, or a lower cgroup limit."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    files = list_limit_files("memory", _V1_LIMIT, _V2_LIMIT, proc, cgroups)
    return min([physical, *(limit for file in files if (limit := _limit(file)) is not None)])


def return_free_memory() -> None:
    """Give memory that is free inside this process back to the system. Does nothing without glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def prefer_as_oom_victim() -> None:
    """Make the kernel kill this process first if memory runs out. Does nothing if the system does not allow that."""
    with contextlib.suppress(OSError):
        (PROC / "self" / "oom_score_adj").write_text(str(_OOM_SCORE))


def _limit(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() and int(text) > 0 else None
