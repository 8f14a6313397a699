"""The topic of dead letters as an operator sees it: which wait there, sent again, dropped. Not how a message becomes one.

The topic is compacted. Of each key, the place of the message, the last message counts; one without a value says that somebody
has dealt with the letter. So what waits is a fold over the log, and no state is kept anywhere else.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable, Iterator
from typing import Final

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message

from vidflow.domain.errors import MessageError
from vidflow.domain.messages import DEAD_LETTERS, RESULTS, DeadLetter, decode_dead_letter
from vidflow.infra.kafka import admin, clients, errors, offsets
from vidflow.infra.kafka.settings import KafkaSettings

ANSWER_S: Final = 30.0
"""How long a broker may take to answer to all that is sent before the rest is taken back."""


class Waiting(msgspec.Struct, frozen=True):
    """A message of the topic that nobody has dealt with. `letter` is None where it cannot be read as one: `error` says why."""

    key: bytes
    at: datetime.datetime
    error: str
    letter: DeadLetter | None = None

    @property
    def place(self) -> str:
        """What it is called by: its key."""
        return self.key.decode(errors="backslashreplace")


def waiting(settings: KafkaSettings, places: Collection[str] | None = None) -> Iterator[Waiting]:
    """The dead letters that wait (of these `places`, or all), in the order in which they came. Raises errors.KafkaAway.

    Reads the log twice, so that no more than the keys are held: letters may be long and many.
    """
    try:
        last = _last_of_each_key(settings, places)
    except (errors.TopicMissing, errors.SecurityFailed):
        raise
    except errors.KafkaAway as error:
        raise errors.KafkaAway(f"{error.message}; start it, or set VIDFLOW_KAFKA (or --kafka)") from error
    if not last:
        return
    for message in offsets.read_log(settings, DEAD_LETTERS):
        if last.get(message.key()) == _where(message):
            yield _waiting(message)


def _last_of_each_key(settings: KafkaSettings, places: Collection[str] | None) -> dict[bytes | None, tuple[int, int]]:
    """Where the last message of each key lies, of those keys whose last one has a value."""
    last: dict[bytes | None, tuple[int, int]] = {}
    for message in offsets.read_log(settings, DEAD_LETTERS):
        key = message.key()
        if key is None or (places is not None and key.decode(errors="backslashreplace") not in places):
            continue  # without a key it is none of ours, and the compacted topic takes none
        if message.value() is None:
            last.pop(key, None)
        else:
            last[key] = _where(message)
    return last


def _where(message: Message) -> tuple[int, int]:
    return message.partition(), message.offset()


def _waiting(message: Message) -> Waiting:
    at = datetime.datetime.fromtimestamp(message.timestamp()[1] / 1000, datetime.UTC)
    try:
        letter = decode_dead_letter(message.value())
    except MessageError as error:
        return Waiting(message.key(), at, f"this is no dead letter: {error.message}")
    return Waiting(message.key(), at, letter.error, letter)


def why_not(one: Waiting) -> str | None:
    """Why a letter cannot be sent again; None where it can. What names another topic was not written by an inbox."""
    if one.letter is None:
        return one.error
    if one.letter.topic != RESULTS:
        return f"it is of the topic {one.letter.topic}; only messages of {RESULTS} become dead letters"
    return "it was too long to be kept whole" if one.letter.cut else None


class Sent(msgspec.Struct, frozen=True):
    """A letter that was dealt with: where its message lies now; None where it was dropped."""

    place: str
    now_at: str | None = None


class Sender:
    """A producer, and what of its sending the broker has acknowledged. Made, used and closed on one thread."""

    def __init__(self, settings: KafkaSettings) -> None:
        """Raises errors.KafkaAway, where a topic is missing too: a producer would only find out after half a minute."""
        client = admin.client(settings)
        for topic in (RESULTS, DEAD_LETTERS):
            offsets.topic_id(client, topic)
        self.done: list[Sent] = []
        self._producer = clients.producer(settings, client_id="vidflow-dlq")
        clients.know_topic(self._producer, DEAD_LETTERS)
        self._failed: KafkaError | None = None

    def replay(self, letters: Iterable[Waiting]) -> None:
        """Sends each message as it was, key, bytes and headers; drops its letter once the broker has it, and never before.

        Between the two a death leaves the letter: replayed again it is a repeat, which the inbox absorbs. Raises KafkaAway.
        """
        for one in letters:
            self._send_again(one)
        self._flush()

    def drop(self, letters: Iterable[Waiting]) -> None:
        """Says of each letter that it was dealt with. Raises KafkaAway."""
        for one in letters:
            self._drop(one, None)
        self._flush()

    def _send_again(self, one: Waiting) -> None:
        letter = one.letter
        assert letter is not None, "why_not was asked"

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self._failed = error
            else:
                self._drop(one, f"{message.topic()}/{message.partition()}/{message.offset()}")

        self._produce(letter.topic, letter.value, letter.key, list(letter.headers), on_delivery)

    def _drop(self, one: Waiting, now_at: str | None) -> None:
        def on_delivery(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                self._failed = error
            else:
                self.done.append(Sent(one.place, now_at))

        self._produce(DEAD_LETTERS, None, one.key, [(clients.KIND, b"dropped")], on_delivery)

    def _produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        headers: clients.Headers,
        on_delivery: clients.Delivered,
    ) -> None:
        try:
            clients.send(self._producer, topic, value, key, headers, on_delivery)
        except KafkaException as error:
            raise errors.KafkaAway(f"{topic} does not take a message: {error.args[0]}") from error

    def _flush(self) -> None:
        unanswered = self._producer.flush(ANSWER_S)
        if unanswered:
            self._producer.purge()
        if unanswered or self._failed is not None:
            reason = self._failed.str() if self._failed is not None else f"no answer within {ANSWER_S:g} s"
            raise errors.KafkaAway(
                f"Kafka took {len(self.done)} of them and no more ({reason}); the others wait as before: give the command again"
            )
