"""The leader's hearing on a real Kafka: what it hears does not depend on when anybody looks."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from tests.integration.delivery import recreate_topics
from tests.integration.server_owner import wait_until

from vidflow.domain.lease import PROBE_MAX_AGE_S
from vidflow.domain.messages import INIT_SCENARIO, RUNNER_EVENTS, Report, Start, encode
from vidflow.infra.kafka import admin, clients, offsets
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.process.stopping import Stop
from vidflow.roles.orchestrator.listener import LeaderListener

UUID = "019a0000-0000-7000-8000-000000000001"
LONG_S = 30.0


@pytest.fixture
def hearing(kafka_settings: KafkaSettings) -> Iterator[LeaderListener]:
    recreate_topics(kafka_settings)
    stop = Stop()
    hearing = LeaderListener(kafka_settings, "leader", stop)
    hearing.open()
    wait_until(lambda: hearing.probes_ok_since(time.monotonic()) is not None, "its probes come back")
    yield hearing
    hearing.close()
    assert stop.error is None


def send(settings: KafkaSettings, topic: str, *values: bytes) -> None:
    producer = clients.create_producer(settings, client_id="test")
    clients.fetch_topic_metadata(producer, topic)
    for value in values:
        producer.produce(topic, value, key="r1")
    assert producer.flush(10) == 0


def report(number: int) -> bytes:
    return encode(
        Report(runner="r1", pool="default", number=number, capacity=1, taken=0, draining=False, entries=(), version="1")
    )


def test_probes_are_heard_without_a_break_while_nobody_looks(hearing: LeaderListener) -> None:
    since_s = hearing.probes_ok_since(time.monotonic())
    assert not Stop().wait(3 * PROBE_MAX_AGE_S)  # a tick that takes long
    assert hearing.probes_ok_since(time.monotonic()) == since_s


def test_a_new_scenario_wakes_who_waits(hearing: LeaderListener, kafka_settings: KafkaSettings) -> None:
    while hearing.wait(0):
        pass
    send(kafka_settings, INIT_SCENARIO, encode(Start(UUID)))
    assert hearing.wait(LONG_S)
    assert not hearing.wait(0)


def test_of_a_runners_reports_the_last_is_kept_and_only_news_wakes(
    hearing: LeaderListener, kafka_settings: KafkaSettings
) -> None:
    send(kafka_settings, RUNNER_EVENTS, report(1), report(3), report(2))
    wait_until(lambda: [one.number for one, _ in hearing.take_reports()][-1:] == [3], "the last report is heard")
    while hearing.wait(0):
        pass
    send(kafka_settings, RUNNER_EVENTS, report(4))
    wait_until(lambda: [one.number for one, _ in hearing.take_reports()] == [4], "the next report is heard")
    assert not hearing.wait(0)
    assert hearing.take_reports() == []


def test_what_cannot_be_read_is_passed_by(hearing: LeaderListener, kafka_settings: KafkaSettings) -> None:
    send(kafka_settings, RUNNER_EVENTS, b"\xff", b"{}", report(1))
    wait_until(lambda: [one.number for one, _ in hearing.take_reports()] == [1], "the report behind it is heard")


def test_a_flood_of_reports_keeps_no_probe_from_being_heard(
    hearing: LeaderListener, kafka_settings: KafkaSettings
) -> None:
    since_s = hearing.probes_ok_since(time.monotonic())
    send(kafka_settings, RUNNER_EVENTS, *(report(number) for number in range(1, 20_001)))
    wait_until(lambda: any(one.number == 20_000 for one, _ in hearing.take_reports()), "all of them are heard", LONG_S)
    wait_until(lambda: hearing.probes_ok_since(time.monotonic()) is not None, "the probes are heard")
    assert hearing.probes_ok_since(time.monotonic()) == since_s


def test_the_results_topic_is_known_by_its_id(hearing: LeaderListener, kafka_settings: KafkaSettings) -> None:
    wait_until(lambda: hearing.results_topic is not None, "the topic is known")
    topic = hearing.results_topic
    assert topic is not None
    assert topic.id == offsets.read_topic_id(admin.create_admin(kafka_settings), "results")
    assert topic.partitions == tuple(range(16))
