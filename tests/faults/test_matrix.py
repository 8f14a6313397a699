"""A short set of the fault matrix: each victim killed, most of them frozen and ended too, at one moment or another of a scenario.

The whole matrix, with all checks after each case: `python -m tests.faults matrix`.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.faults import checks, workloads
from tests.faults.injection import Fault, Victim
from tests.faults.matrix import MatrixCase, ScenarioPhase, inject_with_retries
from tests.faults.system_under_test import run_system

pytestmark = [pytest.mark.long, pytest.mark.fault, pytest.mark.timeout(420)]

SEED = 5
FREEZE_S = 5.0
"""Past the leases of leader, relay and runner, and past a consumer's session."""
KILL, FREEZE, TERM = Fault.KILL, Fault.FREEZE, Fault.TERM
STARTING, RUNNING, SHUTTING_DOWN = ScenarioPhase.STARTING, ScenarioPhase.RUNNING, ScenarioPhase.SHUTTING_DOWN
SHORT_MATRIX = [
    MatrixCase(KILL, Victim.API, STARTING),
    MatrixCase(KILL, Victim.RELAY, RUNNING),
    MatrixCase(FREEZE, Victim.LEADER, STARTING),
    MatrixCase(KILL, Victim.WORKER, STARTING),
    MatrixCase(TERM, Victim.RUNNER, RUNNING),
    MatrixCase(KILL, Victim.LEADER, SHUTTING_DOWN),
    MatrixCase(KILL, Victim.INBOX, RUNNING),
    MatrixCase(FREEZE, Victim.RUNNER, RUNNING),
    MatrixCase(TERM, Victim.LEADER, RUNNING),
    MatrixCase(KILL, Victim.RUNNER, SHUTTING_DOWN),
    MatrixCase(KILL, Victim.STANDBY, RUNNING),
    MatrixCase(FREEZE, Victim.INBOX, SHUTTING_DOWN),
    MatrixCase(KILL, Victim.POSTGRES, RUNNING),
    MatrixCase(TERM, Victim.INBOX, RUNNING),
    MatrixCase(KILL, Victim.MACHINE, STARTING),
    MatrixCase(FREEZE, Victim.KAFKA, RUNNING),
    MatrixCase(TERM, Victim.RELAY, SHUTTING_DOWN),
    MatrixCase(FREEZE, Victim.POSTGRES, STARTING),
    MatrixCase(KILL, Victim.KAFKA, SHUTTING_DOWN),
]


def test_the_short_set_kills_every_victim_and_strikes_at_every_moment() -> None:
    assert {case.victim for case in SHORT_MATRIX if case.fault is KILL} == set(Victim)
    assert {(case.fault, case.phase) for case in SHORT_MATRIX} == {
        (fault, when) for fault in Fault for when in ScenarioPhase
    } - {(TERM, STARTING)}


def test_invariants_1_to_8_hold_after_one_fault_upon_the_other(tmp_path: Path) -> None:
    slow, sampled = workloads.slow(tmp_path, 160), workloads.sampled(tmp_path, 40)
    chance = random.Random(SEED)  # noqa: S311
    with run_system(tmp_path / "data", [slow, sampled]) as now:
        for case in SHORT_MATRIX:
            now.create_scenario(sampled)
            inject_with_retries(now, case, slow, chance, FREEZE_S)
        now.wait_until_recovered()
        sums = checks.check_all(now)
        assert sums.scenarios >= 2 * len(SHORT_MATRIX)
        assert sums.duplicate_frames > 0 or sums.losses > 0  # else no fault was felt
