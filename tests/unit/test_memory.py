"""The default memory cap of a worker, from the machine's memory, a container's limit and the slots."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vidflow.commands.dev import Stack
from vidflow.domain.runner import default_memory_cap
from vidflow.infra.process.memory import available_bytes, resident_bytes
from vidflow.infra.process.stopping import Stop
from vidflow.settings import DevOptions

GIB = 1024**3
PHYSICAL = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("available", "slots", "cap"),
    [
        (10 * GIB, 1, 8 * GIB),
        (10 * GIB, 2, 4 * GIB),
        (100 * GIB, 8, 10 * GIB),
        (10 * GIB, 100, 2 * GIB),  # several workers may exhaust the machine, one may not
        (GIB, 1, int(0.8 * GIB)),
        (GIB, 4, int(0.8 * GIB)),
    ],
)
def test_the_cap_is_a_share_of_the_machine_but_at_least_what_a_worker_needs(
    available: int, slots: int, cap: int
) -> None:
    assert default_memory_cap(available, slots) == cap


def machine(folder: Path, membership: str, limits: dict[str, str]) -> tuple[Path, Path]:
    """Write the files in which the kernel describes cgroups."""
    proc, cgroups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(membership)
    for name, text in limits.items():
        (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroups / name).write_text(text)
    return proc, cgroups


@pytest.mark.parametrize(
    ("membership", "limits", "available"),
    [
        ("0::/\n", {"memory.max": "1000000\n"}, 1_000_000),
        ("0::/a/b\n", {"a/memory.max": "1000000\n", "a/b/memory.max": "max\n"}, 1_000_000),
        ("0::/a/b\n", {"a/memory.max": "3000000\n", "a/b/memory.max": "2000000\n"}, 2_000_000),
        ("0::/\n", {"memory.max": "max\n"}, PHYSICAL),
        ("0::/\n", {}, PHYSICAL),
        ("4:memory:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": "5000000\n"}, 5_000_000),
        ("4:cpu,memory:/of/the/host\n", {"memory/memory.limit_in_bytes": "5000000\n"}, 5_000_000),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, PHYSICAL),
        ("4:pids:/\n", {"memory.max": "1\n"}, PHYSICAL),
        ("0::/a:b\n", {"a:b/memory.max": "1000000\n"}, 1_000_000),
    ],
)
def test_a_lower_limit_of_a_container_applies(
    tmp_path: Path, membership: str, limits: dict[str, str], available: int
) -> None:
    assert available_bytes(*machine(tmp_path, membership, limits)) == available


def test_this_machine_has_available_memory() -> None:
    assert resident_bytes(os.getpid()) < available_bytes() <= PHYSICAL
    assert resident_bytes(2**22 + 1) == 0


def test_without_cgroup_files_the_physical_memory_applies(tmp_path: Path) -> None:
    assert available_bytes(tmp_path, tmp_path) == PHYSICAL


def test_the_runners_of_one_stack_share_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def cap_of(runners: int) -> str | None:
        options = DevOptions(max_workers=3, runners=runners)
        return Stack(options, print, print, Stop())._variables("runner").get("VIDFLOW_WORKER_MEMORY_BYTES")

    monkeypatch.delenv("VIDFLOW_WORKER_MEMORY_BYTES", raising=False)
    assert cap_of(1) is None, "a single runner chooses its own cap"
    assert cap_of(2) == str(default_memory_cap(available_bytes(), 6))
    monkeypatch.setenv("VIDFLOW_WORKER_MEMORY_BYTES", "5")
    assert cap_of(2) is None, "the operator's cap is kept"
