"""The leader's listener with a real Kafka. What it receives does not depend on when the leader reads it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.integration.delivery import recreate_topics
from tests.integration.server_owner import wait_until

from vidflow.domain.lease import PROBE_MAX_AGE_S
from vidflow.domain.messages import Report, Start, encode
from vidflow.domain.topics import INIT_SCENARIO, RUNNER_EVENTS
from vidflow.infra.kafka import admin, clients, offsets
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.process.stopping import Stop
from vidflow.roles.orchestrator.listener import LeaderListener

UUID = "019a0000-0000-7000-8000-000000000001"
LONG_S = 30.0


@pytest.fixture
def listener(kafka_settings: KafkaSettings) -> Iterator[LeaderListener]:
    recreate_topics(kafka_settings)
    stop = Stop()
    with closing(LeaderListener(kafka_settings, "leader", stop)) as listener:
        listener.open()
        wait_until(lambda: listener.probes_ok_since(time.monotonic()) is not None, "its probes come back")
        yield listener
    assert stop.error is None


def send(settings: KafkaSettings, topic: str, *values: bytes) -> None:
    producer = clients.create_producer(settings, client_id="test")
    clients.fetch_topic_metadata(producer, topic)
    for value in values:
        producer.produce(topic, value, key="r1")
    assert producer.flush(10) == 0


def encoded_report(number: int) -> bytes:
    return encode(
        Report(runner="r1", pool="default", number=number, capacity=1, taken=0, draining=False, entries=(), version="1")
    )


@pytest.mark.long
def test_probes_arrive_without_a_break_during_a_long_tick(listener: LeaderListener) -> None:
    since_s = listener.probes_ok_since(time.monotonic())
    assert not Stop().wait(3 * PROBE_MAX_AGE_S)  # stands for a long tick
    assert listener.probes_ok_since(time.monotonic()) == since_s


def test_a_new_scenario_wakes_the_leader(listener: LeaderListener, kafka_settings: KafkaSettings) -> None:
    while listener.wait(0):
        pass
    send(kafka_settings, INIT_SCENARIO, encode(Start(UUID)))
    assert listener.wait(LONG_S)
    assert not listener.wait(0)


def test_only_the_last_report_of_a_runner_is_kept_and_only_a_change_wakes_the_leader(
    listener: LeaderListener, kafka_settings: KafkaSettings
) -> None:
    send(kafka_settings, RUNNER_EVENTS, encoded_report(1), encoded_report(3), encoded_report(2))
    wait_until(lambda: [report.number for report, _ in listener.take_reports()][-1:] == [3], "the last report arrives")
    while listener.wait(0):
        pass
    send(kafka_settings, RUNNER_EVENTS, encoded_report(4))
    wait_until(lambda: [report.number for report, _ in listener.take_reports()] == [4], "the next report arrives")
    assert not listener.wait(0)
    assert listener.take_reports() == []


def test_unreadable_messages_are_skipped(listener: LeaderListener, kafka_settings: KafkaSettings) -> None:
    send(kafka_settings, RUNNER_EVENTS, b"\xff", b"{}", encoded_report(1))
    wait_until(lambda: [report.number for report, _ in listener.take_reports()] == [1], "the report after them arrives")


def test_a_flood_of_reports_does_not_delay_probes(listener: LeaderListener, kafka_settings: KafkaSettings) -> None:
    since_s = listener.probes_ok_since(time.monotonic())
    send(kafka_settings, RUNNER_EVENTS, *(encoded_report(number) for number in range(1, 20_001)))
    wait_until(
        lambda: any(report.number == 20_000 for report, _ in listener.take_reports()), "all reports arrive", LONG_S
    )
    wait_until(lambda: listener.probes_ok_since(time.monotonic()) is not None, "the probes arrive")
    assert listener.probes_ok_since(time.monotonic()) == since_s


def test_the_results_topic_is_known_with_its_id_and_partitions(
    listener: LeaderListener, kafka_settings: KafkaSettings
) -> None:
    wait_until(lambda: listener.results_topic is not None, "the topic is known")
    topic = listener.results_topic
    assert topic is not None
    assert topic.id == offsets.read_topic_id(admin.create_admin(kafka_settings), "results")
    assert topic.partitions == tuple(range(16))
