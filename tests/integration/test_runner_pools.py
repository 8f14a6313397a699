"""A runner of a pool without a topic logs the command that creates the topic and waits. It never misses commands silently."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka.admin import NewTopic
from tests import clips
from tests.integration.delivery import remove_topics
from tests.integration.runner_harness import ControlPlane, make_deploy, new_uuid, running_runner
from tests.integration.server_owner import wait_until

from vidflow.domain.topics import commands_topic
from vidflow.infra.kafka import admin
from vidflow.infra.kafka.settings import KafkaSettings

pytestmark = pytest.mark.long

POOL = "gpu"
TOPIC = commands_topic(POOL)
MISSING_TOPIC_ERROR = f"Pool {POOL} has no topic {TOPIC} in Kafka. Create it with: vidflow topics create --pool {POOL}"


def create_topic(settings: KafkaSettings) -> None:
    client = admin.create_admin(settings)
    for future in client.create_topics([NewTopic(TOPIC, 2, 1)]).values():
        future.result(10)


@pytest.fixture
def _no_topic(kafka_settings: KafkaSettings) -> Iterator[None]:
    try:
        yield
    finally:
        remove_topics(kafka_settings, [TOPIC])


@pytest.mark.usefixtures("_no_topic")
def test_a_runner_of_a_pool_without_a_topic_logs_the_command_that_creates_it_and_waits(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    clip = clips.constant_rate(tmp_path / "clip.mp4", frames=5)
    with (
        closing(ControlPlane(kafka_settings, POOL)) as control_plane,
        running_runner(kafka_settings, tmp_path, "--any-file", "--pool", POOL) as process,
    ):
        wait_until(lambda: MISSING_TOPIC_ERROR in process.log, "it logs the missing topic", limit_s=60)
        assert "runner_ready" not in process.log
        create_topic(kafka_settings)
        name, uuid = process.wait_for_id(control_plane), new_uuid()
        assert process.log.count(MISSING_TOPIC_ERROR) == 1
        control_plane.send_command(name, make_deploy(uuid, clip))
        control_plane.wait_for_end_marker(uuid)

        remove_topics(kafka_settings, [TOPIC])
        wait_until(lambda: process.log.count(MISSING_TOPIC_ERROR) == 2, "it logs the missing topic again", limit_s=60)
        assert process.process.poll() is None
        create_topic(kafka_settings)
        assert process.process.wait(60) == 4, "it exits so that it is started again"
        assert f"Topic {TOPIC} was deleted and created again. Restart this runner." in process.log
        assert process.log.count(MISSING_TOPIC_ERROR) == 2
