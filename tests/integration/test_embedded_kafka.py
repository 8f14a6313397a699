"""The embedded Kafka, with a real broker."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import NewTopic
from tests.integration.server_owner import running_owner, wait_until

from vidflow.domain.errors import SetupError
from vidflow.infra.embedded.child_process import is_listening
from vidflow.infra.embedded.kafka import EmbeddedKafka
from vidflow.infra.kafka import admin
from vidflow.infra.kafka.clients import create_consumer, create_producer
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.process.stopping import Stop
from vidflow.settings import read_environment_variable

TOPIC = "kept"


def broker(folder: Path) -> EmbeddedKafka:
    return EmbeddedKafka(folder, notify=print, stop=Stop(), cache=read_environment_variable("VIDFLOW_CACHE_DIR"))


def make_topic(settings: KafkaSettings) -> None:
    client = admin.create_admin(settings)
    client.create_topics([NewTopic(TOPIC, 1, 1)])[TOPIC].result(10)


def send(settings: KafkaSettings, value: bytes) -> None:
    producer: Producer = create_producer(settings, client_id="test")
    errors: list[object] = []
    producer.produce(TOPIC, value, on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(20) == 0
    assert errors == [None]


def first_message(settings: KafkaSettings) -> bytes | None:
    consumer: Consumer = create_consumer(settings, client_id="test")
    try:
        consumer.assign([TopicPartition(TOPIC, 0, 0)])
        message = consumer.poll(20)
        assert message is not None
        assert message.error() is None
        value: bytes | None = message.value()
        return value
    finally:
        consumer.close()


@pytest.mark.long
def test_data_and_ports_survive_a_stop_and_a_kill(tmp_path: Path) -> None:
    kafka = broker(tmp_path).start()
    settings = kafka.settings
    make_topic(settings)
    send(settings, b"hello")
    kafka.stop()
    assert kafka.process is not None
    assert kafka.process.returncode == 128 + signal.SIGTERM
    assert not is_listening(kafka.port)

    again = broker(tmp_path).start()
    try:
        assert again.settings == settings
        assert first_message(settings) == b"hello"

        assert again.process is not None
        again.process.kill()
        again.process.wait()
        again.start()
        assert first_message(settings) == b"hello"
    finally:
        again.stop()


def test_topics_are_not_created_automatically(kafka_settings: KafkaSettings) -> None:
    client = admin.create_admin(kafka_settings)
    client.list_topics("does_not_exist", timeout=10)
    assert "does_not_exist" not in client.list_topics(timeout=10).topics


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    kafka = broker(tmp_path)
    try:
        with pytest.raises(SetupError, match="Another vidflow") as refused:
            broker(tmp_path)
        assert "\n" not in refused.value.message
    finally:
        kafka.stop()


@pytest.mark.long
def test_the_broker_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    with running_owner("kafka", tmp_path) as (owner, port):
        assert is_listening(port)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        wait_until(lambda: not is_listening(port), "the port is closed")
    broker(tmp_path).stop()  # the folder is free again
