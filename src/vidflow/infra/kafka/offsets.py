"""Ask the brokers for topic ids, partitions and offsets, and read a topic's log."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicCollection, TopicPartition
from confluent_kafka.admin import OffsetSpec, TopicDescription

from vidflow.infra.kafka import admin
from vidflow.infra.kafka.admin import Admin
from vidflow.infra.kafka.clients import KAFKA_REQUEST_TIMEOUT_S, create_log_reader, fetch_topic_metadata
from vidflow.infra.kafka.errors import KafkaAway, SecurityFailed, TopicMissing
from vidflow.infra.kafka.settings import KafkaSettings

_READ_TIMEOUT_S: Final = 10.0


def read_topic_id(client: Admin, topic: str) -> str:
    """Return the topic's id, which changes when the topic is deleted and created again. Raises KafkaAway."""
    return str(_describe(client, topic).topic_id)


def read_partitions(client: Admin, topic: str) -> list[int]:
    """Return the numbers of the topic's partitions. Raises KafkaAway."""
    return sorted(partition.id for partition in _describe(client, topic).partitions)


def read_end_offsets(client: Admin, topic: str, partitions: Iterable[int] | None = None) -> dict[int, int]:
    """Return the end offset of each of the `partitions` or of all: the offset of its next message.

    Raises KafkaAway, also if a partition has no leader.
    """
    numbers = read_partitions(client, topic) if partitions is None else list(partitions)
    return _require_all(topic, numbers, read_available_end_offsets(client, topic, numbers))


def read_available_end_offsets(client: Admin, topic: str, partitions: Iterable[int]) -> dict[int, int]:
    """Return the end offsets, without the partitions that have no leader. Raises KafkaAway if no broker answers."""
    return _read_available_offsets(client, topic, partitions, OffsetSpec.latest())


def read_first_offsets(client: Admin, topic: str, partitions: Iterable[int]) -> dict[int, int]:
    """Return the offset of the oldest message that each partition still has.

    Raises KafkaAway, also if a partition has no leader.
    """
    numbers = list(partitions)
    return _require_all(topic, numbers, read_available_first_offsets(client, topic, numbers))


def read_available_first_offsets(client: Admin, topic: str, partitions: Iterable[int]) -> dict[int, int]:
    """Return the first offsets, without the partitions that have no leader. Raises KafkaAway if no broker answers."""
    return _read_available_offsets(client, topic, partitions, OffsetSpec.earliest())


def _require_all(topic: str, partitions: Collection[int], offsets: dict[int, int]) -> dict[int, int]:
    if leaderless := sorted(set(partitions) - offsets.keys()):
        raise KafkaAway(f"No broker leads partition {', '.join(map(str, leaderless))} of {topic}")
    return offsets


def _read_available_offsets(client: Admin, topic: str, partitions: Iterable[int], spec: OffsetSpec) -> dict[int, int]:
    """Return the offsets of the partitions that have a leader.

    For a partition without a leader, the client returns offset -1001 or an error for this partition alone. It would ask a lost
    leader for minutes; reading the topic's metadata first makes it ask the new one.
    """
    subject, numbers = f"offsets of {topic}", set(partitions)
    if not numbers:
        return {}
    leaders = _leaders(client, topic)
    specs = {TopicPartition(topic, number): spec for number in numbers if leaders.get(number, -1) >= 0}
    if not specs:
        return {}
    answers = client.request_each(subject, lambda: client.list_offsets(specs, request_timeout=KAFKA_REQUEST_TIMEOUT_S))
    failures = [answer for answer in answers.values() if isinstance(answer, KafkaAway)]
    for failure in failures:
        if isinstance(failure, TopicMissing | SecurityFailed) or len(failures) == len(specs):
            raise failure
    offsets = {place.partition: answer.offset for place, answer in answers.items() if not isinstance(answer, KafkaAway)}
    return {partition: offset for partition, offset in offsets.items() if offset >= 0}


def _leaders(client: Admin, topic: str) -> dict[int, int]:
    """Return the id of the broker that leads each partition, -1 for a partition without a leader."""
    try:
        metadata = client.list_topics(topic, timeout=KAFKA_REQUEST_TIMEOUT_S).topics[topic]
    except KafkaException as error:
        raise client.failure(f"metadata of {topic}", error) from error
    if metadata.error is not None:
        raise client.failure(f"metadata of {topic}", KafkaException(metadata.error))
    return {number: partition.leader for number, partition in metadata.partitions.items()}


def assign_at_end(client: Admin, reader: Consumer, topics: Collection[str]) -> None:
    """Assign all partitions of the topics to a consumer without a group, starting at their current ends.

    The ends are assigned as numbers: the client would resolve a symbolic end later and skip the messages sent until then.
    Raises KafkaAway.
    """
    ends = [
        TopicPartition(topic, partition, offset)
        for topic in topics
        for partition, offset in read_end_offsets(client, topic).items()
    ]
    for topic in topics:
        fetch_topic_metadata(reader, topic)
    reader.assign(ends)


def read_log(settings: KafkaSettings, topic: str) -> Iterator[Message]:
    """Yield all current messages of a topic, in order within a partition. Later messages may be among them.

    Joins no group and commits nothing at the broker. Raises KafkaAway.
    """
    client = admin.create_admin(settings)
    numbers = read_partitions(client, topic)
    firsts = read_first_offsets(client, topic, numbers)
    ends = {number: end for number, end in read_end_offsets(client, topic, numbers).items() if end > firsts[number]}
    reader = create_log_reader(settings)
    try:
        reader.assign([TopicPartition(topic, number, firsts[number]) for number in ends])
        while ends:
            message = reader.poll(_READ_TIMEOUT_S)
            if message is None:
                raise KafkaAway(f"Kafka stopped answering while {topic} was read")
            if _is_message(message):
                yield message
            # An end event counts, too: compaction may have removed the message before a partition's end.
            if message.error() or message.offset() + 1 >= ends.get(message.partition(), 0):
                ends.pop(message.partition(), None)
    finally:
        reader.close()


def _is_message(message: Message) -> bool:
    """Return False for the event at the end of a partition. Raises KafkaAway for any other error."""
    error = message.error()
    if error is not None and error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001
        raise KafkaAway(f"Reading from Kafka failed: {error.str()}")
    return error is None


def _describe(client: Admin, topic: str) -> TopicDescription:
    topics = TopicCollection([topic])
    descriptions = client.request_all(
        f"description of {topic}", lambda: client.describe_topics(topics, request_timeout=KAFKA_REQUEST_TIMEOUT_S)
    )
    return descriptions[topic]
