"""Query the results topic on a separate thread, because Kafka's answer may take many seconds while a broker is away."""

from __future__ import annotations

import datetime
import queue
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from vidflow.domain.topics import RESULTS
from vidflow.infra.kafka import admin, errors, offsets
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.process.stopping import Stop, start_thread

_CLOSE_S: Final = 1.0
"""How long `close` waits for a running query."""


class TopicQuery(msgspec.Struct, frozen=True):
    """`asked_at` is the database's time and `positions` are the inbox's, both before Kafka is asked.

    For the partitions `stalled`, the first offsets are needed, too.
    """

    asked_at: datetime.datetime
    positions: Mapping[int, int]
    stalled: Sequence[int] = ()


class TopicSnapshot(msgspec.Struct, frozen=True):
    """The topic's id and its offsets, without the partitions that have no leader."""

    query: TopicQuery
    topic_id: str
    end_offsets: dict[int, int]
    first_offsets: dict[int, int]


class TopicInspector:
    """Answers one query at a time. Call `ask`, then `take_answer` until it returns an answer. Use it on one thread."""

    def __init__(self, settings: KafkaSettings, stop: Stop) -> None:
        self._client = admin.ReplacingAdmin(settings)
        self._queries: queue.SimpleQueue[TopicQuery | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[TopicSnapshot | errors.KafkaAway] = queue.SimpleQueue()
        self.busy = False
        """Whether a query is running, or its answer was not taken yet."""
        self._thread = start_thread("inbox topic inspector", self._work, stop)

    def ask(self, query: TopicQuery) -> None:
        """Start a query."""
        self.busy = True
        self._queries.put(query)

    def take_answer(self, wait_s: float = 0.0) -> TopicSnapshot | errors.KafkaAway | None:
        """Return the answer, or the error if Kafka gave none. Return None if there is no answer within `wait_s`."""
        try:
            answer = self._answers.get(timeout=wait_s) if wait_s else self._answers.get_nowait()
        except queue.Empty:
            return None
        self.busy = False
        return answer

    def close(self) -> None:
        """End the thread. If it is waiting for Kafka, it ends later."""
        self._queries.put(None)
        self._thread.join(_CLOSE_S)

    def _work(self) -> None:
        while (query := self._queries.get()) is not None:
            try:
                self._answers.put(self._inspect(query))
            except errors.KafkaAway as error:
                self._answers.put(error)

    def _inspect(self, query: TopicQuery) -> TopicSnapshot:
        """Return a snapshot. The id is read last: if the topic was recreated meanwhile, it is not the inbox's id."""
        ask = self._client.call
        ends = ask(offsets.read_available_end_offsets, RESULTS, query.positions)
        firsts = ask(offsets.read_available_first_offsets, RESULTS, query.stalled)
        return TopicSnapshot(query, ask(offsets.read_topic_id, RESULTS), ends, firsts)
