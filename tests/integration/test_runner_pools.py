"""A runner of a pool whose topic is missing: it says which command creates it, and waits; it is never silently deaf."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka.admin import NewTopic
from tests import clips
from tests.integration.delivery import remove_topics
from tests.integration.runner_harness import ControlPlane, make_deploy, new_uuid, running_runner
from tests.integration.server_owner import wait_until

from vidflow.domain.messages import commands_topic
from vidflow.infra.kafka import admin
from vidflow.infra.kafka.settings import KafkaSettings

pytestmark = pytest.mark.long

POOL = "gpu"
TOPIC = commands_topic(POOL)
SAYS = f"the pool {POOL} has no topic {TOPIC} in Kafka; create it with: vidflow topics create --pool {POOL}"


def create_topic(settings: KafkaSettings) -> None:
    client = admin.create_admin(settings)
    for answer in client.create_topics([NewTopic(TOPIC, 2, 1)]).values():
        answer.result(10)


def test_a_runner_of_a_pool_without_a_topic_names_the_command_and_waits_for_it(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    clip = clips.constant_rate(tmp_path / "clip.mp4", frames=5)
    stage = ControlPlane(kafka_settings, POOL)
    with running_runner(kafka_settings, tmp_path, "--any-file", "--pool", POOL) as process:
        wait_until(lambda: SAYS in process.log, "it says what is missing", limit_s=60)
        assert "runner_ready" not in process.log
        create_topic(kafka_settings)
        name, uuid = process.wait_for_id(stage), new_uuid()
        assert process.log.count(SAYS) == 1
        stage.send_command(name, make_deploy(uuid, clip))
        stage.wait_for_end_marker(uuid)

        remove_topics(kafka_settings, [TOPIC])
        wait_until(lambda: process.log.count(SAYS) == 2, "it says that it hears nothing", limit_s=60)
        assert process.process.poll() is None
        create_topic(kafka_settings)
        assert process.process.wait(60) == 4, "it is to be started again"
        assert f"the topic {TOPIC} was made anew; start this runner again" in process.log
        assert process.log.count(SAYS) == 2
    stage.close()
    remove_topics(kafka_settings, [TOPIC])
