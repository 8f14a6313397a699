"""Late and reordered copies of Kafka messages, such as a relay or producer that was frozen could cause."""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final

from confluent_kafka import Consumer, Message, Producer

from vidflow.infra.kafka import admin, clients, offsets
from vidflow.infra.kafka.settings import KafkaSettings

COPY_HEADER: Final = "copy"
"""Marks a copy, which is not copied again."""
POLL_S: Final = 0.02


class MessageDuplicator:
    """Read topics on a thread and send each message once more after a random delay of up to `late_s` seconds."""

    def __init__(self, settings: KafkaSettings, topics: Collection[str], seed: int, late_s: float) -> None:
        self.sent = 0
        self.copies_reordered = 0
        """Copies sent after the copy of a later message with the same key."""
        self._chance = random.Random(seed)  # noqa: S311
        self._late_s = late_s
        self._waiting: list[tuple[float, int, Message]] = []
        self._read = 0
        self._newest: dict[tuple[str, bytes], int] = {}
        self._over = threading.Event()
        self._producer: Producer = clients.create_producer(settings, client_id="copies")
        self._reader: Consumer = clients.create_consumer(settings, client_id="copies")
        offsets.assign_at_end(admin.create_admin(settings), self._reader, topics)
        self._thread = threading.Thread(target=self._run, name="copies")
        self._thread.start()

    def close(self) -> None:
        """Send all waiting copies at once and stop."""
        self._over.set()
        self._thread.join()
        self._reader.close()
        assert self._producer.flush(10) == 0

    def _run(self) -> None:
        while not self._over.is_set():
            self._take(self._reader.poll(POLL_S))
            self._send_due(time.monotonic())
        self._send_due(float("inf"))

    def _take(self, message: Message | None) -> None:
        if message is None or message.error() is not None:
            return
        if COPY_HEADER not in dict(clients.read_headers(message)):
            due_s = time.monotonic() + self._chance.uniform(0, self._late_s)
            heapq.heappush(self._waiting, (due_s, self._read, message))
            self._read += 1

    def _send_due(self, now_s: float) -> None:
        while self._waiting and self._waiting[0][0] <= now_s:
            _, number, message = heapq.heappop(self._waiting)
            topic, key = message.topic() or "", message.key() or b""
            headers = [*clients.read_headers(message), (COPY_HEADER, b"1")]
            self._producer.produce(topic, message.value(), key, headers=headers)
            self._producer.poll(0)
            self.sent += 1
            self.copies_reordered += number < self._newest.get((topic, key), 0)
            self._newest[topic, key] = max(number, self._newest.get((topic, key), 0))


@contextmanager
def duplicated_messages(
    settings: KafkaSettings, topics: Collection[str], *, seed: int, late_s: float
) -> Iterator[MessageDuplicator]:
    """Send copies of all messages in the topics while the block runs."""
    duplicator = MessageDuplicator(settings, topics, seed, late_s)
    try:
        yield duplicator
    finally:
        duplicator.close()
