"""Read the results topic: each assigned partition from its stored position. Storing the messages is in storing.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from vidflow.domain.errors import MessageError
from vidflow.domain.messages import Result, decode_result
from vidflow.domain.topics import RESULTS
from vidflow.infra.kafka import clients, errors
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.telemetry.logs import log

GROUP: Final = "vidflow-inbox"
BATCH_MESSAGES: Final = 1000
POLL_MESSAGES: Final = 200
"""Most messages that one call takes from the client. Each call has a cost."""
BATCH_BYTES: Final = 8 * 1024 * 1024
USUAL_BYTES: Final = 40_000
"""Messages up to this size do not reduce the number taken at once: POLL_MESSAGES of them fill a batch."""
CLOSE_S: Final = 10.0
_log = log("inbox")
PositionLookup = Callable[[Sequence[int]], Mapping[int, int]]


class ReceivedMessage(msgspec.Struct, frozen=True, gc=False):
    """A message of the log and its decoded content. `error` says why it cannot be stored, None if it can.

    `from_worker`: whether it has the headers that workers set. `raw` is the client's own object. The headers are read from it only
    for a dead letter, because that costs more than everything else.
    """

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    result: Result | None = None
    error: str | None = None
    from_worker: bool = False
    headers: clients.Headers = []
    raw: Message | None = None
    size_bytes: int = 0

    def with_error(self, error: str) -> ReceivedMessage:
        """Return this message as one that was decoded but rejected by PostgreSQL."""
        headers = self.headers if self.raw is None else clients.read_headers(self.raw)
        return msgspec.structs.replace(self, result=None, error=error, from_worker=True, headers=headers, raw=None)


class Reader:
    """A consumer of the results topic, the positions of its partitions, and the batch that is read but not stored.

    A partition's position is the offset of its first message that is not stored. `read_positions` returns the positions in the
    database for newly assigned partitions. It may wait for the database.
    """

    def __init__(self, settings: KafkaSettings, protocol: str, read_positions: PositionLookup) -> None:
        self.positions: dict[int, int] = {}
        self.batch: list[ReceivedMessage] = []
        self._read_positions = read_positions
        self._error: BaseException | None = None
        self._paused = False
        self._committed: dict[int, int] = {}
        self._longest_bytes = BATCH_BYTES  # sizes are unknown: take one message at first, then more and more
        self._consumer: Consumer = clients.create_consumer(
            settings, client_id="vidflow-inbox", group=GROUP, protocol=protocol
        )
        self._consumer.subscribe(
            [RESULTS], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
        )

    def fill(self, wait_s: float, collect_until_s: float = 0.0) -> bool:
        """Add available messages to the batch up to its limit. If the batch is empty, wait for the first one.

        More messages are waited for until `collect_until_s` of the monotonic clock. Returns whether all available messages were
        read. Raises errors.ClientBroken.
        """
        size_bytes = _total_bytes(self.batch)
        while (limit := self._compute_poll_limit(size_bytes, BATCH_BYTES, BATCH_MESSAGES)) > 0:
            remaining_s = collect_until_s - time.monotonic()
            if self.batch and remaining_s > 0:
                received = self._add(self._consumer.consume(limit, remaining_s))
            elif not (received := self.poll(0 if self.batch else wait_s, limit)):
                return True
            size_bytes += _total_bytes(received)
        return False

    def _compute_poll_limit(self, size_bytes: int, max_bytes: int, max_messages: int) -> int:
        """Return how many messages to take at once, so that a batch exceeds its `max_bytes` by one message at most.

        Assumes messages as long as the longest recent one. If much longer ones arrive all at once, the client's own queue is
        the limit.
        """
        remaining_bytes = max_bytes - size_bytes
        if remaining_bytes <= 0:
            return 0
        return min(max_messages - len(self.batch), POLL_MESSAGES, max(remaining_bytes // self._longest_bytes, 1))

    def poll(self, wait_s: float, limit: int = 1) -> list[ReceivedMessage]:
        """Add up to `limit` messages to the batch, and let the client do what keeps it in its group.

        Returns the added messages. Raises errors.ClientBroken.
        """
        return self._add(clients.consume_available(self._consumer, limit, wait_s))

    def _add(self, messages: Iterable[Message]) -> list[ReceivedMessage]:
        """Add messages that the client returned to the batch, and return them. Raises what a callback of the client raised."""
        if self._error is not None:
            raise self._error
        received = [decoded for message in messages if (decoded := self._decode_message(message)) is not None]
        if received:
            longest_bytes = max(message.size_bytes for message in received)
            self._longest_bytes = max(longest_bytes, self._longest_bytes // 2, USUAL_BYTES)
        self.batch += received
        return received

    def _decode_message(self, message: Message) -> ReceivedMessage | None:
        """Decode a message. Return None for a client error, or a message of a partition that was revoked meanwhile."""
        if (error := message.error()) is not None:
            self._handle_error(error)
            return None
        partition, offset, key, value = message.partition(), message.offset(), message.key(), message.value()
        if offset < self.positions.get(partition, offset + 1):
            return None
        size_bytes = len(value or b"") + len(key or b"")
        try:
            return ReceivedMessage(
                partition, offset, key, value, decode_result(value), raw=message, size_bytes=size_bytes
            )
        except MessageError as decode_error:
            headers = clients.read_headers(message)
            from_worker = {clients.KIND_HEADER, clients.EPOCH_HEADER} <= {name for name, _ in headers}
            size_bytes += sum(len(name) + len(content or b"") for name, content in headers)
            return ReceivedMessage(
                partition,
                offset,
                key,
                value,
                None,
                decode_error.message,
                from_worker=from_worker,
                headers=headers,
                size_bytes=size_bytes,
            )

    def prefetch(self) -> None:
        """Add some available messages to the batch while its first part is being stored. Raises errors.ClientBroken."""
        if (limit := self._compute_poll_limit(_total_bytes(self.batch), 2 * BATCH_BYTES, 2 * BATCH_MESSAGES)) > 0:
            self.poll(0, limit)

    def mark_stored(self, part: Iterable[ReceivedMessage]) -> None:
        """Move the positions past stored messages and drop these from the batch. Revoked partitions are ignored."""
        for message in part:
            if message.partition in self.positions:
                self.positions[message.partition] = message.offset + 1
        self.batch = [message for message in self.batch if message.offset >= self.positions[message.partition]]

    def refuse(self, refused: ReceivedMessage, error: str) -> None:
        """Turn a message of the batch that PostgreSQL rejects into one with an error, for a dead letter."""
        self.batch = [message.with_error(error) if message is refused else message for message in self.batch]

    def seek(self, partition: int, offset: int) -> None:
        """Continue a partition at another offset. Its messages in the batch are dropped."""
        self._drop({partition})
        self.positions[partition] = offset
        try:
            self._consumer.incremental_unassign([TopicPartition(RESULTS, partition)])
            self._consumer.incremental_assign([TopicPartition(RESULTS, partition, offset)])
        except KafkaException as error:
            raise _build_client_broken(error.args[0]) from error

    def pause(self) -> None:
        """Take no more messages, but stay in the group."""
        self._paused = True
        self._apply_pause(self.positions)

    def resume(self) -> None:
        """Take messages again."""
        self._paused = False
        self._apply_pause(self.positions)

    def _apply_pause(self, partitions: Iterable[int]) -> None:
        """Pause or resume partitions. Newly assigned ones need it, too: the client keeps the pause of a revoked partition."""
        places = [TopicPartition(RESULTS, partition) for partition in partitions]
        if self._paused:
            self._consumer.pause(places)
        else:
            self._consumer.resume(places)

    def commit_positions(self) -> None:
        """Commit the positions to Kafka without waiting. Only tools that show the lag use them."""
        moved = {number: offset for number, offset in self.positions.items() if offset != self._committed.get(number)}
        if moved:
            offsets = [TopicPartition(RESULTS, partition, offset) for partition, offset in moved.items()]
            self._consumer.commit(offsets=offsets, asynchronous=True)
            self._committed.update(moved)

    def close(self) -> None:
        """Leave the group, so that another inbox gets the partitions at once.

        A client that does not manage this within CLOSE_S is left to itself. The group removes it when it polls no more.
        """
        closing = threading.Thread(target=self._consumer.close, name="inbox consumer close", daemon=True)
        closing.start()
        closing.join(CLOSE_S)

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Start the assigned partitions at their positions. `poll` raises an error from here, which the client would ignore."""
        try:
            positions = self._read_positions([place.partition for place in partitions])
            consumer.incremental_assign(
                [TopicPartition(RESULTS, number, offset) for number, offset in positions.items()]
            )
            self.positions.update(positions)
            self._apply_pause(positions)
        except KafkaException as error:
            self._error = _build_client_broken(error.args[0])
        except BaseException as error:  # noqa: BLE001 - raised by poll
            self._error = error

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._drop({place.partition for place in partitions})
        for place in partitions:
            self.positions.pop(place.partition, None)
            self._committed.pop(place.partition, None)
        try:
            consumer.incremental_unassign(partitions)
        except KafkaException as error:
            self._error = _build_client_broken(error.args[0])

    def _drop(self, partitions: Iterable[int]) -> None:
        self.batch = [message for message in self.batch if message.partition not in partitions]

    def _handle_error(self, error: KafkaError) -> None:
        if error.fatal():
            raise _build_client_broken(error)
        _log.debug("consumer_error", error=error.str())  # the client's error callback logs an outage


def _build_client_broken(error: KafkaError) -> errors.ClientBroken:
    return errors.ClientBroken(
        f"The Kafka client failed permanently: {error.str()}. Restart the process. "
        "A broker older than 4.0 needs --group-protocol classic."
    )


def _total_bytes(messages: Iterable[ReceivedMessage]) -> int:
    return sum(message.size_bytes for message in messages)
