"""The runner's command listener: reads its pool's topic from the end of every partition and keeps the commands for this runner.

It does without a consumer group, so that no rebalance delays a deployment and a full runner blocks no partition. Commands sent
before it listened cannot be meant for it, since the runner's id is new.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Final

from confluent_kafka import Message

from vidflow.domain.errors import MessageError, Unavailable
from vidflow.domain.messages import Command, decode_command
from vidflow.domain.scenario import DEFAULT_POOL
from vidflow.domain.stalls import STALL_TIMEOUT_S, StallWatch
from vidflow.domain.topics import commands_topic
from vidflow.infra.kafka import admin, clients, errors, offsets
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.process.stopping import Stop, start_thread
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.outage import kafka_outage

CHECK_INTERVAL_S: Final = 1.0
_POLL_S: Final = 0.5
_log = log("runner")


def commands_topic_id(admin_client: admin.ReplacingAdmin, pool: str) -> str:
    """Return the id of the pool's commands topic. Raises KafkaAway, or TopicMissing with the command that creates the topic."""
    topic = commands_topic(pool)
    try:
        return admin_client.call(offsets.read_topic_id, topic)
    except errors.TopicMissing as error:
        option = "" if pool == DEFAULT_POOL else f" --pool {pool}"
        raise errors.TopicMissing(
            f"Pool {pool} has no topic {topic} in Kafka. Create it with: vidflow topics create{option}"
        ) from error


class CommandConsumerFailed(Unavailable):
    """The runner no longer receives its commands and must be restarted."""

    default_code = "commands_unreadable"


class UnreadableCommand:
    """A message for this runner that cannot be decoded. It only counts as taken."""


ReceivedCommand = Command | UnreadableCommand


class CommandListener:
    """Polls the topic on its own thread and queues commands for `take_commands`. A byte in `wakeup_writer` announces each one."""

    def __init__(self, settings: KafkaSettings, pool: str, runner: str, wakeup_writer: Connection) -> None:
        self._pool = pool
        self._topic = commands_topic(pool)
        self._runner = runner.encode()
        self._wakeup_writer = wakeup_writer
        self._admin = admin.ReplacingAdmin(settings)
        self._consumer = clients.create_consumer(settings, client_id=f"vidflow-{runner}")
        self._received: SimpleQueue[ReceivedCommand] = SimpleQueue()
        self._positions: dict[int, int] = {}
        self._stall_watch = StallWatch()
        self._topic_id = ""
        self._outage = kafka_outage()

    def open(self) -> None:
        """Start to listen. No command sent after this call is missed. Raises KafkaAway."""
        self._topic_id = commands_topic_id(self._admin, self._pool)
        self._admin.call(offsets.assign_at_end, self._consumer, [self._topic])
        self._positions = {place.partition: place.offset for place in self._consumer.assignment()}

    def listen(self, stop: Stop) -> None:
        """Poll the topic until a stop is requested. This is the body of the listener's thread.

        A second thread checks the listener, since the broker's answers may take many seconds. It sets `stop.error` to
        CommandConsumerFailed if the topic was recreated, or if available messages do not arrive.
        """
        start_thread("commands check", lambda: self._check_until(stop), stop)
        try:
            while not stop.requested:
                message = self._consumer.poll(_POLL_S)
                if message is not None:
                    self._handle_message(message)
        finally:
            self._consumer.close()

    def take_commands(self) -> list[ReceivedCommand]:
        """Return the commands received since the last call, in order."""
        received: list[ReceivedCommand] = []
        while True:
            try:
                received.append(self._received.get_nowait())
            except Empty:
                return received

    def _handle_message(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            if error.fatal():
                raise CommandConsumerFailed(
                    f"This runner can no longer read topic {self._topic} ({error.str()}). Restart it."
                )
            _log.debug("consumer_error", error=error.str())
            return
        self._positions[message.partition()] = message.offset() + 1
        if dict(clients.read_headers(message)).get(clients.RUNNER_HEADER) != self._runner:
            return
        self._received.put(self._decode(message))
        self._wakeup_writer.send_bytes(b"!")

    def _decode(self, message: Message) -> ReceivedCommand:
        try:
            return decode_command(message.value())
        except MessageError as error:
            place = f"{message.topic()}/{message.partition()}@{message.offset()}"
            _log.error(
                "command_unreadable", message=place, error=error.message, does="nothing; the leader sends it again"
            )
            return UnreadableCommand()

    def _check_until(self, stop: Stop) -> None:
        while not stop.wait(CHECK_INTERVAL_S):
            self._check()

    def _check(self) -> None:
        try:
            if commands_topic_id(self._admin, self._pool) != self._topic_id:
                raise CommandConsumerFailed(f"Topic {self._topic} was deleted and created again. Restart this runner.")
            self._require_messages(
                self._admin.call(offsets.read_available_end_offsets, self._topic, list(self._positions))
            )
            self._outage.end()
        except errors.TopicMissing as error:
            self._outage.begin(error)  # the topic has another id when it comes back
        except errors.KafkaAway as error:
            _log.debug("not_checked", error=error.message)  # ReportSender measures how long the outage lasts

    def _require_messages(self, ends: Mapping[int, int]) -> None:
        """Raise CommandConsumerFailed if a partition has available messages and none of them has arrived for too long."""
        now_s = time.monotonic()
        lagging = {number: position for number, end in ends.items() if (position := self._positions[number]) < end}
        self._stall_watch.observe(lagging, now_s)
        for partition in self._stall_watch.list_stalled(now_s, STALL_TIMEOUT_S):
            raise CommandConsumerFailed(
                f"No message arrived from {self._topic}/{partition} for {STALL_TIMEOUT_S:.0f} s although some are available. "
                "Restart this runner."
            )
