"""One of three brokers is killed or frozen under load. Nothing is lost or read again, and frames are stored again soon."""

from __future__ import annotations

import datetime
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, LiteralString

import httpx
import psycopg
import pytest
from confluent_kafka import KafkaException
from tests.faults import checks, workloads
from tests.faults.cluster import Cluster, Node, cluster
from tests.faults.progress_watch import watched_progress
from tests.faults.system_under_test import SystemUnderTest, run_system
from tests.integration.delivery import (
    frames,
    insert_progress,
    print_figure,
    read_progress,
    remove_topics,
    running_role,
    send_results,
    stored_frame_numbers,
)
from tests.integration.server_owner import wait_until

from vidflow.domain.topics import RESULTS
from vidflow.infra.kafka import admin, errors, offsets, topics
from vidflow.infra.kafka.topics import PARTITIONS
from vidflow.infra.postgres import inbox_partitions
from vidflow.infra.postgres.connection import Connection, connect
from vidflow.roles import inbox
from vidflow.settings import InboxOptions

pytestmark = [pytest.mark.long, pytest.mark.whole, pytest.mark.fault, pytest.mark.timeout(400)]

ELECTED_S = 120.0
FREEZE_S = 15.0
"""Longer than the brokers' session, so that the others take over the partitions of a frozen broker."""
POLL_S = 0.1


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("kafka")) as started:
        yield started


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> list[workloads.Workload]:
    folder = tmp_path_factory.mktemp("clips")
    return [workloads.slow(folder, 600), workloads.slow(folder, 500)]


@pytest.fixture(scope="module")
def system(
    tmp_path_factory: pytest.TempPathFactory, brokers: Cluster, load: list[workloads.Workload]
) -> Iterator[SystemUnderTest]:
    with run_system(tmp_path_factory.mktemp("vidflow"), load, kafka=brokers.settings) as started:
        yield started


class HealthWatch:
    """Record what the health check reports as missing, and every stored position that goes back."""

    def __init__(self, system: SystemUnderTest) -> None:
        self.missing: Counter[str] = Counter()
        self.went_back: list[tuple[int, int, int]] = []
        self.over = threading.Event()
        self._system = system

    def watch(self) -> None:
        positions: dict[int, int] = {}
        url = f"{self._system.processes.url}/health/system"
        with (
            psycopg.connect(self._system.processes.database_url, autocommit=True) as connection,
            httpx.Client() as http,
        ):
            while not self.over.wait(POLL_S):
                self.missing.update(http.get(url).json().get("missing", []))
                rows = connection.execute("SELECT partition, position FROM inbox_partitions").fetchall()
                self.went_back += [
                    (partition, positions[partition], position)
                    for partition, position in rows
                    if position < positions.get(partition, 0)
                ]
                positions |= dict(rows)


@contextmanager
def watched_health(system: SystemUnderTest) -> Iterator[HealthWatch]:
    watcher = HealthWatch(system)
    thread = threading.Thread(target=watcher.watch, name="health watch")
    thread.start()
    try:
        yield watcher
    finally:
        watcher.over.set()
        thread.join()


def wait_until_elected(brokers: Cluster, gone: Node) -> None:
    """Wait until the other brokers lead all partitions."""
    others = {node.number for node in brokers.nodes} - {gone.number}

    def all_led() -> bool:
        try:
            return all(set(brokers.leaders(topic).values()) <= others for topic in PARTITIONS)
        except KafkaException:
            return False

    wait_until(all_led, "the other brokers lead all partitions", ELECTED_S)


def wait_until_in_sync(brokers: Cluster) -> None:
    wait_until(lambda: all(brokers.is_in_sync(topic) for topic in PARTITIONS), "all replicas are in sync", 60)


def count_repeats(system: SystemUnderTest) -> int:
    with system.connect() as connection:
        [(count,)] = connection.execute("SELECT coalesce(sum(repeats), 0)::int FROM scenario_progress").fetchall()
    return int(count)


def check_broker_fault(
    system: SystemUnderTest, brokers: Cluster, load: list[workloads.Workload], node: Node, fault: Any
) -> None:
    """Inject the fault into one broker while two scenarios are running, and check what clients see."""
    wait_until_in_sync(brokers)
    uuids = [system.create_scenario(work) for work in load]
    for uuid in uuids:
        system.wait_until_running(uuid)
    with watched_health(system) as health, watched_progress(system.processes.database_url) as progress:
        injected_s = time.monotonic()
        with fault(node):
            wait_until_elected(brokers, node)
            elected_s = time.monotonic()
            wait_until(lambda: progress.first_change_after_s(elected_s) is not None, "frames are stored again", 60)
            pause_s = progress.longest_pause_s(injected_s)
            for uuid in uuids:
                assert system.vidflow.wait_until_inactive(uuid)["outcome"] == "completed"
        wait_until_in_sync(brokers)
    print_figure(
        f"{fault.__name__} of broker {node.number}: elected after {elected_s - injected_s:.1f} s, longest pause {pause_s:.1f} s, "
        f"progress {progress.first_change_after_s(elected_s):.1f} s after the election"
    )
    assert health.missing["inbox"] == 0, health.missing
    assert health.went_back == []
    assert count_repeats(system) == 0
    checks.check_all(system)


def test_partitions_without_a_leader_are_skipped_and_nothing_is_read_again(brokers: Cluster, database_url: str) -> None:
    """With one replica a partition has no leader while its broker is down."""
    settings, victim = brokers.settings, brokers.nodes[1]
    topics.create_topics(settings, topics.TopicRequirements(replication_factor=1))
    options = InboxOptions(database_url=database_url, kafka=settings)
    with connect(database_url, name="test") as connection, running_role(inbox.run, options):
        uuids = [insert_progress(connection) for _ in range(24)]
        for uuid in uuids:
            send_results(settings, *frames(uuid, range(50)))
        wait_until(
            lambda: all(len(stored_frame_numbers(connection, uuid)) == 50 for uuid in uuids), "all frames are stored"
        )
        before = read_positions(connection)
        leaderless = {number for number, leader in brokers.leaders(RESULTS).items() if leader == victim.number}
        assert 0 < len(leaderless) < PARTITIONS[RESULTS]
        led = set(range(PARTITIONS[RESULTS])) - leaderless
        brokers.kill(victim)
        client = admin.create_admin(settings)
        wait_until(
            lambda: offsets.read_available_end_offsets(client, RESULTS, before).keys() == led,
            "the partitions of the killed broker have no leader",
            60,
        )
        with pytest.raises(errors.KafkaAway, match="No broker leads partition"):
            offsets.read_end_offsets(client, RESULTS)
        since = inbox_partitions.read_database_time(connection)
        wait_until(
            lambda: marked(connection, "caught_up_at", since) == led,
            "the inbox has caught up with the other partitions",
            60,
        )
        latest = "greatest(caught_up_at, seen_at)"
        wait_until(lambda: marked(connection, latest, since) == set(before), "the inbox holds all partitions", 60)
        assert read_positions(connection) == before
        victim.start()
        for uuid in uuids:
            send_results(settings, *frames(uuid, range(50, 60)))
        wait_until(
            lambda: all(stored_frame_numbers(connection, uuid) == list(range(60)) for uuid in uuids),
            "the inbox stores the rest",
            60,
        )
        assert [read_progress(connection, [uuid])[uuid].repeats for uuid in uuids] == [0] * len(uuids)
    remove_topics(settings)


def read_positions(connection: Connection) -> dict[int, int]:
    return dict(connection.execute("SELECT partition, position FROM inbox_partitions").fetchall())


def marked(connection: Connection, mark: LiteralString, since: datetime.datetime) -> set[int]:
    """Return the partitions whose `mark`, a timestamp expression, is later than `since`."""
    rows = connection.execute(f"SELECT partition FROM inbox_partitions WHERE {mark} > %s", (since,)).fetchall()
    return {partition for (partition,) in rows}


@contextmanager
def killed(node: Node) -> Iterator[None]:
    assert node.process is not None
    node.process.kill()
    node.process.wait()
    yield
    node.start()


def test_the_controller_is_killed(system: SystemUnderTest, brokers: Cluster, load: list[workloads.Workload]) -> None:
    check_broker_fault(system, brokers, load, brokers.controller(), killed)


@pytest.mark.whole
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_broker_is_killed(
    system: SystemUnderTest, brokers: Cluster, load: list[workloads.Workload], number: int
) -> None:
    check_broker_fault(system, brokers, load, brokers.nodes[number - 1], killed)


@pytest.mark.whole
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_broker_is_frozen(
    system: SystemUnderTest, brokers: Cluster, load: list[workloads.Workload], number: int
) -> None:
    check_broker_fault(system, brokers, load, brokers.nodes[number - 1], brokers.frozen)
