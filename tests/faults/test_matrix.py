"""A short set of the fault matrix: each victim killed, most of them frozen and ended too, at one moment or another of a scenario.

The whole matrix, with all checks after each case: `python -m tests.faults matrix`.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.faults import checks, works
from tests.faults.matrix import Case, When, struck
from tests.faults.scene import scene
from tests.faults.strikes import Fault, Victim

pytestmark = [pytest.mark.long, pytest.mark.fault, pytest.mark.timeout(420)]

SEED = 5
FREEZE_S = 5.0
"""Past the leases of leader, relay and runner, and past a consumer's session."""
KILL, FREEZE, TERM = Fault.KILL, Fault.FREEZE, Fault.TERM
STARTING, RUNNING, SHUTTING_DOWN = When.STARTING, When.RUNNING, When.SHUTTING_DOWN
SHORT = [
    Case(KILL, Victim.API, STARTING),
    Case(KILL, Victim.RELAY, RUNNING),
    Case(FREEZE, Victim.LEADER, STARTING),
    Case(KILL, Victim.WORKER, STARTING),
    Case(TERM, Victim.RUNNER, RUNNING),
    Case(KILL, Victim.LEADER, SHUTTING_DOWN),
    Case(KILL, Victim.INBOX, RUNNING),
    Case(FREEZE, Victim.RUNNER, RUNNING),
    Case(TERM, Victim.LEADER, RUNNING),
    Case(KILL, Victim.RUNNER, SHUTTING_DOWN),
    Case(KILL, Victim.STANDBY, RUNNING),
    Case(FREEZE, Victim.INBOX, SHUTTING_DOWN),
    Case(KILL, Victim.POSTGRES, RUNNING),
    Case(TERM, Victim.INBOX, RUNNING),
    Case(KILL, Victim.MACHINE, STARTING),
    Case(FREEZE, Victim.KAFKA, RUNNING),
    Case(TERM, Victim.RELAY, SHUTTING_DOWN),
    Case(FREEZE, Victim.POSTGRES, STARTING),
    Case(KILL, Victim.KAFKA, SHUTTING_DOWN),
]


def test_the_short_set_kills_every_victim_and_strikes_at_every_moment() -> None:
    assert {case.victim for case in SHORT if case.fault is KILL} == set(Victim)
    assert {(case.fault, case.when) for case in SHORT} == {(fault, when) for fault in Fault for when in When} - {
        (TERM, STARTING)
    }


def test_invariants_1_to_8_hold_after_one_fault_upon_the_other(tmp_path: Path) -> None:
    slow, sampled = works.slow(tmp_path, 160), works.sampled(tmp_path, 40)
    chance = random.Random(SEED)  # noqa: S311
    with scene(tmp_path / "data", [slow, sampled]) as now:
        for case in SHORT:
            now.begin(sampled)
            struck(now, case, slow, chance, FREEZE_S)
        now.until_whole()
        sums = checks.all_hold(now)
        assert sums.scenarios >= 2 * len(SHORT)
        assert sums.absorbed > 0 or sums.losses > 0  # else no fault was felt
