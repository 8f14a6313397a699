"""Kafka without its past: topics deleted and made anew, all of its data gone, messages published that nobody ever reads."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from tests.faults import checks, workloads
from tests.faults.injection import frozen
from tests.faults.system_under_test import SystemUnderTest, run_system
from tests.faults.workloads import Workload
from tests.integration.delivery import remove_topics
from tests.integration.server_owner import wait_until

from vidflow.domain.messages import INIT_SCENARIO, PARTITIONS, RESULTS, RUNNER_EVENTS, commands_topic
from vidflow.infra.kafka import admin, offsets, topics

pytestmark = [pytest.mark.long, pytest.mark.whole, pytest.mark.fault, pytest.mark.timeout(420)]

COMMANDS = commands_topic("default")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return workloads.slow(tmp_path_factory.mktemp("clips"), 200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the servers keep their data."""
    return tmp_path_factory.mktemp("wiped")


@pytest.fixture(scope="module")
def system(folder: Path, slow: Workload) -> Iterator[SystemUnderTest]:
    with run_system(folder, [slow]) as now:
        now.history_lost = True
        yield now


def check_recovered(now: SystemUnderTest) -> None:
    now.wait_until_all_inactive()
    now.wait_until_recovered()
    checks.check_all(now)


@pytest.mark.parametrize("removed", [[INIT_SCENARIO], [COMMANDS], [RUNNER_EVENTS], [RESULTS], [*PARTITIONS]], ids=str)
def test_invariant_7_topics_that_are_made_anew_in_midst_of_a_run_leave_nothing_stuck(
    system: SystemUnderTest, slow: Workload, removed: list[str]
) -> None:
    under_way, waiting = system.create_scenario(slow), [system.create_scenario(slow) for _ in range(4)]
    system.wait_until_running(under_way)
    remove_topics(system.processes.kafka, removed)
    system.create_scenario(slow)
    system.request_shutdown(waiting[0])
    topics.create_topics(system.processes.kafka)
    check_recovered(system)


def test_invariant_7_a_broker_that_lost_all_its_data_leaves_nothing_stuck(
    system: SystemUnderTest, slow: Workload, folder: Path
) -> None:
    """`vidflow dev` starts it again, empty, and makes its topics."""
    under_way = system.create_scenario(slow)
    system.create_scenario(slow)
    system.wait_until_running(under_way)
    [broker] = system.processes.pids()["kafka"]
    os.kill(broker, signal.SIGKILL)
    shutil.rmtree(folder / "kafka" / "data")
    system.create_scenario(slow)
    check_recovered(system)


def test_invariant_7_messages_that_were_published_and_never_read_leave_nothing_stuck(
    system: SystemUnderTest, slow: Workload
) -> None:
    """What wakes the leader, and what a runner is told, is gone before they could hear of it."""
    with frozen([pid for kind in ("orchestrator", "runner") for pid in system.processes.pids()[kind]]):
        born = system.create_scenario(slow)
        wait_until(lambda: is_outbox_published(system), "the relay has published it")
        empty_topic(system, INIT_SCENARIO)
    system.wait_until_running(born, frames=0)
    with frozen(system.processes.pids()["runner"]):
        system.create_scenario(slow)
        wait_until(lambda: is_outbox_published(system), "the relay has published what it was told")
        empty_topic(system, COMMANDS)
    check_recovered(system)


def is_outbox_published(now: SystemUnderTest) -> bool:
    with now.connect() as tables:
        return not tables.execute("SELECT FROM outbox WHERE published_at IS NULL").fetchall()


def empty_topic(now: SystemUnderTest, topic: str) -> None:
    """Deletes what the topic holds now, as its retention would."""
    client = admin.create_admin(now.processes.kafka)
    ends = offsets.read_end_offsets(client, topic)
    for answer in client.delete_records([TopicPartition(topic, number, end) for number, end in ends.items()]).values():
        answer.result()
