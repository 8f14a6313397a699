"""Asks Kafka about the results' topic on a thread of its own: an answer may take many seconds while a broker is away."""

from __future__ import annotations

import datetime
import queue
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from vidflow.domain.messages import RESULTS
from vidflow.infra.kafka import admin, errors, offsets
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.process.stopping import Stop, start_thread

_CLOSE_S: Final = 1.0
"""How long a question under way may delay the end of its owner."""


class Question(msgspec.Struct, frozen=True):
    """`at` and `positions` are the database's before Kafka is asked; of `stuck` partitions the first offsets are wanted too."""

    at: datetime.datetime
    positions: Mapping[int, int]
    stuck: Sequence[int] = ()


class Look(msgspec.Struct, frozen=True):
    """The topic's id, and the offsets of those of the partitions that have a leader."""

    question: Question
    topic_id: str
    ends: dict[int, int]
    firsts: dict[int, int]


class Lookout:
    """One question at a time: `ask`, then `answer` until there is one. Used by one thread beside its own."""

    def __init__(self, settings: KafkaSettings, stop: Stop) -> None:
        self._questions = admin.Questions(settings)
        self._asked: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Look | errors.KafkaAway] = queue.SimpleQueue()
        self.busy = False
        """Whether a question is under way."""
        self._thread = start_thread("inbox lookout", self._work, stop)

    def ask(self, question: Question) -> None:
        """Begin to ask."""
        self.busy = True
        self._asked.put(question)

    def answer(self, wait_s: float = 0.0) -> Look | errors.KafkaAway | None:
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
                self._answers.put(self._look(question))
            except errors.KafkaAway as error:
                self._answers.put(error)

    def _look(self, question: Question) -> Look:
        """The id is asked for last: the offsets are then of the topic that has it, or of one with an id that nobody holds."""
        ask = self._questions.ask
        ends = ask(offsets.known_end_offsets, RESULTS, question.positions)
        firsts = ask(offsets.known_first_offsets, RESULTS, question.stuck)
        return Look(question, ask(offsets.topic_id, RESULTS), ends, firsts)
