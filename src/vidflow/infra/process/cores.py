"""The number of cores that this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vidflow.infra.process.cgroups import CGROUPS, PROC, list_limit_files

_V1_QUOTA: Final = "cpu.cfs_quota_us"
_V1_PERIOD: Final = "cpu.cfs_period_us"
_V2_LIMIT: Final = "cpu.max"


def available_cores(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return how many cores this process and its children may use: those it may run on, or a lower cgroup limit, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([cores, *_cgroup_limits(proc, cgroups)])


def _cgroup_limits(proc: Path, cgroups: Path) -> Iterator[int]:
    for file in list_limit_files("cpu", _V1_QUOTA, _V2_LIMIT, proc, cgroups):
        try:
            quota, *period = file.read_text().split()
            if not period:
                period = (file.parent / _V1_PERIOD).read_text().split()
            if quota.isdecimal():  # "max" or -1: no limit
                yield max(1, math.ceil(int(quota) / int(period[0])))
        except (OSError, ValueError, IndexError, ZeroDivisionError):
            continue
