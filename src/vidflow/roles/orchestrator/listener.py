"""The leader's Kafka listener: reports of the runners, wake-ups and the leader's own probes.

It has its own thread, so that the return of probes depends on the path to Kafka and not on the length of a tick. It reads every
partition from its end and without a consumer group. Earlier events are already in the tables, and runners repeat their state
every second. In a group, standbys would hold partitions that the leader needs to read.
"""

from __future__ import annotations

import threading
import time
from typing import Final

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

from vidflow.domain.errors import MessageError
from vidflow.domain.leader import Timing, needs_tick
from vidflow.domain.lease import ProbeWatch
from vidflow.domain.messages import Probe, Report, decode_init_scenario, decode_runner_event, encode
from vidflow.domain.topics import INIT_SCENARIO, RESULTS, RUNNER_EVENTS
from vidflow.infra.kafka import admin, clients, errors, offsets
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.process.stopping import Stop, start_thread
from vidflow.infra.telemetry.logs import log

PROBE_INTERVAL_S: Final = 0.3
"""Short enough that probes count as interrupted only after two in a row are late (PROBE_MAX_AGE_S in domain/lease.py)."""
TOPIC_CHECK_INTERVAL_S: Final = 2.0
POLL_MESSAGES: Final = 500
"""Messages per poll."""
REOPEN_AFTER_S: Final = 5.0
"""Without probes for this long, the topics may have been deleted and created again: replace the clients."""
MAX_REOPEN_AFTER_S: Final = 60.0
SILENT_S: Final = Timing().forget_runner_s
"""Silence after which a runner is forgotten, here as in the leader's state."""
_log = log("orchestrator")


class Topic(msgspec.Struct, frozen=True):
    """A topic and its current id. A topic that is deleted and created again gets another id."""

    name: str
    id: str
    partitions: tuple[int, ...]


class LeaderListener:
    """The Kafka clients of one leader term and the threads that own them. Public methods are thread-safe."""

    def __init__(self, settings: KafkaSettings, leader: str, stop: Stop) -> None:
        self._settings = settings
        self._leader = leader
        self._stop = stop
        self._closed = Stop()
        self._lock = threading.Lock()
        self._wakeup = threading.Event()
        self._last: dict[str, tuple[Report, float]] = {}
        self._unread: dict[str, tuple[Report, float]] = {}
        self._watch = ProbeWatch(frozenset())
        self._results_topic: Topic | None = None
        self._admin = admin.ReplacingAdmin(settings)
        self._producer: Producer = clients.create_producer(settings, client_id="vidflow-leader-probes")
        self._consumer: Consumer = clients.create_consumer(settings, client_id="vidflow-leader")
        self._partitions: list[int] = []
        self._probed_s = float("-inf")
        self._assigned_s = 0.0
        self._reopen_after_s = REOPEN_AFTER_S
        self._threads: list[threading.Thread] = []

    def open(self) -> None:
        """Start to listen at the current ends of the topics. Raises KafkaAway; the call can then be repeated."""
        self._assign_at_end()
        self._threads = [
            start_thread("leader listener", self._listen, self._stop),
            start_thread("leader topic watch", self._watch_topics, self._stop),
        ]

    def close(self) -> None:
        """End the threads and close the clients. Probes in flight are discarded."""
        self._closed.request()
        for thread in self._threads:
            thread.join()
        self._consumer.close()
        self._producer.purge()
        self._producer.poll(0)

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds` for something that is worth a tick. Return whether there is."""
        woken = self._wakeup.wait(seconds)
        self._wakeup.clear()
        return woken

    def take_reports(self) -> list[tuple[Report, float]]:
        """Return the last report of each runner that has reported since the last call, with its arrival time (monotonic)."""
        with self._lock:
            unread, self._unread = self._unread, {}
        return list(unread.values())

    def probes_ok_since(self, now_s: float) -> float | None:
        """Return the time since which probes have come back without a break, or None while they do not."""
        return self._watch.probes_received_since(now_s)

    @property
    def results_topic(self) -> Topic | None:
        """The results topic, at most a few seconds old; None while Kafka does not answer."""
        return self._results_topic

    # --- the listener thread

    def _listen(self) -> None:
        while not self._closed.requested:
            left_s = self._probe()
            for message in clients.consume_available(self._consumer, POLL_MESSAGES, left_s):
                self._handle_message(message)
            self._reopen_if_probes_missing()

    def _probe(self) -> float:
        """Send a probe to each partition of runner_events if one is due. Return the seconds until the next one is."""
        now_s = time.monotonic()
        self._producer.poll(0)
        if now_s - self._probed_s < PROBE_INTERVAL_S:
            return PROBE_INTERVAL_S - (now_s - self._probed_s)
        self._probed_s = now_s
        # During an outage probes must not accumulate: old ones do not count.
        if len(self._producer) <= 2 * len(self._partitions):
            value = encode(Probe(self._leader, now_s))
            try:
                for partition in self._partitions:
                    self._producer.produce(RUNNER_EVENTS, value, key=self._leader, partition=partition)
            except KafkaException as error:
                # The topic was deleted. The missing probe itself shows that.
                _log.debug("probe_failed", error=str(error.args[0]))
        self._forget_silent_runners(now_s)
        return PROBE_INTERVAL_S

    def _handle_message(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            _log.debug("consumer_error", code=error.code(), fatal=error.code() == KafkaError._FATAL, error=error.str())  # noqa: SLF001
            return
        try:
            self._dispatch(message)
        except MessageError as problem:
            _log.warning(
                "message_unreadable",
                topic=message.topic(),
                partition=message.partition(),
                offset=message.offset(),
                error=problem.message,
            )

    def _dispatch(self, message: Message) -> None:
        now_s = time.monotonic()
        if message.topic() == INIT_SCENARIO:
            decode_init_scenario(message.value())
            self._wakeup.set()
            return
        event = decode_runner_event(message.value())
        if isinstance(event, Report):
            self._record_report(event, now_s)
        elif event.leader == self._leader:
            self._watch = self._watch.record_probe(message.partition() or 0, event.sent_s, now_s)

    def _record_report(self, report: Report, now_s: float) -> None:
        previous, _ = self._last.get(report.runner, (None, 0.0))
        if previous is not None and report.number <= previous.number:
            return
        self._last[report.runner] = (report, now_s)
        with self._lock:
            self._unread[report.runner] = (report, now_s)
        if needs_tick(previous, report):
            self._wakeup.set()

    def _forget_silent_runners(self, now_s: float) -> None:
        silent = [runner for runner, (_, received_s) in self._last.items() if now_s - received_s > SILENT_S]
        for runner in silent:
            del self._last[runner]

    def _reopen_if_probes_missing(self) -> None:
        now_s = time.monotonic()
        if self._watch.probes_received_since(now_s) is not None:
            self._reopen_after_s = REOPEN_AFTER_S
        elif now_s - max(self._assigned_s, *self._watch.newest_s.values(), 0.0) > self._reopen_after_s:
            self._reopen()

    def _assign_at_end(self) -> None:
        self._partitions = self._admin.call(offsets.read_partitions, RUNNER_EVENTS)
        self._admin.call(offsets.assign_at_end, self._consumer, [RUNNER_EVENTS, INIT_SCENARIO])
        self._watch = ProbeWatch(frozenset(self._partitions))
        self._assigned_s = time.monotonic()

    def _reopen(self) -> None:
        """Assign the partitions again and replace the producer: after its topic was recreated, it may never send what it holds.

        Each reopening doubles the time until the next: on a busy machine new clients may need longer than the old ones would.
        """
        self._assigned_s = time.monotonic()
        self._reopen_after_s = min(2 * self._reopen_after_s, MAX_REOPEN_AFTER_S)
        self._producer.purge()
        self._producer = clients.create_producer(self._settings, client_id="vidflow-leader-probes")
        try:
            self._assign_at_end()
        except errors.KafkaAway as error:
            _log.debug("reopen_failed", error=error.message)

    # --- the thread that queries the broker, whose answers may take seconds

    def _watch_topics(self) -> None:
        admin_client = admin.ReplacingAdmin(self._settings)
        while True:
            try:
                topic_id = admin_client.call(offsets.read_topic_id, RESULTS)
                self._results_topic = Topic(
                    RESULTS, topic_id, tuple(admin_client.call(offsets.read_partitions, RESULTS))
                )
            except errors.KafkaAway as error:
                self._results_topic = None  # without the topic, the inbox cannot count as caught up
                _log.debug("topic_unknown", topic=RESULTS, error=error.message)
            if self._closed.wait(TOPIC_CHECK_INTERVAL_S):
                return
