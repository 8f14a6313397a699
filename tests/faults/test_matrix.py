"""A short selection of the fault matrix: every victim is killed, and most are also frozen or terminated, in some phase.

The whole matrix with all checks after each case: `python -m tests.faults matrix`.
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
"""Longer than the leases of leader, relay and runner, and than a consumer's session."""
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


def test_the_short_matrix_kills_every_victim_and_covers_every_phase() -> None:
    assert {case.victim for case in SHORT_MATRIX if case.fault is KILL} == set(Victim)
    assert {(case.fault, case.phase) for case in SHORT_MATRIX} == {
        (fault, phase) for fault in Fault for phase in ScenarioPhase
    } - {(TERM, STARTING)}


def test_invariants_1_to_8_hold_after_a_series_of_faults(tmp_path: Path) -> None:
    slow, sampled = workloads.slow(tmp_path, 160), workloads.sampled(tmp_path, 40)
    chance = random.Random(SEED)  # noqa: S311
    with run_system(tmp_path / "data", [slow, sampled]) as system:
        for case in SHORT_MATRIX:
            system.create_scenario(sampled)
            inject_with_retries(system, case, slow, chance, FREEZE_S)
        system.wait_until_recovered()
        totals = checks.check_all(system)
        assert totals.scenarios >= 2 * len(SHORT_MATRIX)
        assert totals.duplicate_frames > 0 or totals.losses > 0  # otherwise no fault had an effect
