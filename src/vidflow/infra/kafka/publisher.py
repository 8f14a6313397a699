"""Publish batches of outbox messages and collect the delivery result of each message."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message

from vidflow.infra.kafka import clients, errors
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.postgres.outbox import PendingMessage
from vidflow.infra.telemetry.logs import log

_log = log("publisher")
_LOG_SILENCE_AFTER_S: Final = 10.0
_TOPICS_INTERVAL_S: Final = 1.0
_FLUSH_S: Final = 1.0
_DELIVERY_POLL_S: Final = 0.1
_MAX_SENT_ALONE: Final = 200
"""Rows of a batch that are sent one by one. Each waits for its acknowledgement, and a lease is short."""
# Errors about the message itself: sending it again would fail again.
_REFUSED: Final = frozenset({
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.INVALID_RECORD,
    KafkaError.POLICY_VIOLATION,
    KafkaError.TOPIC_EXCEPTION,
})  # fmt: skip
# The topic was deleted after it was found.
_TOPIC_GONE: Final = frozenset({
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001
    KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
})  # fmt: skip


class DeliveryResults(msgspec.Struct):
    """Results of sent batches: acknowledged ids, permanently refused ids with their errors, and retryable failures by key."""

    acknowledged: list[int] = msgspec.field(default_factory=list)
    refused: dict[int, str] = msgspec.field(default_factory=dict)
    failed: dict[str, str] = msgspec.field(default_factory=dict)


class InFlightBatch:
    """A batch that was sent: the ids without a delivery report, and the errors by id."""

    def __init__(self, batch: Sequence[PendingMessage]) -> None:
        self.batch = batch
        self.shards = frozenset(row.shard for row in batch)
        self.unanswered = {row.id for row in batch}
        self.errors: dict[int, KafkaError] = {}
        self.sent_alone: set[int] = set()
        """Ids of rows that were sent in a request of their own."""
        self.refused_together: set[int] = set()
        """Ids of rows refused as too large in a request with other rows. Each of them may be accepted alone."""

    def record_delivery(self, row_id: int, error: KafkaError | None, message: Message | None) -> None:
        """Record a delivery report. `message` is None if the client itself rejected the row, which it checks alone."""
        self.unanswered.discard(row_id)
        if error is not None:
            self.errors[row_id] = error
            if error.code() == KafkaError.MSG_SIZE_TOO_LARGE and message is not None and row_id not in self.sent_alone:
                self.refused_together.add(row_id)

    def missing_topics(self) -> set[str]:
        """Return the topics that do not exist any more according to the delivery reports."""
        return {row.topic for row in self.batch if row.id in self.errors and self.errors[row.id].code() in _TOPIC_GONE}


class Publisher:
    """A producer and the topics that are known to exist. Create, use and close it on one thread."""

    def __init__(self, settings: KafkaSettings, *, client_id: str) -> None:
        self._producer = clients.create_producer(settings, client_id=client_id)
        self._topics: frozenset[str] = frozenset()
        self._topics_read_s = float("-inf")
        self._topics_known = False
        self._logged_missing: set[str] = set()
        self._to_send_alone: set[int] = set()

    def find_missing_topics(self, topics: Collection[str]) -> set[str]:
        """Return those of `topics` that do not exist. While one is missing, the broker is asked at most once a second.

        A message to a missing topic would delay its whole batch for half a minute before it fails.
        """
        if not self._topics.issuperset(topics) and time.monotonic() - self._topics_read_s >= _TOPICS_INTERVAL_S:
            self._refresh_topics()
        missing = set(topics) - self._topics
        if self._topics_known and (new := missing - self._logged_missing):
            _log.warning("topic_missing", topics=", ".join(sorted(new)), needs="create them: vidflow topics create")
            self._logged_missing = missing
        return missing

    def _refresh_topics(self) -> None:
        try:
            self._topics = frozenset(self._producer.list_topics(timeout=_TOPICS_INTERVAL_S).topics)
            self._topics_known = True
        except KafkaException as error:
            self._topics_known = False  # the client's error callback logs the outage
            _log.debug("topics_unknown", error=str(error))
        self._topics_read_s = time.monotonic()
        self._producer.poll(0)

    def poll(self) -> None:
        """Process the client's pending callbacks: delivery reports, outages and their ends."""
        self._producer.poll(0)

    def send(self, batch: Sequence[PendingMessage]) -> InFlightBatch:
        """Hand the batch to the client in its order.

        Waits only for room in the client's queue, and for the delivery of rows that are sent alone.
        """
        flight = InFlightBatch(batch)
        for row in batch:
            if row.id in self._to_send_alone:
                self._send_alone(row, flight)
            else:
                self._send(row, flight)
        return flight

    def _send(self, row: PendingMessage, flight: InFlightBatch) -> None:
        on_delivery = partial(flight.record_delivery, row.id)
        try:
            clients.send(self._producer, row.topic, row.payload, row.key.encode(), _headers(row), on_delivery)
        except KafkaException as error:
            on_delivery(error.args[0], None)

    def _send_alone(self, row: PendingMessage, flight: InFlightBatch) -> None:
        """Send a row after all earlier rows are delivered, and wait for its delivery. If that takes long, fail it for now."""
        if len(flight.sent_alone) >= _MAX_SENT_ALONE or self._producer.flush(_FLUSH_S):
            flight.record_delivery(row.id, KafkaError(KafkaError._PURGE_QUEUE), None)  # noqa: SLF001 - was not sent
            return
        self._to_send_alone.discard(row.id)
        flight.sent_alone.add(row.id)
        self._send(row, flight)
        self._producer.flush(_FLUSH_S)

    def wait_for_delivery(self, flight: InFlightBatch, keep_waiting: Callable[[], bool]) -> None:
        """Wait for the delivery reports of a batch. When `keep_waiting` returns False, purge all unacknowledged messages.

        A purged message may have reached the broker nevertheless. It stays in `unanswered`.
        """
        began_s = time.monotonic()
        logged = False
        while flight.unanswered:
            self._producer.poll(_DELIVERY_POLL_S)
            if flight.unanswered and not keep_waiting():
                self._producer.purge()
                self._producer.flush(_FLUSH_S)
                break
            if not logged and time.monotonic() - began_s > _LOG_SILENCE_AFTER_S:
                _log.warning("broker_silent", waiting=len(flight.unanswered), seconds=_LOG_SILENCE_AFTER_S)
                logged = True
        if flight.errors:
            self._topics -= flight.missing_topics()  # checked again before their next use
            self._to_send_alone |= flight.refused_together

    def close(self) -> None:
        """Purge what is not acknowledged, so that it is not published after another relay has taken over."""
        self._producer.purge()
        self._producer.flush(_FLUSH_S)


def _headers(row: PendingMessage) -> clients.Headers:
    headers: clients.Headers = [
        (clients.MESSAGE_ID_HEADER, row.message_id.encode()),
        (clients.EPOCH_HEADER, str(row.epoch).encode()),
        (clients.KIND_HEADER, row.kind.encode()),
    ]
    return [*headers, (clients.RUNNER_HEADER, row.runner.encode())] if row.runner is not None else headers


def add_delivery_results(answers: DeliveryResults, flight: InFlightBatch) -> None:
    """Add the results of a batch to `answers`, the results of earlier batches. Raises errors.ClientBroken.

    Rows after the first failure of their key do not count as acknowledged: they are sent again after it, in order.
    """
    for row in flight.batch:
        error = flight.errors.get(row.id)
        if row.key in answers.failed:
            continue
        if row.id in flight.unanswered:
            answers.failed[row.key] = "not acknowledged before it was purged"
        elif error is None:
            answers.acknowledged.append(row.id)
        elif row.id in flight.refused_together:
            answers.failed[row.key] = "too large in a request with other messages; each is sent alone next"
        elif error.code() in _REFUSED:
            answers.refused[row.id] = error.str()
        elif error.fatal() or error.code() == KafkaError._FATAL:  # noqa: SLF001 - the only name for this code
            raise errors.ClientBroken(f"The Kafka client failed permanently: {error.str()}. Restart the process.")
        else:
            answers.failed[row.key] = error.str()
