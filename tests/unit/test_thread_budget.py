"""The threads of a model: how cores are divided among workers, and when a model follows its share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.unit.test_memory import machine

from vidflow.domain.runner import divide_cores
from vidflow.infra.models.thread_budget import ThreadBudget, ThreadCount
from vidflow.infra.process.cores import available_cores

CORES = len(os.sched_getaffinity(0))
HOUR_S = 3600.0


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


def test_a_model_follows_its_budget_at_once_if_that_takes_no_time() -> None:
    budget = ThreadBudget(4)
    count = ThreadCount(budget)
    assert (count.current, count.find_due(0.0)) == (4, None)
    budget.threads = 2
    assert count.find_due(0.0) == 2
    count.current = 2
    assert count.find_due(0.0) is None


def test_a_model_whose_change_takes_long_waits_for_a_budget_that_lasts() -> None:
    budget = ThreadBudget(4)
    count = ThreadCount(budget)
    budget.threads = 2
    assert count.find_due(HOUR_S) is None
    budget.threads = 4
    assert count.find_due(0.0) is None
