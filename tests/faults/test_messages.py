"""Every message comes twice, the second time late and out of order, while processes die and clients ask for ends."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from tests.faults import checks, workloads
from tests.faults.duplication import duplicated_messages
from tests.faults.injection import Fault, Victim, inject, wait_for_victim
from tests.faults.system_under_test import SystemUnderTest, run_system

from vidflow.domain.messages import INIT_SCENARIO, RESULTS, RUNNER_EVENTS, commands_topic

pytestmark = [pytest.mark.long, pytest.mark.whole, pytest.mark.fault, pytest.mark.timeout(420)]

SEED = 11
LATE_S = 6.0
"""Past a runner's lease and the leader's: the copy of a word comes when its speaker is given up."""
TOPICS = [INIT_SCENARIO, commands_topic("default"), RUNNER_EVENTS, RESULTS]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemUnderTest]:
    folder = tmp_path_factory.mktemp("messages")
    with run_system(folder / "data", [workloads.slow(folder, 160), workloads.sampled(folder, 40)]) as now:
        yield now


@pytest.mark.parametrize("victim", [Victim.RUNNER, Victim.WORKER, Victim.LEADER, Victim.RELAY])
def test_invariants_1_to_8_hold_where_messages_come_again_late_and_out_of_order(
    system: SystemUnderTest, victim: Victim
) -> None:
    slow, sampled = system.reference_frames
    chance = random.Random(SEED)  # noqa: S311
    with duplicated_messages(system.processes.kafka, TOPICS, seed=SEED, late_s=LATE_S) as copies:
        uuids = [system.create_scenario(work) for work in (slow, slow, sampled, slow)]
        system.wait_until_running(uuids[0])
        inject(Fault.KILL, victim, wait_for_victim(system.processes, victim, chance), 0)
        system.ensure_shut_down(uuids[3])
        system.wait_until_all_inactive()
        system.wait_until_running(system.create_scenario(slow))
        inject(Fault.KILL, victim, wait_for_victim(system.processes, victim, chance), 0)
        system.wait_until_all_inactive()
    assert copies.sent > 200
    assert copies.copies_reordered > 50
    system.wait_until_recovered()
    assert checks.check_all(system).duplicate_frames > 100
