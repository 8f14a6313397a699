"""Create vidflow's topics, correct their settings, and report topics with too few replicas."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartitionInfo
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic

from vidflow.domain.errors import SetupError
from vidflow.domain.scenario import DEFAULT_POOL
from vidflow.domain.topics import DEAD_LETTERS, INIT_SCENARIO, RESULTS, RUNNER_EVENTS, check_pool, commands_topic
from vidflow.infra.kafka import admin
from vidflow.infra.kafka.admin import Admin
from vidflow.infra.kafka.clients import KAFKA_REQUEST_TIMEOUT_S
from vidflow.infra.kafka.errors import KafkaAway, SecurityFailed
from vidflow.infra.kafka.offsets import read_end_offsets
from vidflow.infra.kafka.settings import KafkaSettings

PARTITIONS: Final = {INIT_SCENARIO: 4, commands_topic(DEFAULT_POOL): 4, RUNNER_EVENTS: 1, RESULTS: 16, DEAD_LETTERS: 1}
"""The topics that vidflow needs, with the number of partitions to create. More partitions do no harm.

The leader sends a probe to each partition of RUNNER_EVENTS and reads them all. A second one costs more than runners send.
"""
COMPACTED_TOPICS: Final = frozenset({DEAD_LETTERS})
"""Topics that keep the last message of each key indefinitely. A dead letter stays until an operator deals with it."""

_LEADER_POLL_S: Final = 0.02
_LEADER_TIMEOUT_S: Final = 30.0
"""How long the partitions of a new topic may take to get leaders. A broker that has a processor to run on needs far less."""
_MIN_INSYNC: Final = "min.insync.replicas"
_REFUSED: Final = frozenset({
    KafkaError.INVALID_REPLICATION_FACTOR,
    KafkaError.INVALID_CONFIG,
    KafkaError.INVALID_PARTITIONS,
    KafkaError.INVALID_REQUEST,
    KafkaError.POLICY_VIOLATION,
    KafkaError.TOPIC_EXCEPTION,
})  # fmt: skip


class TopicRefused(SetupError):
    """The brokers reject a topic or its settings."""

    default_code = "topic_refused"


class TopicRequirements(msgspec.Struct, frozen=True):
    """Options of `topics create`. None means the brokers' default for new topics, and no check of existing ones.

    Raises ParameterError for an invalid pool name, SetupError for impossible numbers.
    """

    pools: Sequence[str] = (DEFAULT_POOL,)
    replication_factor: int | None = None
    min_insync_replicas: int | None = None

    def __post_init__(self) -> None:
        for pool in self.pools:
            check_pool(pool)
        if self.replication_factor and self.min_insync_replicas and self.min_insync_replicas > self.replication_factor:
            raise SetupError(
                f"--min-insync-replicas {self.min_insync_replicas} is more than --replication-factor {self.replication_factor}: "
                "no message could be written. Choose a smaller number."
            )

    def partitions(self) -> dict[str, int]:
        """Return the number of partitions of each topic. The command topics of all pools have the same number."""
        return {**PARTITIONS, **{commands_topic(pool): PARTITIONS[commands_topic(DEFAULT_POOL)] for pool in self.pools}}

    def config(self, topic: str) -> dict[str, str]:
        """Return the settings of a topic that differ from the broker's defaults.

        Messages get the broker's time. With the sender's time, the broker rejects messages from a clock that is an hour ahead.
        """
        compacted = {"cleanup.policy": "compact"} if topic in COMPACTED_TOPICS else {}
        return {"message.timestamp.type": "LogAppendTime", **compacted}

    def config_with_replicas(self, topic: str, replicas: int) -> dict[str, str]:
        """Return the settings of a topic with this number of replicas.

        min.insync.replicas is left out if it is more than the replicas, because then no message could be written.
        """
        required = self.min_insync_replicas
        return {**self.config(topic), **({_MIN_INSYNC: str(required)} if required and required <= replicas else {})}


def create_topics(settings: KafkaSettings, requirements: TopicRequirements | None = None) -> list[str]:
    """Create the missing topics and return their names. Raises KafkaAway, TopicRefused."""
    client, requirements = admin.create_admin(settings), requirements or TopicRequirements()
    new = [
        NewTopic(topic, count, requirements.replication_factor or -1, config=requirements.config(topic))
        for topic, count in requirements.partitions().items()
    ]
    answers = client.request_each(
        "creating topics", lambda: client.create_topics(new, request_timeout=KAFKA_REQUEST_TIMEOUT_S)
    )
    created = [topic for topic, answer in answers.items() if _is_created(topic, answer)]
    for topic in created:
        _wait_for_leaders(client, topic)
    return created


def correct_topic_configs(settings: KafkaSettings, requirements: TopicRequirements | None = None) -> dict[str, str]:
    """Correct the settings of topics that were created by an older version or another tool. Return the changes by topic, as text.

    The number of partitions stays: adding some would move a key to another partition and break its order.
    Raises KafkaAway, TopicRefused.
    """
    client, requirements = admin.create_admin(settings), requirements or TopicRequirements()
    configs = _read_configs(client, requirements)
    required = {
        topic: requirements.config_with_replicas(topic, len(partition.replicas))
        for topic, partition in _weakest_partitions(client, configs).items()
    }
    wrong = {topic: values for topic in configs if (values := _differing_configs(required[topic], configs[topic]))}
    if wrong:
        _alter_configs(client, {topic: {name: required[topic][name] for name in wrong[topic]} for topic in wrong})
    return {
        topic: ", ".join(f"{name}={required[topic][name]} (was {value})" for name, value in values.items())
        for topic, values in wrong.items()
    }


def find_weak_topics(settings: KafkaSettings, requirements: TopicRequirements | None = None) -> dict[str, str]:
    """Return the weaknesses of topics, as text by topic. Raises KafkaAway.

    A topic is weak if it has fewer replicas or a lower min.insync.replicas than required. A topic with several replicas is also weak
    if the loss of one broker would lose messages or stop writing.
    """
    client, requirements = admin.create_admin(settings), requirements or TopicRequirements()
    configs = _read_configs(client, requirements)
    min_insync = {topic: int(config[_MIN_INSYNC].value or 1) for topic, config in configs.items()}
    replicas = {topic: len(weakest.replicas) for topic, weakest in _weakest_partitions(client, min_insync).items()}
    weaknesses = {topic: _find_weaknesses(requirements, replicas[topic], min_insync[topic]) for topic in min_insync}
    return {topic: "; ".join(texts) for topic, texts in weaknesses.items() if texts}


def _find_weaknesses(requirements: TopicRequirements, replicas: int, min_insync: int) -> list[str]:
    weaknesses = []
    if requirements.replication_factor and replicas < requirements.replication_factor:
        weaknesses.append(
            f"{replicas} replicas instead of {requirements.replication_factor} (add some with kafka-reassign-partitions)"
        )
    if requirements.min_insync_replicas and min_insync < requirements.min_insync_replicas:
        weaknesses.append(
            f"{_MIN_INSYNC}={min_insync} instead of {requirements.min_insync_replicas} (it has {replicas} replicas)"
        )
    elif min_insync > replicas:
        weaknesses.append(f"{_MIN_INSYNC}={min_insync} with {replicas} replicas: no message can be written")
    elif replicas > 1 and min_insync < 2:
        weaknesses.append(
            f"{_MIN_INSYNC}={min_insync}: the loss of one broker loses messages (set it with --min-insync-replicas 2)"
        )
    elif replicas > 1 and min_insync == replicas:
        weaknesses.append(
            f"{_MIN_INSYNC}={min_insync} with {replicas} replicas: no message can be written after the loss of one broker"
        )
    return weaknesses


def _weakest_partitions(client: Admin, topics: Iterable[str]) -> dict[str, TopicPartitionInfo]:
    """Return the partition of each topic that has the fewest replicas."""
    names = TopicCollection(list(topics))
    descriptions = client.request_all(
        "descriptions of topics", lambda: client.describe_topics(names, request_timeout=KAFKA_REQUEST_TIMEOUT_S)
    )
    return {
        topic: min(description.partitions, key=lambda partition: len(partition.replicas))
        for topic, description in descriptions.items()
    }


def _read_configs(client: Admin, requirements: TopicRequirements) -> dict[str, Mapping[str, ConfigEntry]]:
    resources = [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in requirements.partitions()]
    answers = client.request_all(
        "settings of topics", lambda: client.describe_configs(resources, request_timeout=KAFKA_REQUEST_TIMEOUT_S)
    )
    return {resource.name: config for resource, config in answers.items()}


def _differing_configs(required: Mapping[str, str], current: Mapping[str, ConfigEntry]) -> dict[str, str | None]:
    """Return the current values that differ from the required ones."""
    return {name: current[name].value for name, value in required.items() if current[name].value != value}


def _alter_configs(client: Admin, configs: Mapping[str, Mapping[str, str]]) -> None:
    resources = [
        ConfigResource(
            ConfigResource.Type.TOPIC,
            topic,
            incremental_configs=[
                ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in config.items()
            ],
        )
        for topic, config in configs.items()
    ]
    client.request_all(
        "changing settings of topics",
        lambda: client.incremental_alter_configs(resources, request_timeout=KAFKA_REQUEST_TIMEOUT_S),
    )


def _wait_for_leaders(client: Admin, topic: str) -> None:
    """Poll until each partition has a leader. A new topic cannot be used before, and Kafka does not report that moment."""
    deadline_s = time.monotonic() + _LEADER_TIMEOUT_S
    while True:
        try:
            read_end_offsets(client, topic)
        except KafkaAway:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(_LEADER_POLL_S)
        else:
            return


def _is_created(topic: str, answer: KafkaAway | None) -> bool:
    if answer is None:
        return True
    cause = answer.__cause__
    error = cause.args[0] if isinstance(cause, KafkaException) else None
    if error is not None and error.code() == KafkaError.TOPIC_ALREADY_EXISTS:
        return False
    if error is not None and error.code() in _REFUSED:
        raise TopicRefused(f"Kafka refuses to create topic {topic}: {error.str()}") from answer
    if isinstance(answer, SecurityFailed):
        raise answer
    raise KafkaAway(f"{answer.message}. Start it, or set VIDFLOW_KAFKA (or --kafka).") from answer
