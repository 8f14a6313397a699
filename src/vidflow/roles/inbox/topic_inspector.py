"""Asks Kafka about the results' topic on a thread of its own: an answer may take many seconds while a broker is away."""

from __future__ import annotations

import datetime
import queue
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from vidflow.domain.messages import RESULTS
from vidflow.infra.kafka import admin, errors, offsets, settings
from vidflow.infra.process.stopping import Stop, start_thread

_CLOSE_S: Final = 1.0
"""How long a question under way may delay the end of its owner."""


class TopicQuery(msgspec.Struct, frozen=True):
    """`asked_at` and `positions` are the database's before Kafka is asked; of `stuck` partitions the first offsets are wanted too."""

    asked_at: datetime.datetime
    positions: Mapping[int, int]
    stuck: Sequence[int] = ()


class TopicSnapshot(msgspec.Struct, frozen=True):
    """The topic's id, and the offsets of those of the partitions that have a leader."""

    query: TopicQuery
    topic_id: str
    end_offsets: dict[int, int]
    first_offsets: dict[int, int]


class TopicInspector:
    """One question at a time: `call`, then `take_answer` until there is one. Used by one thread beside its own."""

    def __init__(self, settings: settings.KafkaSettings, stop: Stop) -> None:
        self._questions = admin.ReplacingAdmin(settings)
        self._asked: queue.SimpleQueue[TopicQuery | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[TopicSnapshot | errors.KafkaAway] = queue.SimpleQueue()
        self.busy = False
        """Whether a question is under way."""
        self._thread = start_thread("inbox lookout", self._work, stop)

    def ask(self, question: TopicQuery) -> None:
        """Begin to ask."""
        self.busy = True
        self._asked.put(question)

    def take_answer(self, wait_s: float = 0.0) -> TopicSnapshot | errors.KafkaAway | None:
        """Return the answer, or why Kafka gave none; None while it is not there."""
        try:
            found = self._answers.get(timeout=wait_s) if wait_s else self._answers.get_nowait()
        except queue.Empty:
            return None
        self.busy = False
        return found

    def close(self) -> None:
        """End the thread; one that waits for Kafka ends by itself later."""
        self._asked.put(None)
        self._thread.join(_CLOSE_S)

    def _work(self) -> None:
        while (question := self._asked.get()) is not None:
            try:
                self._answers.put(self._inspect(question))
            except errors.KafkaAway as error:
                self._answers.put(error)

    def _inspect(self, question: TopicQuery) -> TopicSnapshot:
        """The id is asked for last: the offsets are then of the topic that has it, or of one with an id that nobody holds."""
        ask = self._questions.call
        ends = ask(offsets.read_available_end_offsets, RESULTS, question.positions)
        firsts = ask(offsets.read_available_first_offsets, RESULTS, question.stuck)
        return TopicSnapshot(question, ask(offsets.read_topic_id, RESULTS), ends, firsts)
