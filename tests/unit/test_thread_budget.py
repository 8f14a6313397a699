"""The threads of a model: how cores are divided among workers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.unit.test_memory import machine

from vidflow.domain.runner import divide_cores
from vidflow.infra.process.cores import available_cores

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("cores", "workers", "threads"), [(8, 1, 8), (8, 2, 4), (8, 3, 2), (8, 8, 1), (8, 100, 1), (2, 0, 2), (1, 1, 1)]
)
def test_cores_are_divided_among_the_workers(cores: int, workers: int, threads: int) -> None:
    assert divide_cores(cores, workers) == threads


@pytest.mark.parametrize(
    ("membership", "limits", "cores"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "100000 100000"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "50000 100000"}, 1),  # half a core
        ("0::/a\n", {"a/cpu.max": "max 100000"}, CORES),
        ("0::/a\n", {"a/cpu.max": "999999999 100000"}, CORES),
        ("0::/of-the-host\n", {"cpu.max": "100000 100000"}, 1),
        (
            "5:cpuacct,cpu:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "100000"},
            1,
        ),
        ("5:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, CORES),
        ("0::/a\n", {"a/cpu.max": ""}, CORES),
        ("0::/a\n", {"a/cpu.max": "100000 0"}, CORES),
    ],
)
def test_cores_are_those_of_the_machine_or_of_a_container(
    tmp_path: Path, membership: str, limits: dict[str, str], cores: int
) -> None:
    assert available_cores(*machine(tmp_path, membership, limits)) == cores


def test_a_machine_without_cgroups_has_all_its_cores(tmp_path: Path) -> None:
    assert available_cores(tmp_path, tmp_path) == CORES
