"""The inbox's ear: messages from the results' partitions that it is given, each from the position in the table. Stores nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from vidflow.domain.errors import MessageError
from vidflow.domain.messages import RESULTS, Result, decode_result
from vidflow.infra.kafka import clients, errors
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.telemetry.logs import log

GROUP: Final = "vidflow-inbox"
BATCH: Final = 1000
AT_ONCE: Final = 200
"""How many messages are taken from the client in one call: each call costs."""
BATCH_BYTES: Final = 8 * 1024 * 1024
USUAL_BYTES: Final = 40_000
"""A message that is not longer is no reason to take fewer at once: AT_ONCE of them fill a batch."""
_log = log("inbox")
Place = Callable[[Sequence[int]], Mapping[int, int]]


class Taken(msgspec.Struct, frozen=True, gc=False):
    """A message as it lay in the log, and what it says; `error` is why it cannot be taken, where it cannot.

    `ours`: it has the headers that a worker gives its messages, so a worker sent it, and not just anybody. They cost more to
    read than all the rest, and are wanted of a dead letter alone: until then there is only `raw`, the client's own object.
    """

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    message: Result | None = None
    error: str | None = None
    ours: bool = False
    headers: clients.Headers = []
    raw: Message | None = None
    size_bytes: int = 0

    def refused(self, error: str) -> Taken:
        """The same, as one that can be read and that PostgreSQL does not take."""
        headers = self.headers if self.raw is None else clients.headers_of(self.raw)
        return msgspec.structs.replace(self, message=None, error=error, ours=True, headers=headers, raw=None)


class Reader:
    """A consumer, the positions from which its partitions go on, and the batch that is read and not stored yet.

    `place` gives the table's positions of partitions that this consumer is given; it may wait for the database.
    """

    def __init__(self, settings: KafkaSettings, protocol: str, place: Place) -> None:
        self.positions: dict[int, int] = {}
        self.batch: list[Taken] = []
        self._place = place
        self._error: BaseException | None = None
        self._paused = False
        self._committed: dict[int, int] = {}
        self._longest_bytes = BATCH_BYTES  # nothing is known yet: one at a time, then more and more
        self._consumer: Consumer = clients.consumer(settings, client_id="vidflow-inbox", group=GROUP, protocol=protocol)
        self._consumer.subscribe([RESULTS], on_assign=self._given, on_revoke=self._taken_away, on_lost=self._taken_away)

    def fill(self, wait_s: float) -> bool:
        """Adds to the batch what there is, up to its limit, waiting for the first message; whether no more was there.

        Raises errors.ClientBroken.
        """
        size = _bytes(self.batch)
        while (most := self._room(size, BATCH_BYTES, BATCH)) > 0:
            taken = self.poll(0 if self.batch else wait_s, most)
            if not taken:
                return True
            size += _bytes(taken)
        return False

    def _room(self, size_bytes: int, most_bytes: int, most: int) -> int:
        """Return how many messages to take at once into a batch of this size, so that it grows past its bytes by one at most.

        All may be as long as the longest that has come lately. Where far longer ones come all at once, the client's own queue
        is the bound.
        """
        left_bytes = most_bytes - size_bytes
        if left_bytes <= 0:
            return 0
        return min(most - len(self.batch), AT_ONCE, max(left_bytes // self._longest_bytes, 1))

    def poll(self, wait_s: float, most: int = 1) -> list[Taken]:
        """Adds to the batch what comes, up to `most`; lets the client do what it must do to stay in its group.

        Raises errors.ClientBroken.
        """
        messages = clients.take(self._consumer, most, wait_s)
        if self._error is not None:
            raise self._error
        taken = [one for message in messages if (one := self._take(message)) is not None]
        if taken:
            longest_bytes = max(one.size_bytes for one in taken)
            self._longest_bytes = max(longest_bytes, self._longest_bytes // 2, USUAL_BYTES)
        self.batch += taken
        return taken

    def _take(self, message: Message) -> Taken | None:
        """None where there is nothing to store: an error, or a message of a partition that was taken away meanwhile."""
        if (error := message.error()) is not None:
            self._trouble(error)
            return None
        partition, offset, key, value = message.partition(), message.offset(), message.key(), message.value()
        if offset < self.positions.get(partition, offset + 1):
            return None
        size_bytes = len(value or b"") + len(key or b"")
        try:
            return Taken(partition, offset, key, value, decode_result(value), raw=message, size_bytes=size_bytes)
        except MessageError as problem:
            headers = clients.headers_of(message)
            ours = {clients.KIND, clients.EPOCH} <= {name for name, _ in headers}
            size_bytes += sum(len(name) + len(content or b"") for name, content in headers)
            return Taken(
                partition, offset, key, value, None, problem.message, ours=ours, headers=headers, size_bytes=size_bytes
            )

    def read_on(self) -> None:
        """Adds to the batch some of what is there already, while the batch before it is being stored. Raises errors.ClientBroken."""
        if (most := self._room(_bytes(self.batch), 2 * BATCH_BYTES, 2 * BATCH)) > 0:
            self.poll(0, most)

    def stored(self, part: Iterable[Taken]) -> None:
        """These messages are stored; some of their partitions may have been taken away meanwhile, or given back."""
        for taken in part:
            if taken.partition in self.positions:
                self.positions[taken.partition] = taken.offset + 1
        self.batch = [taken for taken in self.batch if taken.offset >= self.positions[taken.partition]]

    def refuse(self, taken: Taken, error: str) -> None:
        """The message is one that can be read and that PostgreSQL does not take."""
        self.batch = [one.refused(error) if one is taken else one for one in self.batch]

    def begin_at(self, partition: int, offset: int) -> None:
        """Reads a partition again from another offset; what of it is read and not stored is dropped."""
        self._drop({partition})
        self.positions[partition] = offset
        try:
            self._consumer.incremental_unassign([TopicPartition(RESULTS, partition)])
            self._consumer.incremental_assign([TopicPartition(RESULTS, partition, offset)])
        except KafkaException as error:
            raise _broken(error.args[0]) from error

    def pause(self) -> None:
        """Takes no more messages, but stays in the group."""
        self._paused = True
        self._hold_or_release(self.positions)

    def resume(self) -> None:
        """Takes messages again."""
        self._paused = False
        self._hold_or_release(self.positions)

    def _hold_or_release(self, partitions: Iterable[int]) -> None:
        """Pause these partitions, or resume them. The client remembers of a partition that it lost whether it was paused."""
        places = [TopicPartition(RESULTS, partition) for partition in partitions]
        if self._paused:
            self._consumer.pause(places)
        else:
            self._consumer.resume(places)

    def show_positions(self) -> None:
        """Tells Kafka the positions, for the tools that show lag; nothing here depends on it, so no answer is awaited."""
        moved = {one: offset for one, offset in self.positions.items() if offset != self._committed.get(one)}
        if moved:
            offsets = [TopicPartition(RESULTS, partition, offset) for partition, offset in moved.items()]
            self._consumer.commit(offsets=offsets, asynchronous=True)
            self._committed.update(moved)

    def close(self) -> None:
        """Leaves the group, so that another inbox has the partitions at once."""
        self._consumer.close()

    def _given(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """An error in here would be lost in the client: it is kept, and raised by `poll`."""
        try:
            positions = self._place([one.partition for one in partitions])
            consumer.incremental_assign(
                [TopicPartition(RESULTS, number, offset) for number, offset in positions.items()]
            )
            self.positions.update(positions)
            self._hold_or_release(positions)
        except KafkaException as error:
            self._error = _broken(error.args[0])
        except BaseException as error:  # noqa: BLE001 - raised by poll
            self._error = error

    def _taken_away(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._drop({one.partition for one in partitions})
        for one in partitions:
            self.positions.pop(one.partition, None)
            self._committed.pop(one.partition, None)
        try:
            consumer.incremental_unassign(partitions)
        except KafkaException as error:
            self._error = _broken(error.args[0])

    def _drop(self, partitions: Iterable[int]) -> None:
        self.batch = [taken for taken in self.batch if taken.partition not in partitions]

    def _trouble(self, error: KafkaError) -> None:
        if error.fatal():
            raise _broken(error)
        _log.debug("consumer_error", error=error.str())  # an outage is said by the client's own callback


def _broken(error: KafkaError) -> errors.ClientBroken:
    return errors.ClientBroken(
        f"the Kafka client gave up: {error.str()}; the process must be started again "
        "(a broker that does not know the group protocol needs --group-protocol classic)"
    )


def _bytes(messages: Iterable[Taken]) -> int:
    return sum(taken.size_bytes for taken in messages)
