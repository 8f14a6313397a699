"""The loop of the inbox: read, store, and say up to which moment all is stored. What a message means is domain/progress.py.

One thread. While the database is away it takes no message but stays in its group; what it has read and not stored waits.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import Final

import psycopg

from vidflow.domain.errors import Unavailable
from vidflow.domain.messages import RESULTS
from vidflow.infra.kafka import admin, errors, offsets
from vidflow.infra.postgres import inbox_partitions
from vidflow.infra.postgres.connection import ANSWER_LIMIT_S, Connection, connect, has_hung_up
from vidflow.infra.postgres.errors import is_away, is_conflict, is_refused
from vidflow.infra.postgres.migrations import wait_for_schema
from vidflow.infra.postgres.stalled import end_stalled
from vidflow.infra.process.stopping import Stop
from vidflow.infra.telemetry import metrics
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.outage import kafka_outage, postgres_outage, require_kafka, require_postgres
from vidflow.roles.inbox import storing
from vidflow.roles.inbox.lookout import Look, Lookout, Question
from vidflow.roles.inbox.reader import BATCH, Reader, Taken
from vidflow.settings import InboxOptions

POLL_S: Final = 0.05
LOOK_S: Final = 1.0
DRAINED_LOOK_S: Final = 0.1
"""How soon after the last look a drained partition is worth another one."""
RETRY_S: Final = 0.2
ANSWER_S: Final = 0.02
"""How long a question to Kafka is waited for at once; a longer answer is taken when it is there."""
STUCK_S: Final = 3.0
"""How long a position may stand short of the log's end, with nothing to read, before the log itself is looked at."""
_log = log("inbox")


class TopicMadeAnew(Unavailable):
    """The topic has another id than at the start: its offsets mean other messages now."""

    default_code = "topic_made_anew"


def run(options: InboxOptions, stop: Stop) -> None:
    """Stores results until it is to stop."""
    require_postgres(options.database_url)
    require_kafka(options.kafka)
    wait_for_schema(options.database_url, stop)
    admin.wait_for_broker(options.kafka, stop)
    questions = admin.Questions(options.kafka)
    with (
        metrics.served(metrics.registry_of("inbox", metrics.INBOX), options.metrics_port, options.metrics_host),
        closing(Lookout(options.kafka, stop)) as lookout,
    ):
        while (topic_id := _wait_for_topic(questions, stop)) is not None:
            try:
                _serve(Inbox(options, lookout, topic_id, stop), stop)
            except TopicMadeAnew as anew:
                _log.warning("topic_made_anew", topic=RESULTS, reason=anew.message)


def _wait_for_topic(questions: admin.Questions, stop: Stop) -> str | None:
    """The present id of the results' topic; None where a stop is requested before Kafka tells it."""
    outage = kafka_outage()
    while not stop.requested:
        try:
            topic_id = questions.ask(offsets.topic_id, RESULTS)
        except errors.KafkaAway as error:
            outage.away(error)
            stop.wait(RETRY_S)
        else:
            outage.back()
            return topic_id
    return None


def _serve(inbox: Inbox, stop: Stop) -> None:
    try:
        while not stop.requested:
            drained = inbox.read()
            inbox.store()
            inbox.look(drained=drained)
    finally:
        inbox.close()


class Inbox:
    """What the loop holds: a reader, a connection, and when it looked last."""

    def __init__(self, options: InboxOptions, lookout: Lookout, topic_id: str, stop: Stop) -> None:
        self._url = options.database_url
        self._lookout = lookout
        self._topic_id = topic_id
        self._stop = stop
        self._tables: Connection | None = None
        self._postgres = postgres_outage()
        self._kafka = kafka_outage()
        self._size = BATCH
        self._poison_run = 0
        self._looked_s = float("-inf")
        self._stored_since_look = False
        self._database_ahead_s = 0.0
        self._stuck: dict[int, tuple[int, float]] = {}
        self._reader = Reader(options.kafka, options.group_protocol, self._place)

    def read(self) -> bool:
        """Fills the batch; whether no more was there."""
        return self._reader.fill(POLL_S)

    def store(self) -> None:
        """Stores what is read, or a part of it where a row is refused: the culprit is found by halving, and dead-lettered.

        Tries until something is stored, whatever is in its way: nothing else is of use before.
        """
        while (part := self._reader.batch[: self._size]) and not self._stop.requested:
            try:
                self._store(part)
            except storing.PositionLost as lost:
                _log.warning("position_lost", partitions=sorted(lost.partitions), reason=lost.message)
                self._begin_again(lost.partitions)
            except storing.MostlyPoison as poison:
                self._hold(poison)
            except (psycopg.Error, UnicodeEncodeError) as error:
                if is_refused(error):
                    self._narrow(part, error)
                elif not is_conflict(error):
                    self._wait_for_database(error)
            else:
                self._size = BATCH
                return

    def _store(self, part: Sequence[Taken]) -> None:
        poison_run = storing.poison_run(self._poison_run, part)
        positions = dict(self._reader.positions)  # as they were before: the reader reads on meanwhile
        with metrics.INBOX_STORE_SECONDS.time():
            batch = storing.store(self._connected(), self._topic_id, positions, part, self._reader.read_on)
        self._reader.stored(part)
        self._postgres.back()
        self._poison_run = poison_run
        self._stored_since_look = True
        for frame in batch.frames:
            if frame.frame_number == 0:
                metrics.observe_first_frame(frame.scenario_uuid, time.time() + self._database_ahead_s)
        for verdict, count in batch.verdicts.items():
            metrics.INBOX_MESSAGES.labels(verdict).inc(count)
        poison = [taken for taken in part if taken.error is not None]
        metrics.INBOX_DEAD_LETTERS.inc(len(poison))
        for taken in poison:
            _log.error("dead_letter", topic=RESULTS, partition=taken.partition, offset=taken.offset, error=taken.error)

    def _narrow(self, part: Sequence[Taken], error: Exception) -> None:
        """Tries half of the messages next, after some one among `part` was refused."""
        self._size = max(len(part) // 2, 1)
        if len(part) == 1:
            self._reader.refuse(part[0], str(error).splitlines()[0])

    def _begin_again(self, partitions: Iterable[int]) -> None:
        """Reads partitions again from the table's positions, those of them that are still given to this inbox."""
        for partition, offset in self._place(sorted(self._reader.positions.keys() & set(partitions))).items():
            self._reader.begin_at(partition, offset)

    def _hold(self, poison: storing.MostlyPoison) -> None:
        """Takes and stores nothing until somebody moves a position, or this inbox is given other partitions.

        It stays, since its next start would meet the same messages; that it catches up with nothing makes vidflow unready.
        """
        _log.error("mostly_poison", reason=poison.message)
        held = dict(self._reader.positions)
        self._reader.pause()
        while self._reader.positions == held == self._place(sorted(held)) and not self._stop.requested:
            self._reader.poll(LOOK_S)
            try:
                self._ask(self._connected())
                self._require_same_topic(self._lookout.answer(ANSWER_S))
            except psycopg.Error as error:
                self._lost(error)
        self._poison_run = 0
        self._begin_again(self._reader.positions)
        self._reader.resume()

    def _place(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """The table's positions; waits for the database. Called by the client too, when it is given partitions.

        On a connection of its own: that may be while a batch is being copied.
        """
        while not self._stop.requested:
            try:
                with self._connect() as tables:
                    positions = inbox_partitions.positions(tables, RESULTS, self._topic_id, partitions)
            except psycopg.Error as error:
                self._say_away(error)
                self._stop.wait(RETRY_S)
            else:
                self._postgres.back()
                self._looked_s = float("-inf")  # whether all is stored of what it was just given is told at once
                return positions
        return {}

    def _connected(self) -> Connection:
        if self._tables is not None and has_hung_up(self._tables):
            self._tables.close()
            self._tables = None
        if self._tables is None:
            self._tables = self._connect()
        return self._tables

    def _connect(self) -> Connection:
        """A new connection. Ends the transaction of an inbox that froze or lost its network: it would lock out who takes its place."""
        busy = None if self._tables is None else self._tables.info.backend_pid  # it may be copying just now
        tables = connect(self._url, name="vidflow inbox", answer_limit_s=ANSWER_LIMIT_S)
        try:
            stalled = end_stalled(tables, but=busy)
        except BaseException:
            tables.close()
            raise
        if stalled:
            _log.warning("stalled_inbox_cut_off", postgres_pids=stalled)
        return tables

    def _lost(self, error: BaseException) -> None:
        """Says that the database is away and drops the connection; any other error is raised."""
        self._say_away(error)
        if self._tables is not None:
            self._tables.close()
            self._tables = None

    def _say_away(self, error: BaseException) -> None:
        if not is_away(error):
            raise error
        self._postgres.away(error)

    def _wait_for_database(self, error: BaseException) -> None:
        """Takes no message until the database answers, but polls on, so as to stay in the group."""
        self._lost(error)
        self._reader.pause()
        while not self._stop.requested:
            self._reader.poll(RETRY_S)
            try:
                inbox_partitions.database_time(self._connected())
            except psycopg.Error as again:
                self._lost(again)
            else:
                # Not said to be back before something is stored: on a full disk it answers, and takes nothing.
                self._reader.resume()
                return

    def look(self, *, drained: bool) -> None:
        """Each second, and as soon as a partition is drained: notes what is caught up with, and whether all is as it was."""
        since_s = time.monotonic() - self._looked_s
        due = since_s >= LOOK_S or (drained and self._stored_since_look and since_s >= DRAINED_LOOK_S)
        try:
            if due:
                self._looked_s = time.monotonic()
                self._stored_since_look = False
                self._follow(self._connected())
                self._ask(self._connected())
            if self._lookout.busy:
                self._hear(self._lookout.answer(ANSWER_S if due else 0.0))
        except psycopg.Error as error:
            if not is_conflict(error):
                self._wait_for_database(error)

    def _ask(self, tables: Connection) -> None:
        """Note that this inbox holds its partitions, and begin to ask Kafka, unless an earlier question is under way."""
        inbox_partitions.note_seen(tables, RESULTS, self._topic_id, self._reader.positions)
        if not self._lookout.busy:
            at = inbox_partitions.database_time(tables)  # before the ends: what lies below them was there at that time
            self._database_ahead_s = at.timestamp() - time.time()
            self._lookout.ask(Question(at, dict(self._reader.positions), self._still()))

    def _hear(self, look: Look | errors.KafkaAway | None) -> None:
        self._require_same_topic(look)
        if isinstance(look, errors.KafkaAway):
            self._kafka.away(look)
        if not isinstance(look, Look):
            return
        self._kafka.back()
        tables, asked = self._connected(), look.question
        behind = inbox_partitions.note_caught_up(tables, RESULTS, self._topic_id, asked.positions, look.ends, asked.at)
        self._postgres.back()
        metrics.show_lag(look.ends, behind)
        self._reader.show_positions()
        self._mend(tables, behind, look)

    def _follow(self, tables: Connection) -> None:
        """Begins again where the table has other positions than this inbox holds.

        A batch would notice by itself; but where nothing more comes, a restored database's older position would never be left.
        """
        held = dict(self._reader.positions)
        there = inbox_partitions.positions(tables, RESULTS, self._topic_id, held)
        lost = [one for one, offset in held.items() if there[one] != offset]
        if lost:
            _log.warning("position_lost", partitions=sorted(lost), reason="a restored database, or another inbox")
        for one in lost:
            self._reader.begin_at(one, there[one])

    def _require_same_topic(self, look: Look | errors.KafkaAway | None) -> None:
        if isinstance(look, Look) and look.topic_id != self._topic_id:
            raise TopicMadeAnew(f"its id was {self._topic_id} and is {look.topic_id}: beginning again with the new one")

    def _mend(self, tables: Connection, behind: Mapping[int, int], look: Look) -> None:
        """Moves positions that the log has not got: it was cut behind them, or has lost what lay there to its retention.

        Nothing would ever come from there, and the partition would never be caught up with.
        """
        self._stuck = {one: (at, self._since_s(one, at)) for one, at in behind.items()}
        for one in self._still():
            first, end, at = look.firsts.get(one), look.ends[one], behind[one]
            if first is None or first <= at <= end or self._reader.positions.get(one) != at:
                continue
            if inbox_partitions.move(tables, RESULTS, self._topic_id, {one: (at, first)}):
                _log.error("log_has_changed", topic=RESULTS, partition=one, position=at, first=first, end=end)
                self._reader.begin_at(one, first)

    def _still(self) -> list[int]:
        """The partitions that have stood short of their ends for long, with nothing to read."""
        if self._reader.batch:
            return []
        return [one for one, (_, since_s) in self._stuck.items() if self._looked_s - since_s >= STUCK_S]

    def _since_s(self, partition: int, position: int) -> float:
        """Since which look the partition has stood at this position, short of its end."""
        before, since_s = self._stuck.get(partition, (position, self._looked_s))
        return since_s if before == position else self._looked_s

    def close(self) -> None:
        """Leaves the group; what was read and not stored is read again."""
        self._reader.close()
        if self._tables is not None:
            self._tables.close()
