"""Topics' ids, partitions and offsets as the brokers know them now. An offset that no broker knows is not a number here."""

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

_SILENCE_S: Final = 10.0


def read_topic_id(client: Admin, topic: str) -> str:
    """The id of the topic as it is now: another one after it was deleted and made anew. Raises KafkaAway."""
    return str(_describe(client, topic).topic_id)


def read_partitions(client: Admin, topic: str) -> list[int]:
    """The numbers of the topic's partitions. Raises KafkaAway."""
    return sorted(partition.id for partition in _describe(client, topic).partitions)


def read_end_offsets(client: Admin, topic: str, partitions: Iterable[int] | None = None) -> dict[int, int]:
    """The offset that the next message of each partition (`partitions` these, or all) will get.

    Raises KafkaAway, also if one of them is unknown because the partition has no leader.
    """
    numbers = read_partitions(client, topic) if partitions is None else list(partitions)
    return _all_known(topic, numbers, read_available_end_offsets(client, topic, numbers))


def read_available_end_offsets(client: Admin, topic: str, partitions: Iterable[int]) -> dict[int, int]:
    """Return the end offsets of those of the partitions that have a leader. Raises KafkaAway if no broker answers."""
    return _read_available_offsets(client, topic, partitions, OffsetSpec.latest())


def read_first_offsets(client: Admin, topic: str, partitions: Iterable[int]) -> dict[int, int]:
    """The offset of the oldest message that each partition still holds.

    Raises KafkaAway, also if one of them is unknown because the partition has no leader.
    """
    numbers = list(partitions)
    return _all_known(topic, numbers, read_available_first_offsets(client, topic, numbers))


def read_available_first_offsets(client: Admin, topic: str, partitions: Iterable[int]) -> dict[int, int]:
    """Return the first offsets of those of the partitions that have a leader. Raises KafkaAway if no broker answers."""
    return _read_available_offsets(client, topic, partitions, OffsetSpec.earliest())


def _all_known(topic: str, numbers: Collection[int], known: dict[int, int]) -> dict[int, int]:
    if unknown := sorted(set(numbers) - known.keys()):
        raise KafkaAway(f"no broker leads partition {', '.join(map(str, unknown))} of {topic}")
    return known


def _read_available_offsets(client: Admin, topic: str, numbers: Iterable[int], which: OffsetSpec) -> dict[int, int]:
    """For a partition without a leader the client answers -1001 and no error, or an error for this partition alone.

    The client would go on asking a leader that is gone for minutes; a fresh look at the topic lets it ask the new one.
    """
    what, wanted = f"the offsets of {topic}", set(numbers)
    if not wanted:
        return {}
    leaders = _leaders(client, topic)
    asked = {TopicPartition(topic, number): which for number in wanted if leaders.get(number, -1) >= 0}
    if not asked:
        return {}
    answers = client.request_each(what, lambda: client.list_offsets(asked, request_timeout=KAFKA_REQUEST_TIMEOUT_S))
    failures = [answer for answer in answers.values() if isinstance(answer, KafkaAway)]
    for failure in failures:
        if isinstance(failure, TopicMissing | SecurityFailed) or len(failures) == len(asked):
            raise failure
    found = {one.partition: answer.offset for one, answer in answers.items() if not isinstance(answer, KafkaAway)}
    return {partition: offset for partition, offset in found.items() if offset >= 0}


def _leaders(client: Admin, topic: str) -> dict[int, int]:
    """Return the broker that leads each partition, -1 where none does."""
    try:
        found = client.list_topics(topic, timeout=KAFKA_REQUEST_TIMEOUT_S).topics[topic]
    except KafkaException as error:
        raise client.failure(f"what {topic} is", error) from error
    if found.error is not None:
        raise client.failure(f"what {topic} is", KafkaException(found.error))
    return {number: one.leader for number, one in found.partitions.items()}


def assign_at_end(client: Admin, reader: Consumer, topics: Collection[str]) -> None:
    """Lets a consumer without a group read all partitions of the topics from their present ends.

    The ends are asked for and given: a symbolic end is looked up later, and what came between is lost.
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
    """All messages that the topic holds now, each partition's in order; what comes meanwhile may be among them.

    Belongs to no group and leaves no trace at the broker. Raises KafkaAway.
    """
    client = admin.create_admin(settings)
    numbers = read_partitions(client, topic)
    firsts = read_first_offsets(client, topic, numbers)
    ends = {number: end for number, end in read_end_offsets(client, topic, numbers).items() if end > firsts[number]}
    # The end event too: compaction may have taken a partition's last messages, so that none comes of the offset before its end.
    reader = create_log_reader(settings)
    try:
        reader.assign([TopicPartition(topic, number, firsts[number]) for number in ends])
        while ends:
            message = reader.poll(_SILENCE_S)
            if message is None:
                raise KafkaAway(f"Kafka stopped answering while {topic} was read")
            if _is_message(message):
                yield message
            if message.error() or message.offset() + 1 >= ends.get(message.partition(), 0):
                ends.pop(message.partition(), None)
    finally:
        reader.close()


def _is_message(message: Message) -> bool:
    """Whether it is one, and no end of a partition. Raises KafkaAway for what else the client has to say."""
    error = message.error()
    if error is not None and error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001
        raise KafkaAway(f"Kafka cannot be read: {error.str()}")
    return error is None


def _describe(client: Admin, topic: str) -> TopicDescription:
    question = TopicCollection([topic])
    what = f"what {topic} is"
    return client.request_all(what, lambda: client.describe_topics(question, request_timeout=KAFKA_REQUEST_TIMEOUT_S))[
        topic
    ]
