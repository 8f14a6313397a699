"""What the leader hears: reports, wake-ups and its own probes, from the end of every partition, without a consumer group.

What came before is in the tables, and what the runners do comes again within a second. A group's standbys would hold
partitions and leave the leader deaf.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

from vidflow.domain.errors import MessageError
from vidflow.domain.lease import ProbeWatch
from vidflow.domain.messages import (
    INIT_SCENARIO,
    RUNNER_EVENTS,
    Probe,
    Report,
    decode_init_scenario,
    decode_runner_event,
    encode,
)
from vidflow.infra import kafka
from vidflow.infra.telemetry import log

PROBE_EVERY_S: Final = 0.5
DEAF_S: Final = 5.0
"""Probes missing for that long: perhaps the topics were made anew, so the clients are."""
MOST_DEAF_S: Final = 60.0
_log = log("orchestrator")


class Ears:
    """A consumer at the ends of the topics and a producer for probes: made anew by each leader, used by its one thread."""

    def __init__(self, settings: kafka.KafkaSettings, leader: str) -> None:
        self._settings = settings
        self._leader = leader
        self._questions = kafka.Questions(settings)
        self._producer: Producer = kafka.producer(settings, client_id="vidflow-leader-probes")
        self._consumer: Consumer = kafka.consumer(settings, client_id="vidflow-leader")
        self._probed_s = 0.0
        self._assigned_s = 0.0
        self._patience_s = DEAF_S
        self._partitions: list[int] = []
        self.watch = ProbeWatch(frozenset())

    def open(self) -> None:
        """Begins to listen at the present ends. Raises KafkaAway."""
        self._partitions = self._questions.ask(kafka.partitions, RUNNER_EVENTS)
        self._questions.ask(kafka.assign_at_end, self._consumer, [RUNNER_EVENTS, INIT_SCENARIO])
        self.watch = ProbeWatch(frozenset(self._partitions))
        self._assigned_s = time.monotonic()

    def close(self) -> None:
        """Lets go of the broker. Probes that are under way are of no use to anyone."""
        self._consumer.close()
        self._producer.purge()
        self._producer.poll(0)

    def listen(self, seconds: float, hear: Callable[[Report], bool]) -> None:
        """Listens for at most `seconds`; returns as soon as something is worth a tick: a wake-up, or a report of which
        `hear` says that it tells something new."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self.probe()
            messages = self._consumer.consume(500, min(left_s, PROBE_EVERY_S / 2))
            woken = [
                self._take(message, hear) for message in messages
            ]  # all are taken, also behind the first that wakes
            if any(woken):
                return

    def probe(self) -> None:
        """Sends a probe into each partition of runner_events, where the last ones are old enough."""
        now_s = time.monotonic()
        self._producer.poll(0)
        if now_s - self._probed_s < PROBE_EVERY_S:
            return
        self._probed_s = now_s
        # Probes of an outage are not piled up: an old one counts for nothing.
        if len(self._producer) > 2 * len(self._partitions):
            return
        value = encode(Probe(self._leader, now_s))
        try:
            for partition in self._partitions:
                self._producer.produce(RUNNER_EVENTS, value, key=self._leader, partition=partition)
        except KafkaException as error:  # the topic was deleted: a probe that is not sent is not heard, and that counts
            _log.debug("probe_failed", error=str(error.args[0]))

    def hearing_since(self, now_s: float) -> float | None:
        """Since when the probes come back without a break; None while they do not."""
        since_s = self.watch.hearing_since(now_s)
        if since_s is not None:
            self._patience_s = DEAF_S
        elif now_s - max(self._assigned_s, *self.watch.newest_s.values(), 0.0) > self._patience_s:
            self._reopen()
        return since_s

    def results_topic(self, topic: str) -> tuple[str, list[int]]:
        """The topic's present id and its partitions. Raises KafkaAway."""
        return self._questions.ask(kafka.topic_id, topic), self._questions.ask(kafka.partitions, topic)

    def _reopen(self) -> None:
        """Listens anew, and speaks by another producer: one whose topic was made anew may keep what it has for ever.

        Each time with more patience: on a busy machine new clients may take longer than the old ones would have.
        """
        self._assigned_s = time.monotonic()
        self._patience_s = min(2 * self._patience_s, MOST_DEAF_S)
        self._producer.purge()
        self._producer = kafka.producer(self._settings, client_id="vidflow-leader-probes")
        try:
            self.open()
        except kafka.KafkaAway as error:
            _log.debug("still_deaf", error=error.message)

    def _take(self, message: Message, hear: Callable[[Report], bool]) -> bool:
        error = message.error()
        if error is not None:
            _log.debug("consumer_error", code=error.code(), fatal=error.code() == KafkaError._FATAL, error=error.str())  # noqa: SLF001
            return False
        try:
            return self._read(message, hear)
        except MessageError as problem:
            _log.warning(
                "message_unreadable",
                topic=message.topic(),
                partition=message.partition(),
                offset=message.offset(),
                error=problem.message,
            )
            return False

    def _read(self, message: Message, hear: Callable[[Report], bool]) -> bool:
        if message.topic() == INIT_SCENARIO:
            decode_init_scenario(message.value())
            return True
        event = decode_runner_event(message.value())
        if isinstance(event, Report):
            return hear(event)
        if event.leader == self._leader:
            self.watch = self.watch.heard(message.partition() or 0, event.sent_s, time.monotonic())
        return False
