"""Read, replay and drop dead letters. The inbox writes them (roles/inbox/storing.py).

The topic is compacted, and its log is the only state. A letter's key is the place of the original message. The last message of a
key counts; if it has no value, the letter has been dealt with.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable, Iterator
from typing import Final

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message

from vidflow.domain.errors import MessageError
from vidflow.domain.messages import DeadLetter, decode_dead_letter
from vidflow.domain.topics import DEAD_LETTERS, RESULTS
from vidflow.infra.kafka import admin, clients, errors, offsets
from vidflow.infra.kafka.settings import KafkaSettings

FLUSH_TIMEOUT_S: Final = 30.0
"""How long to wait for the broker's acknowledgements before the rest is discarded."""


class PendingDeadLetter(msgspec.Struct, frozen=True):
    """A dead letter that has not been dealt with. `letter` is None if it cannot be decoded; `error` then says why."""

    key: bytes
    at: datetime.datetime
    error: str
    letter: DeadLetter | None = None

    @property
    def place(self) -> str:
        """The letter's key as text, which names it in commands."""
        return self.key.decode(errors="backslashreplace")


def read_pending_dead_letters(
    settings: KafkaSettings, places: Collection[str] | None = None
) -> Iterator[PendingDeadLetter]:
    """Yield the pending dead letters, of `places` or all, in the order of their arrival. Raises errors.KafkaAway.

    The log is read twice, so that only its keys are held in memory: letters may be long and many.
    """
    try:
        last = _last_of_each_key(settings, places)
    except (errors.TopicMissing, errors.SecurityFailed):
        raise
    except errors.KafkaAway as error:
        raise errors.KafkaAway(f"{error.message}. Start it, or set VIDFLOW_KAFKA (or --kafka).") from error
    if not last:
        return
    for message in offsets.read_log(settings, DEAD_LETTERS):
        if last.get(message.key()) == _locate(message):
            yield _decode_pending(message)


def _last_of_each_key(settings: KafkaSettings, places: Collection[str] | None) -> dict[bytes | None, tuple[int, int]]:
    """Return partition and offset of the last message of each key, without the keys whose last message has no value."""
    last: dict[bytes | None, tuple[int, int]] = {}
    for message in offsets.read_log(settings, DEAD_LETTERS):
        key = message.key()
        if key is None or (places is not None and key.decode(errors="backslashreplace") not in places):
            continue  # vidflow writes no message without a key, and a compacted topic accepts none
        if message.value() is None:
            last.pop(key, None)
        else:
            last[key] = _locate(message)
    return last


def _locate(message: Message) -> tuple[int, int]:
    return message.partition(), message.offset()


def _decode_pending(message: Message) -> PendingDeadLetter:
    created_at = datetime.datetime.fromtimestamp(message.timestamp()[1] / 1000, datetime.UTC)
    try:
        letter = decode_dead_letter(message.value())
    except MessageError as error:
        return PendingDeadLetter(message.key(), created_at, f"not a dead letter: {error.message}")
    return PendingDeadLetter(message.key(), created_at, letter.error, letter)


def why_not_replayable(pending: PendingDeadLetter) -> str | None:
    """Return why a letter cannot be replayed, None if it can. A letter of another topic was not written by an inbox."""
    if pending.letter is None:
        return pending.error
    if pending.letter.topic != RESULTS:
        return f"its topic is {pending.letter.topic}, and only messages of {RESULTS} can be replayed"
    return "it was too long to be kept whole" if pending.letter.cut else None


class HandledDeadLetter(msgspec.Struct, frozen=True):
    """A letter that was dealt with. `now_at` is the place of the replayed message, None if the letter was dropped."""

    place: str
    now_at: str | None = None


class DeadLetterProducer:
    """Replays and drops dead letters. `done` lists those that the broker has acknowledged. Use it on one thread."""

    def __init__(self, settings: KafkaSettings) -> None:
        """Check that the topics exist: a producer would notice only after half a minute.

        Raises errors.KafkaAway, or its subclass TopicMissing.
        """
        client = admin.create_admin(settings)
        for topic in (RESULTS, DEAD_LETTERS):
            offsets.read_topic_id(client, topic)
        self.done: list[HandledDeadLetter] = []
        self._producer = clients.create_producer(settings, client_id="vidflow-dlq")
        clients.fetch_topic_metadata(self._producer, DEAD_LETTERS)
        self._error: KafkaError | None = None

    def replay(self, letters: Iterable[PendingDeadLetter]) -> None:
        """Send each original message (key, value and headers), and drop its letter after the broker has acknowledged it.

        A crash between the two leaves the letter. Replaying it again sends a duplicate, which the inbox ignores.
        Raises KafkaAway.
        """
        for pending in letters:
            self._replay(pending)
        self._flush()

    def drop(self, letters: Iterable[PendingDeadLetter]) -> None:
        """Mark each letter as dealt with. Raises KafkaAway."""
        for pending in letters:
            self._drop(pending, None)
        self._flush()

    def _replay(self, pending: PendingDeadLetter) -> None:
        letter = pending.letter
        assert letter is not None, "check why_not_replayable first"

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self._error = error
            else:
                self._drop(pending, f"{message.topic()}/{message.partition()}/{message.offset()}")

        self._produce(letter.topic, letter.value, letter.key, list(letter.headers), on_delivery)

    def _drop(self, pending: PendingDeadLetter, now_at: str | None) -> None:
        def on_delivery(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                self._error = error
            else:
                self.done.append(HandledDeadLetter(pending.place, now_at))

        self._produce(DEAD_LETTERS, None, pending.key, [(clients.KIND_HEADER, b"dropped")], on_delivery)

    def _produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        headers: clients.Headers,
        on_delivery: clients.DeliveryCallback,
    ) -> None:
        try:
            clients.send(self._producer, topic, value, key, headers, on_delivery)
        except KafkaException as error:
            raise errors.KafkaAway(f"Message to {topic} not sent: {error.args[0]}") from error

    def _flush(self) -> None:
        unanswered = self._producer.flush(FLUSH_TIMEOUT_S)
        if unanswered:
            self._producer.purge()
        if unanswered or self._error is not None:
            reason = self._error.str() if self._error is not None else f"no answer within {FLUSH_TIMEOUT_S:g} s"
            raise errors.KafkaAway(
                f"Kafka acknowledged only {len(self.done)} dead letters ({reason}). "
                "The others are unchanged. Run the command again."
            )
