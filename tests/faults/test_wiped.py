"""Kafka without its past: topics deleted and made anew, all of its data gone, messages published that nobody ever reads."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from tests.faults import checks, works
from tests.faults.scene import Scene, scene
from tests.faults.strikes import frozen
from tests.faults.works import Work
from tests.integration.delivery import remove_topics
from tests.integration.embedded import wait_until

from vidflow.domain.messages import INIT_SCENARIO, PARTITIONS, RESULTS, RUNNER_EVENTS, commands_topic
from vidflow.infra.kafka import admin, offsets, topics

pytestmark = [pytest.mark.long, pytest.mark.whole, pytest.mark.fault, pytest.mark.timeout(420)]

COMMANDS = commands_topic("default")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return works.slow(tmp_path_factory.mktemp("clips"), 200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the servers keep their data."""
    return tmp_path_factory.mktemp("wiped")


@pytest.fixture(scope="module")
def now(folder: Path, slow: Work) -> Iterator[Scene]:
    with scene(folder, [slow]) as now:
        now.past_is_lost = True
        yield now


def holds(now: Scene) -> None:
    now.until_settled()
    now.until_whole()
    checks.all_hold(now)


@pytest.mark.parametrize("removed", [[INIT_SCENARIO], [COMMANDS], [RUNNER_EVENTS], [RESULTS], [*PARTITIONS]], ids=str)
def test_invariant_7_topics_that_are_made_anew_in_midst_of_a_run_leave_nothing_stuck(
    now: Scene, slow: Work, removed: list[str]
) -> None:
    under_way, waiting = now.begin(slow), [now.begin(slow) for _ in range(4)]
    now.under_way(under_way)
    remove_topics(now.parts.kafka, removed)
    now.begin(slow)
    now.shut_down(waiting[0])
    topics.create_topics(now.parts.kafka)
    holds(now)


def test_invariant_7_a_broker_that_lost_all_its_data_leaves_nothing_stuck(now: Scene, slow: Work, folder: Path) -> None:
    """`vidflow dev` starts it again, empty, and makes its topics."""
    under_way = now.begin(slow)
    now.begin(slow)
    now.under_way(under_way)
    [broker] = now.parts.pids()["kafka"]
    os.kill(broker, signal.SIGKILL)
    shutil.rmtree(folder / "kafka" / "data")
    now.begin(slow)
    holds(now)


def test_invariant_7_messages_that_were_published_and_never_read_leave_nothing_stuck(now: Scene, slow: Work) -> None:
    """What wakes the leader, and what a runner is told, is gone before they could hear of it."""
    with frozen([pid for kind in ("orchestrator", "runner") for pid in now.parts.pids()[kind]]):
        born = now.begin(slow)
        wait_until(lambda: all_published(now), "the relay has published it")
        empty(now, INIT_SCENARIO)
    now.under_way(born, frames=0)
    with frozen(now.parts.pids()["runner"]):
        now.begin(slow)
        wait_until(lambda: all_published(now), "the relay has published what it was told")
        empty(now, COMMANDS)
    holds(now)


def all_published(now: Scene) -> bool:
    with now.tables() as tables:
        return not tables.execute("SELECT FROM outbox WHERE published_at IS NULL").fetchall()


def empty(now: Scene, topic: str) -> None:
    """Deletes what the topic holds now, as its retention would."""
    client = admin.client(now.parts.kafka)
    ends = offsets.end_offsets(client, topic)
    for answer in client.delete_records([TopicPartition(topic, number, end) for number, end in ends.items()]).values():
        answer.result()
