"""Every message comes twice, the second time late and out of order, while processes die and clients ask for ends."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from tests.faults import checks, works
from tests.faults.copies import copied
from tests.faults.scene import Scene, scene
from tests.faults.strikes import Fault, Victim, aim, strike

from vidflow.domain.messages import INIT_SCENARIO, RESULTS, RUNNER_EVENTS, commands_topic

pytestmark = [pytest.mark.long, pytest.mark.whole, pytest.mark.fault, pytest.mark.timeout(420)]

SEED = 11
LATE_S = 6.0
"""Past a runner's lease and the leader's: the copy of a word comes when its speaker is given up."""
TOPICS = [INIT_SCENARIO, commands_topic("default"), RUNNER_EVENTS, RESULTS]


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("messages")
    with scene(folder / "data", [works.slow(folder, 160), works.sampled(folder, 40)]) as now:
        yield now


@pytest.mark.parametrize("victim", [Victim.RUNNER, Victim.WORKER, Victim.LEADER, Victim.RELAY])
def test_invariants_1_to_8_hold_where_messages_come_again_late_and_out_of_order(now: Scene, victim: Victim) -> None:
    slow, sampled = now.undisturbed
    chance = random.Random(SEED)  # noqa: S311
    with copied(now.parts.kafka, TOPICS, seed=SEED, late_s=LATE_S) as copies:
        uuids = [now.begin(work) for work in (slow, slow, sampled, slow)]
        now.under_way(uuids[0])
        strike(Fault.KILL, victim, aim(now.parts, victim, chance), 0)
        now.until_shut_down(uuids[3])
        now.until_settled()
        now.under_way(now.begin(slow))
        strike(Fault.KILL, victim, aim(now.parts, victim, chance), 0)
        now.until_settled()
    assert copies.sent > 200
    assert copies.overtaken > 50
    now.until_whole()
    assert checks.all_hold(now).absorbed > 100
