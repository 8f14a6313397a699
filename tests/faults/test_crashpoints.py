"""Kill a process at each crash point of the code. The point is hit, and all invariants hold afterwards."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.faults import checks, workloads
from tests.faults.system_under_test import SystemUnderTest, environment_variables, run_system
from tests.faults.workloads import Workload
from tests.integration.server_owner import wait_until

import vidflow

pytestmark = [pytest.mark.long, pytest.mark.fault, pytest.mark.timeout(240)]

PASSES = {
    "relay": 2, "inbox": 2, "orchestrator": 2, "worker.before_frame": 7, "worker.after_frame": 7,
    "inference.in_batch": 7, "inference.after_batch": 7,
}  # fmt: skip
"""The pass at which the process dies, by point or role, so that it dies amid its work. The default is the first pass."""
DEATHS = {"worker": r"worker_ended.*SIGKILL", "inference": r"inference_process_ended.*SIGKILL"}
"""How a runner reports the death of one of its processes, by the first part of the point's name."""
HIT_S = 60.0
MAX_SCENARIOS = 5


def points() -> list[str]:
    """Return every crash point in the source, so that a new one is tested, too."""
    source = Path(vidflow.__file__).parent
    matches = [re.findall(r'crashpoint\("([^"]+)"\)', path.read_text()) for path in source.rglob("*.py")]
    return sorted({point for found in matches for point in found})


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemUnderTest]:
    folder = tmp_path_factory.mktemp("crash-points")
    works = [workloads.slow(folder, 40), workloads.shared(folder, 40)]
    with run_system(folder / "data", works, runners=1, orchestrators=1, relays=1, inference="shared") as started:
        yield started


def restart_with_crash_point(system: SystemUnderTest, role: str, point: str) -> None:
    """Restart the role with the crash point armed. Later restarts do not have it."""
    [before] = system.processes.pids()[role]
    passes = PASSES.get(point) or PASSES.get(role) or 1
    with environment_variables(VIDFLOW_CRASHPOINTS=f"{point}:{passes}"):
        os.kill(before, signal.SIGTERM)
        wait_until(lambda: set(system.processes.pids()[role]) not in ({before}, set()), f"{role} is restarted", HIT_S)


def create_until(system: SystemUnderTest, work: Workload, hit: Callable[[], bool], description: str) -> None:
    """Run scenarios until the point is hit. A single scenario may end after fewer passes than needed."""
    for _ in range(MAX_SCENARIOS):
        uuid = system.create_scenario(work)
        wait_until(lambda: hit() or system.vidflow.scenario(uuid)["state"] == "inactive", description, HIT_S)  # noqa: B023
        if hit():
            return
    raise AssertionError(f"not within {MAX_SCENARIOS} scenarios: {description}")


@pytest.mark.parametrize("point", points())
def test_invariants_1_to_8_hold_after_a_kill_at_each_crash_point(system: SystemUnderTest, point: str) -> None:
    part = point.partition(".")[0]
    role = "runner" if part in DEATHS else part
    work = next(work for work in system.reference_frames if work.is_shared == (part == "inference"))
    system.wait_until_recovered()
    first_line = len(system.log_lines)
    restart_with_crash_point(system, role, point)
    died = DEATHS.get(part, rf"dev: {role} was killed by SIGKILL")
    create_until(
        system, work, lambda: any(re.search(died, line) for line in system.log_lines[first_line:]), f"{point} is hit"
    )
    system.wait_until_recovered()
    checks.check_all(system)


def test_every_crash_point_has_a_literal_name() -> None:
    source = Path(vidflow.__file__).parent
    calls = [re.findall(r"(?<!def )\bcrashpoint\(", path.read_text()) for path in source.rglob("*.py")]
    assert len(points()) == sum(map(len, calls)) > 0
