"""Kafka: clients made the one right way, topics, offsets. Not what the messages mean.

Clients are made in the process and thread that use them, after any fork: one that is inherited delivers nothing.
"""

from vidflow.infra.kafka.clients import (
    EPOCH,
    KIND,
    MESSAGE_ID,
    RUNNER,
    Delivered,
    Headers,
    consumer,
    headers_of,
    know_topic,
    log_reader,
    producer,
    send,
    take,
)
from vidflow.infra.kafka.errors import ClientBroken, KafkaAway, SecurityFailed, TopicMissing
from vidflow.infra.kafka.offsets import (
    assign_at_end,
    end_offsets,
    first_offsets,
    known_end_offsets,
    known_first_offsets,
    partitions,
    read_log,
    topic_id,
)
from vidflow.infra.kafka.questions import Admin, Questions, admin, wait_for_broker
from vidflow.infra.kafka.topics import TopicRefused, Wanted, create_topics, settle_topics, weak_topics
from vidflow.infra.kafka_settings import KafkaSettings

__all__ = [
    "EPOCH",
    "KIND",
    "MESSAGE_ID",
    "RUNNER",
    "Admin",
    "ClientBroken",
    "Delivered",
    "Headers",
    "KafkaAway",
    "KafkaSettings",
    "Questions",
    "SecurityFailed",
    "TopicMissing",
    "TopicRefused",
    "Wanted",
    "admin",
    "assign_at_end",
    "consumer",
    "create_topics",
    "end_offsets",
    "first_offsets",
    "headers_of",
    "know_topic",
    "known_end_offsets",
    "known_first_offsets",
    "log_reader",
    "partitions",
    "producer",
    "read_log",
    "send",
    "settle_topics",
    "take",
    "topic_id",
    "wait_for_broker",
    "weak_topics",
]
