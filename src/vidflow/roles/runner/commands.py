"""What a runner hears: the commands of its pool's topic from the end of every partition, without a group; its own are passed on.

No rebalance delays a deployment, and a full runner holds up no partition. What was said before the runner listened was not
said to it: its id is new.
"""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Final

from confluent_kafka import Message

from vidflow.domain.errors import MessageError, Unavailable
from vidflow.domain.messages import Command, commands_topic, decode_command
from vidflow.domain.scenario import DEFAULT_POOL
from vidflow.infra.kafka import admin, clients, errors, offsets
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.process.stopping import Stop, start_thread
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.outage import kafka_outage

DEAF_S: Final = 30.0
"""Behind the ends for that long without moving: a consumer that will never hear again."""
CHECK_S: Final = 1.0
_POLL_S: Final = 0.5
_log = log("runner")


def commands_topic_id(questions: admin.Questions, pool: str) -> str:
    """Return the id of the topic of a pool's commands. Raises KafkaAway; TopicMissing names the command that makes it."""
    topic = commands_topic(pool)
    try:
        return questions.ask(offsets.topic_id, topic)
    except errors.TopicMissing as error:
        option = "" if pool == DEFAULT_POOL else f" --pool {pool}"
        raise errors.TopicMissing(
            f"the pool {pool} has no topic {topic} in Kafka; create it with: vidflow topics create{option}"
        ) from error


class Deaf(Unavailable):
    """This runner does not hear its commands any more: to be started anew."""

    default_code = "runner_deaf"


class Unreadable:
    """A message for this runner that is no command: counted as taken, and nothing else."""


Heard = Command | Unreadable


class Commands:
    """The runner's ears: a thread polls the topic, `taken` hands over what it heard. The bell wakes the thread that takes."""

    def __init__(self, settings: KafkaSettings, pool: str, runner: str, bell: Connection) -> None:
        self._pool = pool
        self._topic = commands_topic(pool)
        self._runner = runner.encode()
        self._bell = bell
        self._questions = admin.Questions(settings)
        self._consumer = clients.consumer(settings, client_id=f"vidflow-{runner}")
        self._heard: SimpleQueue[Heard] = SimpleQueue()
        self._ears = _Ears()
        self._topic_id = ""
        self._outage = kafka_outage()

    def open(self) -> None:
        """Begins to listen: from now on nothing is missed. Raises KafkaAway."""
        self._topic_id = commands_topic_id(self._questions, self._pool)
        self._questions.ask(offsets.assign_at_end, self._consumer, [self._topic])
        self._ears = _Ears({partition.partition: partition.offset for partition in self._consumer.assignment()})

    def listen(self, stop: Stop) -> None:
        """The body of the thread, until the stop.

        The stop's error is Deaf where the topic was made anew, or nothing comes although something is there: a thread of its own
        asks, since an answer may take many seconds while a broker is away.
        """
        start_thread("commands check", lambda: self._check_until(stop), stop)
        try:
            while not stop.requested:
                message = self._consumer.poll(_POLL_S)
                if message is not None:
                    self._take(message)
        finally:
            self._consumer.close()

    def taken(self) -> list[Heard]:
        """What was heard since the last time, in order."""
        heard: list[Heard] = []
        while True:
            try:
                heard.append(self._heard.get_nowait())
            except Empty:
                return heard

    def _take(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            if error.fatal():
                raise Deaf(f"this runner cannot read {self._topic} any more ({error.str()}); start it again")
            _log.debug("consumer_error", error=error.str())
            return
        self._ears.heard(message.partition() or 0, message.offset() or 0)
        if dict(clients.headers_of(message)).get(clients.RUNNER) != self._runner:
            return
        self._heard.put(self._decoded(message))
        self._bell.send_bytes(b"!")

    def _decoded(self, message: Message) -> Heard:
        try:
            return decode_command(message.value())
        except MessageError as error:
            where = f"{message.topic()}/{message.partition()}@{message.offset()}"
            _log.error(
                "command_unreadable", message=where, error=error.message, does="nothing; the leader gives it again"
            )
            return Unreadable()

    def _check_until(self, stop: Stop) -> None:
        while not stop.wait(CHECK_S):
            self._check()

    def _check(self) -> None:
        try:
            if commands_topic_id(self._questions, self._pool) != self._topic_id:
                raise Deaf(f"the topic {self._topic} was made anew; start this runner again")
            self._ears.check(
                self._questions.ask(offsets.known_end_offsets, self._topic, self._ears.partitions),
                time.monotonic(),
                self._topic,
            )
            self._outage.back()
        except errors.TopicMissing as error:
            self._outage.away(error)  # once it is made anew, its id is another one
        except errors.KafkaAway as error:
            _log.debug("not_checked", error=error.message)  # the reports notice how long it lasts


class _Ears:
    """How far each partition is read, and since when it stands still behind its end."""

    def __init__(self, positions: dict[int, int] | None = None) -> None:
        self._positions = positions or {}
        self._behind: dict[int, tuple[int, float]] = {}

    @property
    def partitions(self) -> list[int]:
        return list(self._positions)

    def heard(self, partition: int, offset: int) -> None:
        self._positions[partition] = offset + 1

    def check(self, ends: dict[int, int], now_s: float, topic: str) -> None:
        """Raises Deaf where a partition has stood still behind its end for too long."""
        for partition, end in ends.items():
            position = self._positions.get(partition, 0)
            stood_at, since_s = self._behind.get(partition, (-1, now_s))
            if position >= end:
                self._behind.pop(partition, None)
            elif stood_at != position:
                self._behind[partition] = (position, now_s)
            elif now_s - since_s > DEAF_S:
                raise Deaf(
                    f"nothing was heard of {topic}/{partition} for {DEAF_S:.0f} s behind its end; start this runner again"
                )
