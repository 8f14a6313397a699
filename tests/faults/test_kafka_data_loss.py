"""Kafka loses data: topics are recreated, the broker loses all its data, or messages are deleted before they are read."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults import checks, workloads
from tests.faults.injection import frozen
from tests.faults.system_under_test import SystemUnderTest, run_system
from tests.faults.workloads import Workload
from tests.integration.delivery import empty_topic, remove_topics
from tests.integration.server_owner import wait_until

from vidflow.domain.topics import INIT_SCENARIO, RESULTS, RUNNER_EVENTS, commands_topic
from vidflow.infra.kafka import topics
from vidflow.infra.kafka.topics import PARTITIONS

pytestmark = [pytest.mark.long, pytest.mark.whole, pytest.mark.fault, pytest.mark.timeout(420)]

COMMANDS = commands_topic("default")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return workloads.slow(tmp_path_factory.mktemp("clips"), 200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the servers' data."""
    return tmp_path_factory.mktemp("wiped")


@pytest.fixture(scope="module")
def system(folder: Path, slow: Workload) -> Iterator[SystemUnderTest]:
    with run_system(folder, [slow]) as started:
        started.history_lost = True
        yield started


def check_recovered(system: SystemUnderTest) -> None:
    system.wait_until_all_inactive()
    system.wait_until_recovered()
    checks.check_all(system)


@pytest.mark.parametrize("removed", [[INIT_SCENARIO], [COMMANDS], [RUNNER_EVENTS], [RESULTS], [*PARTITIONS]], ids=str)
def test_invariant_7_topics_recreated_during_a_run_leave_nothing_stuck(
    system: SystemUnderTest, slow: Workload, removed: list[str]
) -> None:
    running, waiting = system.create_scenario(slow), [system.create_scenario(slow) for _ in range(4)]
    system.wait_until_running(running)
    remove_topics(system.processes.kafka, removed)
    system.create_scenario(slow)
    system.request_shutdown(waiting[0])
    topics.create_topics(system.processes.kafka)
    check_recovered(system)


def test_invariant_7_a_broker_that_lost_all_its_data_leaves_nothing_stuck(
    system: SystemUnderTest, slow: Workload, folder: Path
) -> None:
    """`vidflow dev` restarts the broker empty and creates its topics."""
    running = system.create_scenario(slow)
    system.create_scenario(slow)
    system.wait_until_running(running)
    [broker] = system.processes.pids()["kafka"]
    os.kill(broker, signal.SIGKILL)
    shutil.rmtree(folder / "kafka" / "data")
    system.create_scenario(slow)
    check_recovered(system)


def test_invariant_7_messages_deleted_before_they_are_read_leave_nothing_stuck(
    system: SystemUnderTest, slow: Workload
) -> None:
    """The message that wakes the leader, then a command for a runner, is deleted before it is read."""
    with frozen([pid for kind in ("orchestrator", "runner") for pid in system.processes.pids()[kind]]):
        uuid = system.create_scenario(slow)
        wait_until(lambda: is_outbox_published(system), "the relay has published the message")
        empty_topic(system.processes.kafka, INIT_SCENARIO)
    system.wait_until_running(uuid, frames=0)
    with frozen(system.processes.pids()["runner"]):
        system.create_scenario(slow)
        wait_until(lambda: is_outbox_published(system), "the relay has published the command")
        empty_topic(system.processes.kafka, COMMANDS)
    check_recovered(system)


def is_outbox_published(system: SystemUnderTest) -> bool:
    with system.connect() as connection:
        return not connection.execute("SELECT FROM outbox").fetchall()
