"""The embedded Kafka, by its real broker."""

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
    sender: Producer = create_producer(settings, client_id="test")
    errors: list[object] = []
    sender.produce(TOPIC, value, on_delivery=lambda error, _: errors.append(error))
    assert sender.flush(20) == 0
    assert errors == [None]


def first_message(settings: KafkaSettings) -> bytes | None:
    reader: Consumer = create_consumer(settings, client_id="test")
    try:
        reader.assign([TopicPartition(TOPIC, 0, 0)])
        message = reader.poll(20)
        assert message is not None
        assert message.error() is None
        value: bytes | None = message.value()
        return value
    finally:
        reader.close()


@pytest.mark.long
def test_data_and_ports_stay_over_a_stop_a_start_and_a_kill(tmp_path: Path) -> None:
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
        assert not again.is_alive()
        again.start()
        assert first_message(settings) == b"hello"
    finally:
        again.stop()


def test_a_topic_is_made_by_nobody_but_its_owner(kafka_settings: KafkaSettings) -> None:
    client = admin.create_admin(kafka_settings)
    client.list_topics("nobody_made_this", timeout=10)
    assert "nobody_made_this" not in client.list_topics(timeout=10).topics


def test_a_folder_in_use_is_refused_in_one_line(tmp_path: Path) -> None:
    kafka = broker(tmp_path)
    try:
        with pytest.raises(SetupError, match="Another vidflow") as refused:
            broker(tmp_path)
        assert "\n" not in refused.value.message
    finally:
        kafka.stop()


def test_it_is_gone_when_its_owner_is_killed(tmp_path: Path) -> None:
    with running_owner("kafka", tmp_path) as (owner, port):
        assert is_listening(port)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        wait_until(lambda: not is_listening(port), "the port is closed")
    broker(tmp_path).stop()  # the folder is free again
