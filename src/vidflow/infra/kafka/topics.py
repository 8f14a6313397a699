"""The topics that vidflow needs: created where they are missing, and given the settings that it relies on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic

from vidflow.domain.messages import COMPACTED, PARTITIONS
from vidflow.infra.kafka.clients import ANSWER_S, Admin, admin
from vidflow.infra.kafka.errors import KafkaAway, SecurityFailed
from vidflow.infra.kafka.offsets import end_offsets
from vidflow.infra.kafka_settings import KafkaSettings

_LED_POLL_S: Final = 0.02
_LED_S: Final = 30.0
"""How long a broker may take until a new topic's partitions are led: far more than one needs that has a processor to run on."""


def create_topics(settings: KafkaSettings) -> list[str]:
    """Makes the topics that are missing, with the number of replicas that the broker takes by default; returns them.

    Raises KafkaAway.
    """
    client = admin(settings)
    wanted = [NewTopic(topic, count, -1, config=_topic_settings(topic)) for topic, count in PARTITIONS.items()]
    answers = client.answers("making the topics", lambda: client.create_topics(wanted, request_timeout=ANSWER_S))
    made = [topic for topic, answer in answers.items() if _made(answer)]
    for topic in made:
        _until_led(client, topic)
    return made


def settle_topics(settings: KafkaSettings) -> dict[str, str]:
    """Sets what is set otherwise than vidflow needs it, of topics that somebody else made, or an older version.

    Returns it by topic, as people read it. The number of partitions stays: more of them would part the messages of a key.
    Raises KafkaAway.
    """
    client = admin(settings)
    asked = [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in PARTITIONS]
    answers = client.all_answers(
        "the topics' settings", lambda: client.describe_configs(asked, request_timeout=ANSWER_S)
    )
    found = {one.name: answer for one, answer in answers.items()}
    others = {topic: _other_settings(topic, found[topic]) for topic in PARTITIONS}
    wrong = {topic: settings for topic, settings in others.items() if settings}
    if wrong:
        _set(client, {topic: {name: _topic_settings(topic)[name] for name in wrong[topic]} for topic in wrong})
    return {
        topic: ", ".join(f"{name}={_topic_settings(topic)[name]} (was {value})" for name, value in settings.items())
        for topic, settings in wrong.items()
    }


def _other_settings(topic: str, found: Mapping[str, ConfigEntry]) -> dict[str, str | None]:
    """What is set otherwise, as it is."""
    return {name: found[name].value for name, value in _topic_settings(topic).items() if found[name].value != value}


def _set(client: Admin, settings: Mapping[str, Mapping[str, str]]) -> None:
    wanted = [
        ConfigResource(
            ConfigResource.Type.TOPIC,
            topic,
            incremental_configs=[
                ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in given.items()
            ],
        )
        for topic, given in settings.items()
    ]
    what = "changing the topics' settings"
    client.all_answers(what, lambda: client.incremental_alter_configs(wanted, request_timeout=ANSWER_S))


def _topic_settings(topic: str) -> dict[str, str]:
    """Where a topic's settings are not the broker's own.

    Messages carry the broker's time: one that carries its sender's is refused where that clock is an hour ahead.
    """
    compacted = {"cleanup.policy": "compact"} if topic in COMPACTED else {}
    return {"message.timestamp.type": "LogAppendTime", **compacted}


def _until_led(client: Admin, topic: str) -> None:
    """Waits until each partition has a leader: a topic is made moments before it can be used; nothing tells when."""
    until = time.monotonic() + _LED_S
    while True:
        try:
            end_offsets(client, topic)
        except KafkaAway:
            if time.monotonic() > until:
                raise
            time.sleep(_LED_POLL_S)
        else:
            return


def _made(answer: KafkaAway | None) -> bool:
    if answer is None:
        return True
    cause = answer.__cause__
    if isinstance(cause, KafkaException) and cause.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
        return False
    if isinstance(answer, SecurityFailed):
        raise answer
    raise KafkaAway(f"{answer.message}; start it, or set VIDFLOW_KAFKA (or --kafka)") from answer
