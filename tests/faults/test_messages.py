"""Every message is delivered twice, the copy late and out of order, while processes die and clients request shutdowns."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from tests.faults import checks, workloads
from tests.faults.duplication import duplicated_messages
from tests.faults.injection import Fault, Victim, inject, wait_for_victim
from tests.faults.system_under_test import SystemUnderTest, run_system

from vidflow.domain.topics import INIT_SCENARIO, RESULTS, RUNNER_EVENTS, commands_topic

pytestmark = [pytest.mark.long, pytest.mark.whole, pytest.mark.fault, pytest.mark.timeout(420)]

SEED = 11
LATE_S = 6.0
"""Longer than the leases of runners and the leader: a copy may arrive after its sender has been declared lost."""
TOPICS = [INIT_SCENARIO, commands_topic("default"), RUNNER_EVENTS, RESULTS]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemUnderTest]:
    folder = tmp_path_factory.mktemp("messages")
    with run_system(folder / "data", [workloads.slow(folder, 160), workloads.sampled(folder, 40)]) as started:
        yield started


@pytest.mark.parametrize("victim", [Victim.RUNNER, Victim.WORKER, Victim.LEADER, Victim.RELAY])
def test_invariants_1_to_8_hold_with_late_and_reordered_copies_of_messages(
    system: SystemUnderTest, victim: Victim
) -> None:
    slow, sampled = system.reference_frames
    chance = random.Random(SEED)  # noqa: S311
    with duplicated_messages(system.processes.kafka, TOPICS, seed=SEED, late_s=LATE_S) as duplicator:
        uuids = [system.create_scenario(work) for work in (slow, slow, sampled, slow)]
        system.wait_until_running(uuids[0])
        inject(Fault.KILL, victim, wait_for_victim(system.processes, victim, chance), 0)
        system.ensure_shut_down(uuids[3])
        system.wait_until_all_inactive()
        system.wait_until_running(system.create_scenario(slow))
        inject(Fault.KILL, victim, wait_for_victim(system.processes, victim, chance), 0)
        system.wait_until_all_inactive()
    assert duplicator.sent > 200
    assert duplicator.copies_reordered > 50
    system.wait_until_recovered()
    assert checks.check_all(system).duplicate_frames > 100
