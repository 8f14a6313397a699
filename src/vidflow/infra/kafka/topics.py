"""The topics that vidflow needs: created where they are missing, and given the settings that it relies on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartitionInfo
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic

from vidflow.domain.errors import SetupError
from vidflow.domain.messages import COMPACTED_TOPICS, PARTITIONS, check_pool, commands_topic
from vidflow.domain.scenario import DEFAULT_POOL
from vidflow.infra.kafka import admin
from vidflow.infra.kafka.admin import Admin
from vidflow.infra.kafka.clients import KAFKA_REQUEST_TIMEOUT_S
from vidflow.infra.kafka.errors import KafkaAway, SecurityFailed
from vidflow.infra.kafka.offsets import read_end_offsets
from vidflow.infra.kafka.settings import KafkaSettings

_LED_POLL_S: Final = 0.02
_LED_S: Final = 30.0
"""How long a broker may take until a new topic's partitions are led: far more than one needs that has a processor to run on."""
_IN_SYNC: Final = "min.insync.replicas"
_REFUSED: Final = frozenset({
    KafkaError.INVALID_REPLICATION_FACTOR,
    KafkaError.INVALID_CONFIG,
    KafkaError.INVALID_PARTITIONS,
    KafkaError.INVALID_REQUEST,
    KafkaError.POLICY_VIOLATION,
    KafkaError.TOPIC_EXCEPTION,
})  # fmt: skip


class TopicRefused(SetupError):
    """The brokers cannot create or change a topic as it is wanted."""

    default_code = "topic_refused"


class TopicRequirements(msgspec.Struct, frozen=True):
    """What `topics create` is asked for. None: the brokers' default for new topics; topics that exist are not looked at for it.

    Raises ParameterError for a pool that cannot be named so, SetupError for numbers that cannot work.
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
                "nothing could ever be written. Ask for fewer."
            )

    def partitions(self) -> dict[str, int]:
        """Return how many partitions each topic is created with: a pool's commands have as many as the default pool's."""
        return {**PARTITIONS, **{commands_topic(pool): PARTITIONS[commands_topic(DEFAULT_POOL)] for pool in self.pools}}

    def config(self, topic: str) -> dict[str, str]:
        """Return what a topic sets otherwise than the broker.

        Messages carry the broker's time: one that carries its sender's is refused where that clock is an hour ahead.
        """
        compacted = {"cleanup.policy": "compact"} if topic in COMPACTED_TOPICS else {}
        return {"message.timestamp.type": "LogAppendTime", **compacted}

    def config_with_replicas(self, topic: str, replicas: int) -> dict[str, str]:
        """Return what a topic with so many replicas sets: more that must be in sync than there are would stop all writing."""
        most = self.min_insync_replicas
        return {**self.config(topic), **({_IN_SYNC: str(most)} if most and most <= replicas else {})}


def create_topics(settings: KafkaSettings, requirements: TopicRequirements | None = None) -> list[str]:
    """Create the topics that are missing, and return them. Raises KafkaAway, TopicRefused."""
    client, requirements = admin.create_admin(settings), requirements or TopicRequirements()
    new = [
        NewTopic(topic, count, requirements.replication_factor or -1, config=requirements.config(topic))
        for topic, count in requirements.partitions().items()
    ]
    answers = client.request_each(
        "making the topics", lambda: client.create_topics(new, request_timeout=KAFKA_REQUEST_TIMEOUT_S)
    )
    made = [topic for topic, answer in answers.items() if _is_created(topic, answer)]
    for topic in made:
        _wait_for_leaders(client, topic)
    return made


def correct_topic_configs(settings: KafkaSettings, requirements: TopicRequirements | None = None) -> dict[str, str]:
    """Set what is set otherwise than vidflow needs it, of topics that somebody else made, or an older version.

    Returns it by topic, as people read it. The number of partitions stays: more of them would part the messages of a key.
    Raises KafkaAway, TopicRefused.
    """
    client, requirements = admin.create_admin(settings), requirements or TopicRequirements()
    found = _read_configs(client, requirements)
    needed = {
        topic: requirements.config_with_replicas(topic, len(one.replicas))
        for topic, one in _weakest_partitions(client, found).items()
    }
    wrong = {topic: other for topic in found if (other := _differing_configs(needed[topic], found[topic]))}
    if wrong:
        _alter_configs(client, {topic: {name: needed[topic][name] for name in wrong[topic]} for topic in wrong})
    return {
        topic: ", ".join(f"{name}={needed[topic][name]} (was {value})" for name, value in other.items())
        for topic, other in wrong.items()
    }


def find_weak_topics(settings: KafkaSettings, requirements: TopicRequirements | None = None) -> dict[str, str]:
    """Return the topics that have less than they should, and of what: replicas, or replicas that must have a message.

    Less than is asked for; and, of a topic with several replicas, a min.insync.replicas by which the loss of one broker loses
    messages or stops writing. Raises KafkaAway.
    """
    client, requirements = admin.create_admin(settings), requirements or TopicRequirements()
    in_sync = {topic: int(found[_IN_SYNC].value or 1) for topic, found in _read_configs(client, requirements).items()}
    replicas = {topic: len(one.replicas) for topic, one in _weakest_partitions(client, in_sync).items()}
    weak = {topic: _weaknesses(requirements, replicas[topic], in_sync[topic]) for topic in in_sync}
    return {topic: "; ".join(found) for topic, found in weak.items() if found}


def _weaknesses(wanted: TopicRequirements, replicas: int, in_sync: int) -> list[str]:
    found = []
    if wanted.replication_factor and replicas < wanted.replication_factor:
        found.append(
            f"{replicas} replicas, {wanted.replication_factor} were asked for (raise it with kafka-reassign-partitions)"
        )
    if wanted.min_insync_replicas and in_sync < wanted.min_insync_replicas:
        found.append(f"{_IN_SYNC}={in_sync}, {wanted.min_insync_replicas} were asked for: it has {replicas} replicas")
    elif in_sync > replicas:
        found.append(f"{_IN_SYNC}={in_sync} with {replicas} replicas: nothing can be written")
    elif replicas > 1 and in_sync < 2:
        found.append(f"{_IN_SYNC}={in_sync}: messages are lost with one broker (set it with --min-insync-replicas 2)")
    elif replicas > 1 and in_sync == replicas:
        found.append(f"{_IN_SYNC}={in_sync} of {replicas} replicas: without one broker nothing can be written")
    return found


def _weakest_partitions(client: Admin, topics: Iterable[str]) -> dict[str, TopicPartitionInfo]:
    """Return the partition of each topic that has the fewest replicas."""
    question = TopicCollection(list(topics))
    described = client.request_all(
        "the topics", lambda: client.describe_topics(question, request_timeout=KAFKA_REQUEST_TIMEOUT_S)
    )
    return {
        topic: min(one.partitions, key=lambda partition: len(partition.replicas)) for topic, one in described.items()
    }


def _read_configs(client: Admin, wanted: TopicRequirements) -> dict[str, Mapping[str, ConfigEntry]]:
    asked = [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in wanted.partitions()]
    answers = client.request_all(
        "the topics' settings", lambda: client.describe_configs(asked, request_timeout=KAFKA_REQUEST_TIMEOUT_S)
    )
    return {one.name: answer for one, answer in answers.items()}


def _differing_configs(wanted: Mapping[str, str], found: Mapping[str, ConfigEntry]) -> dict[str, str | None]:
    """What is set otherwise, as it is."""
    return {name: found[name].value for name, value in wanted.items() if found[name].value != value}


def _alter_configs(client: Admin, settings: Mapping[str, Mapping[str, str]]) -> None:
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
    client.request_all(what, lambda: client.incremental_alter_configs(wanted, request_timeout=KAFKA_REQUEST_TIMEOUT_S))


def _wait_for_leaders(client: Admin, topic: str) -> None:
    """Waits until each partition has a leader: a topic is made moments before it can be used; nothing tells when."""
    until = time.monotonic() + _LED_S
    while True:
        try:
            read_end_offsets(client, topic)
        except KafkaAway:
            if time.monotonic() > until:
                raise
            time.sleep(_LED_POLL_S)
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
        raise TopicRefused(f"Kafka refuses to create the topic {topic}: {error.str()}") from answer
    if isinstance(answer, SecurityFailed):
        raise answer
    raise KafkaAway(f"{answer.message}; start it, or set VIDFLOW_KAFKA (or --kafka)") from answer
