"""Sends a batch of the outbox to Kafka and waits for the answer to each message. Not what is done with the answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message

from vidflow.infra.kafka import clients, errors
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.postgres.outbox import Pending
from vidflow.infra.telemetry.logs import log

_log = log("publisher")
_SILENCE_S: Final = 10.0
_LOOK_S: Final = 1.0
_ANSWER_POLL_S: Final = 0.1
_MOST_ALONE: Final = 200
"""How many rows of a batch are sent one by one: each waits for its answer, and a lease is short."""
# What the broker says of the message itself, whatever its state: too large, or against a rule of the topic.
_REFUSED: Final = frozenset({
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.INVALID_RECORD,
    KafkaError.POLICY_VIOLATION,
    KafkaError.TOPIC_EXCEPTION,
})  # fmt: skip
# The topic was there when it was looked for, and is not any more.
_GONE: Final = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION})  # noqa: SLF001


class Answers(msgspec.Struct):
    """What became of batches: the ids that Kafka has, those that no broker takes with the reason, and failures by key."""

    acknowledged: list[int] = msgspec.field(default_factory=list)
    refused: dict[int, str] = msgspec.field(default_factory=dict)
    failed: dict[str, str] = msgspec.field(default_factory=dict)


class Flight:
    """A batch on its way: the ids that have no answer yet, and the errors among the answers, by id."""

    def __init__(self, batch: Sequence[Pending]) -> None:
        self.batch = batch
        self.shards = frozenset(row.shard for row in batch)
        self.waiting = {row.id for row in batch}
        self.errors: dict[int, KafkaError] = {}
        self.alone: set[int] = set()
        """The rows that were sent with no others beside them."""
        self.refused_together: set[int] = set()
        """Those that the broker found too large, but in one request with others: each of them may fit."""

    def answer(self, row_id: int, error: KafkaError | None, message: Message | None) -> None:
        """Takes the answer to a message; from the client itself, which looks at each alone, where `message` is None."""
        self.waiting.discard(row_id)
        if error is not None:
            self.errors[row_id] = error
            if error.code() == KafkaError.MSG_SIZE_TOO_LARGE and message is not None and row_id not in self.alone:
                self.refused_together.add(row_id)

    def gone(self) -> set[str]:
        """The topics that the answers say are not there any more."""
        return {row.topic for row in self.batch if row.id in self.errors and self.errors[row.id].code() in _GONE}


class Publisher:
    """A producer and the topics that it knows to exist. Made, used and closed on one thread."""

    def __init__(self, settings: KafkaSettings, *, client_id: str) -> None:
        self._producer = clients.producer(settings, client_id=client_id)
        self._topics: frozenset[str] = frozenset()
        self._looked_s = float("-inf")
        self._answered = False
        self._said: set[str] = set()
        self._to_send_alone: set[int] = set()

    def missing(self, topics: Collection[str]) -> set[str]:
        """Those of the topics that the broker has not got. Asked again each second while there are any.

        A message to a missing topic would hold up its whole batch for half a minute before it failed.
        """
        if not self._topics.issuperset(topics) and time.monotonic() - self._looked_s >= _LOOK_S:
            self._look()
        missing = set(topics) - self._topics
        if self._answered and (new := missing - self._said):
            _log.warning("topic_missing", topics=", ".join(sorted(new)), needs="make them with: vidflow topics create")
            self._said = missing
        return missing

    def _look(self) -> None:
        try:
            self._topics = frozenset(self._producer.list_topics(timeout=_LOOK_S).topics)
            self._answered = True
        except KafkaException as error:
            self._answered = False  # the outage is said by the client's own callback
            _log.debug("topics_unknown", error=str(error))
        self._looked_s = time.monotonic()
        self._producer.poll(0)

    def hear(self) -> None:
        """Hears what the client has to say: answers, and that its brokers are away, or back."""
        self._producer.poll(0)

    def send(self, batch: Sequence[Pending]) -> Flight:
        """Hands the batch to the client in its order, and waits for no answer but where the client is full, or for a row that is
        sent alone."""
        flight = Flight(batch)
        for row in batch:
            if row.id in self._to_send_alone:
                self._send_alone(row, flight)
            else:
                self._send(row, flight)
        return flight

    def _send(self, row: Pending, flight: Flight) -> None:
        answered = partial(flight.answer, row.id)
        try:
            clients.send(self._producer, row.topic, row.payload, row.key.encode(), _headers(row), answered)
        except KafkaException as error:
            answered(error.args[0], None)

    def _send_alone(self, row: Pending, flight: Flight) -> None:
        """Sends a row once all before it are answered, and waits for its own answer; a later batch has it where that takes long."""
        if len(flight.alone) >= _MOST_ALONE or self._producer.flush(_LOOK_S):
            flight.answer(row.id, KafkaError(KafkaError._PURGE_QUEUE), None)  # noqa: SLF001 - was not sent
            return
        self._to_send_alone.discard(row.id)
        flight.alone.add(row.id)
        self._send(row, flight)
        self._producer.flush(_LOOK_S)

    def wait(self, flight: Flight, wanted: Callable[[], bool]) -> None:
        """Waits until each message has its answer, or takes back all that is on its way since it is not `wanted` now.

        A message that was taken back may have arrived all the same: it stays without an answer.
        """
        began_s = time.monotonic()
        said = False
        while flight.waiting:
            self._producer.poll(_ANSWER_POLL_S)
            if flight.waiting and not wanted():
                self._producer.purge()
                self._producer.flush(_LOOK_S)
                break
            if not said and time.monotonic() - began_s > _SILENCE_S:
                _log.warning("broker_silent", waiting=len(flight.waiting), seconds=_SILENCE_S)
                said = True
        if flight.errors:
            self._topics -= flight.gone()  # they are looked for before they are used again
            self._to_send_alone |= flight.refused_together

    def close(self) -> None:
        """Takes back what is not acknowledged, so that it cannot be published behind another relay's back."""
        self._producer.purge()
        self._producer.flush(_LOOK_S)


def _headers(row: Pending) -> clients.Headers:
    headers: clients.Headers = [
        (clients.MESSAGE_ID, row.message_id.encode()),
        (clients.EPOCH, str(row.epoch).encode()),
        (clients.KIND, row.kind.encode()),
    ]
    return [*headers, (clients.RUNNER, row.runner.encode())] if row.runner is not None else headers


def add_answers(answers: Answers, flight: Flight) -> None:
    """Adds what became of a batch to that of the batches before it. Raises errors.ClientBroken.

    Of each key, only what lies before its first failure counts as acknowledged: the rest is sent again, behind it, in order.
    """
    for row in flight.batch:
        error = flight.errors.get(row.id)
        if row.key in answers.failed:
            continue
        if row.id in flight.waiting:
            answers.failed[row.key] = "taken back before it was answered"
        elif error is None:
            answers.acknowledged.append(row.id)
        elif row.id in flight.refused_together:
            answers.failed[row.key] = "refused as too large together with others; each is sent alone next"
        elif error.code() in _REFUSED:
            answers.refused[row.id] = error.str()
        elif error.fatal() or error.code() == KafkaError._FATAL:  # noqa: SLF001 - the client's own name for it
            raise errors.ClientBroken(f"the Kafka client gave up: {error.str()}; the process must be started again")
        else:
            answers.failed[row.key] = error.str()
