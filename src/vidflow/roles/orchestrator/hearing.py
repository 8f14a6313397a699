"""What the leader hears, on a thread of its own: reports, wake-ups and its own probes.

Whether probes are heard depends on the way to Kafka and back, never on how long a tick takes. Everything is read from the end of
every partition, without a consumer group: what came before is in the tables, and what the runners do comes again within a second.
A group's standbys would hold partitions and leave the leader deaf.
"""

from __future__ import annotations

import threading
import time
from typing import Final

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

from vidflow.domain.errors import MessageError
from vidflow.domain.leader import Timing, is_news
from vidflow.domain.lease import ProbeWatch
from vidflow.domain.messages import (
    INIT_SCENARIO,
    RESULTS,
    RUNNER_EVENTS,
    Probe,
    Report,
    decode_init_scenario,
    decode_runner_event,
    encode,
)
from vidflow.infra.kafka import admin, clients, errors, offsets
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.process.stopping import Stop, start_thread
from vidflow.infra.telemetry.logs import log

PROBE_EVERY_S: Final = 0.3
"""Two in a row may be late before the hearing counts as broken (domain/lease.py, PROBE_S)."""
TOPIC_EVERY_S: Final = 2.0
MESSAGES: Final = 500
"""How many messages are taken at once."""
DEAF_S: Final = 5.0
"""After that long without probes the topics may have been deleted and created again, so the clients are replaced."""
MOST_DEAF_S: Final = 60.0
SILENT_S: Final = Timing().forget_runner_s
"""A runner that was silent for so long is forgotten, here as in the leader's memory."""
_log = log("orchestrator")


class Topic(msgspec.Struct, frozen=True):
    """A topic as it is now: after it was deleted and created again it has another id."""

    name: str
    id: str
    partitions: tuple[int, ...]


class Hearing:
    """The clients of one leadership and the threads that own them. Everything public may be called by any thread."""

    def __init__(self, settings: KafkaSettings, leader: str, stop: Stop) -> None:
        self._settings = settings
        self._leader = leader
        self._stop = stop
        self._closed = Stop()
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._last: dict[str, tuple[Report, float]] = {}
        self._unread: dict[str, tuple[Report, float]] = {}
        self._watch = ProbeWatch(frozenset())
        self._results: Topic | None = None
        self._questions = admin.Questions(settings)
        self._producer: Producer = clients.producer(settings, client_id="vidflow-leader-probes")
        self._consumer: Consumer = clients.consumer(settings, client_id="vidflow-leader")
        self._partitions: list[int] = []
        self._probed_s = float("-inf")
        self._assigned_s = 0.0
        self._patience_s = DEAF_S
        self._threads: list[threading.Thread] = []

    def open(self) -> None:
        """Begin to listen at the present ends of the topics. Raises KafkaAway, and can then be called again."""
        self._listen_at_the_ends()
        self._threads = [
            start_thread("leader hears", self._hear, self._stop),
            start_thread("leader watches topics", self._watch_topics, self._stop),
        ]

    def close(self) -> None:
        """End the threads and the clients. Probes under way are of no use to anyone."""
        self._closed.request()
        for thread in self._threads:
            thread.join()
        self._consumer.close()
        self._producer.purge()
        self._producer.poll(0)

    def wait(self, seconds: float) -> bool:
        """Wait until there is something worth a tick, at most `seconds`. Return whether there is."""
        woken = self._news.wait(seconds)
        self._news.clear()
        return woken

    def reports(self) -> list[tuple[Report, float]]:
        """Return the last report of each runner that reported since the last call, with its time of arrival."""
        with self._lock:
            unread, self._unread = self._unread, {}
        return list(unread.values())

    def hearing_since(self, now_s: float) -> float | None:
        """Return since when the probes come back without a break; None while they do not."""
        return self._watch.hearing_since(now_s)

    @property
    def results(self) -> Topic | None:
        """The topic of results as it was at most some seconds ago; None where Kafka does not say."""
        return self._results

    # --- the thread that hears

    def _hear(self) -> None:
        while not self._closed.requested:
            left_s = self._probe()
            for message in clients.take(self._consumer, MESSAGES, left_s):
                self._take(message)
            self._mind_deafness()

    def _probe(self) -> float:
        """Send a probe into each partition of runner_events where it is time to. Return the seconds until the next one."""
        now_s = time.monotonic()
        self._producer.poll(0)
        if now_s - self._probed_s < PROBE_EVERY_S:
            return PROBE_EVERY_S - (now_s - self._probed_s)
        self._probed_s = now_s
        # During an outage probes do not pile up: an old one counts for nothing.
        if len(self._producer) <= 2 * len(self._partitions):
            value = encode(Probe(self._leader, now_s))
            try:
                for partition in self._partitions:
                    self._producer.produce(RUNNER_EVENTS, value, key=self._leader, partition=partition)
            except (
                KafkaException
            ) as error:  # the topic was deleted: a probe that is not sent is not heard, and that counts
                _log.debug("probe_failed", error=str(error.args[0]))
        self._forget_silent_runners(now_s)
        return PROBE_EVERY_S

    def _take(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            _log.debug("consumer_error", code=error.code(), fatal=error.code() == KafkaError._FATAL, error=error.str())  # noqa: SLF001
            return
        try:
            self._read(message)
        except MessageError as problem:
            _log.warning(
                "message_unreadable",
                topic=message.topic(),
                partition=message.partition(),
                offset=message.offset(),
                error=problem.message,
            )

    def _read(self, message: Message) -> None:
        now_s = time.monotonic()
        if message.topic() == INIT_SCENARIO:
            decode_init_scenario(message.value())
            self._news.set()
            return
        event = decode_runner_event(message.value())
        if isinstance(event, Report):
            self._note(event, now_s)
        elif event.leader == self._leader:
            self._watch = self._watch.heard(message.partition() or 0, event.sent_s, now_s)

    def _note(self, report: Report, now_s: float) -> None:
        before, _ = self._last.get(report.runner, (None, 0.0))
        if before is not None and report.number <= before.number:
            return
        self._last[report.runner] = (report, now_s)
        with self._lock:
            self._unread[report.runner] = (report, now_s)
        if is_news(before, report):
            self._news.set()

    def _forget_silent_runners(self, now_s: float) -> None:
        silent = [runner for runner, (_, heard_s) in self._last.items() if now_s - heard_s > SILENT_S]
        for runner in silent:
            del self._last[runner]

    def _mind_deafness(self) -> None:
        now_s = time.monotonic()
        if self._watch.hearing_since(now_s) is not None:
            self._patience_s = DEAF_S
        elif now_s - max(self._assigned_s, *self._watch.newest_s.values(), 0.0) > self._patience_s:
            self._reopen()

    def _listen_at_the_ends(self) -> None:
        self._partitions = self._questions.ask(offsets.partitions, RUNNER_EVENTS)
        self._questions.ask(offsets.assign_at_end, self._consumer, [RUNNER_EVENTS, INIT_SCENARIO])
        self._watch = ProbeWatch(frozenset(self._partitions))
        self._assigned_s = time.monotonic()

    def _reopen(self) -> None:
        """Listen again, and send through another producer: one whose topic was created again may keep what it has for ever.

        Each time with more patience: on a busy machine new clients may take longer than the old ones would have.
        """
        self._assigned_s = time.monotonic()
        self._patience_s = min(2 * self._patience_s, MOST_DEAF_S)
        self._producer.purge()
        self._producer = clients.producer(self._settings, client_id="vidflow-leader-probes")
        try:
            self._listen_at_the_ends()
        except errors.KafkaAway as error:
            _log.debug("still_deaf", error=error.message)

    # --- the thread that asks the broker: its answers may take seconds

    def _watch_topics(self) -> None:
        questions = admin.Questions(self._settings)
        while True:
            try:
                topic_id = questions.ask(offsets.topic_id, RESULTS)
                self._results = Topic(RESULTS, topic_id, tuple(questions.ask(offsets.partitions, RESULTS)))
            except errors.KafkaAway as error:
                self._results = None  # nothing is caught up with a topic that nobody knows
                _log.debug("topic_unknown", topic=RESULTS, error=error.message)
            if self._closed.wait(TOPIC_EVERY_S):
                return
