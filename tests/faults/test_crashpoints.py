"""kill -9 at each place that the code names a crash point: it is hit, and what must hold holds afterwards."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.faults import checks, workloads
from tests.faults.system_under_test import SystemUnderTest, environment_variables, run_system
from tests.integration.server_owner import wait_until

import vidflow

pytestmark = [pytest.mark.long, pytest.mark.fault, pytest.mark.timeout(240)]

PASSES = {"relay": 2, "inbox": 2, "orchestrator": 2, "worker.before_frame": 7, "worker.after_frame": 7}
"""At which pass it dies, by point or role: in the midst of the work rather than at its first step. Else at the first."""
HIT_S = 60.0
MAX_SCENARIOS = 5


def points() -> list[str]:
    """Every point that the source names: a new one cannot be forgotten."""
    source = Path(vidflow.__file__).parent
    named = [re.findall(r'crashpoint\("([^"]+)"\)', path.read_text()) for path in source.rglob("*.py")]
    return sorted({point for found in named for point in found})


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemUnderTest]:
    folder = tmp_path_factory.mktemp("crash-points")
    with run_system(folder / "data", [workloads.slow(folder, 40)], runners=1, orchestrators=1, relays=1) as now:
        yield now


def restart_with_crash_point(now: SystemUnderTest, role: str, point: str) -> None:
    """Lets the role be started anew with the point armed, and what is started behind it without."""
    [before] = now.processes.pids()[role]
    passes = PASSES.get(point) or PASSES.get(role) or 1
    with environment_variables(VIDFLOW_CRASHPOINTS=f"{point}:{passes}"):
        os.kill(before, signal.SIGTERM)
        wait_until(lambda: set(now.processes.pids()[role]) not in ({before}, set()), f"{role} is started anew", HIT_S)


def create_until(now: SystemUnderTest, hit: Callable[[], bool], what: str) -> None:
    """Lets there be work until it happens: one scenario may be over by fewer passes than were asked for."""
    [work] = now.reference_frames
    for _ in range(MAX_SCENARIOS):
        uuid = now.create_scenario(work)
        wait_until(lambda: hit() or now.vidflow.scenario(uuid)["state"] == "inactive", what, HIT_S)  # noqa: B023
        if hit():
            return
    raise AssertionError(f"not in {MAX_SCENARIOS} scenarios: {what}")


@pytest.mark.parametrize("point", points())
def test_invariants_1_to_8_hold_after_a_kill_at_the_point(system: SystemUnderTest, point: str) -> None:
    role = "runner" if point.startswith("worker.") else point.partition(".")[0]
    system.wait_until_recovered()
    said = len(system.log_lines)
    restart_with_crash_point(system, role, point)
    died = r"worker_ended.*SIGKILL" if point.startswith("worker.") else rf"dev: {role} was killed by SIGKILL"
    create_until(system, lambda: any(re.search(died, line) for line in system.log_lines[said:]), f"{point} is hit")
    system.wait_until_recovered()
    checks.check_all(system)


def test_every_crash_point_is_named_by_a_literal_so_that_the_search_finds_it() -> None:
    source = Path(vidflow.__file__).parent
    calls = [re.findall(r"(?<!def )\bcrashpoint\(", path.read_text()) for path in source.rglob("*.py")]
    assert len(points()) == sum(map(len, calls)) > 0
