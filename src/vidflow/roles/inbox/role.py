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
from vidflow.infra.postgres.connection import RESPONSE_TIMEOUT_S, Connection, connect, is_closed_by_server
from vidflow.infra.postgres.errors import is_away, is_conflict, is_data_error
from vidflow.infra.postgres.migrations import wait_for_schema
from vidflow.infra.postgres.stalled_sessions import end_stalled_sessions
from vidflow.infra.process.stopping import Stop
from vidflow.infra.telemetry import metrics
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.outage import kafka_outage, postgres_outage, require_kafka, require_postgres
from vidflow.roles.inbox import storing
from vidflow.roles.inbox.reader import BATCH_MESSAGES, Reader, ReceivedMessage
from vidflow.roles.inbox.topic_inspector import TopicInspector, TopicQuery, TopicSnapshot
from vidflow.settings import InboxOptions

POLL_S: Final = 0.05
CHECK_INTERVAL_S: Final = 1.0
DRAINED_CHECK_INTERVAL_S: Final = 0.1
"""How soon after the last look a drained partition is worth another one."""
RETRY_S: Final = 0.2
ANSWER_WAIT_S: Final = 0.02
"""How long a question to Kafka is waited for at once; a longer answer is taken when it is there."""
STUCK_S: Final = 3.0
"""How long a position may stand short of the log's end, with nothing to read, before the log itself is looked at."""
_log = log("inbox")


class TopicRecreated(Unavailable):
    """The topic has another id than at the start: its offsets mean other messages now."""

    default_code = "topic_made_anew"


def run(options: InboxOptions, stop: Stop) -> None:
    """Stores results until it is to stop."""
    require_postgres(options.database_url)
    require_kafka(options.kafka)
    wait_for_schema(options.database_url, stop)
    admin.wait_for_broker(options.kafka, stop)
    questions = admin.ReplacingAdmin(options.kafka)
    with (
        metrics.served(
            metrics.build_role_registry("inbox", metrics.INBOX_REGISTRY), options.metrics_port, options.metrics_host
        ),
        closing(TopicInspector(options.kafka, stop)) as lookout,
    ):
        while (topic_id := _wait_for_topic(questions, stop)) is not None:
            try:
                _serve(Inbox(options, lookout, topic_id, stop), stop)
            except TopicRecreated as anew:
                _log.warning("topic_made_anew", topic=RESULTS, reason=anew.message)


def _wait_for_topic(questions: admin.ReplacingAdmin, stop: Stop) -> str | None:
    """The present id of the results' topic; None where a stop is requested before Kafka tells it."""
    outage = kafka_outage()
    while not stop.requested:
        try:
            topic_id = questions.call(offsets.read_topic_id, RESULTS)
        except errors.KafkaAway as error:
            outage.begin(error)
            stop.wait(RETRY_S)
        else:
            outage.end()
            return topic_id
    return None


def _serve(inbox: Inbox, stop: Stop) -> None:
    try:
        while not stop.requested:
            drained = inbox.read()
            inbox.store()
            inbox.check(drained=drained)
    finally:
        inbox.close()


class Inbox:
    """What the loop holds: a reader, a connection, and when it looked last."""

    def __init__(self, options: InboxOptions, lookout: TopicInspector, topic_id: str, stop: Stop) -> None:
        self._url = options.database_url
        self._inspector = lookout
        self._topic_id = topic_id
        self._stop = stop
        self._tables: Connection | None = None
        self._postgres = postgres_outage()
        self._kafka = kafka_outage()
        self._size = BATCH_MESSAGES
        self._poison_run = 0
        self._checked_s = float("-inf")
        self._stored_since_check = False
        self._database_ahead_s = 0.0
        self._stuck: dict[int, tuple[int, float]] = {}
        self._reader = Reader(options.kafka, options.group_protocol, self._read_positions)

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
                self._seek_to_stored(lost.partitions)
            except storing.PoisonLimitExceeded as poison:
                self._suspend(poison)
            except (psycopg.Error, UnicodeEncodeError) as error:
                if is_data_error(error):
                    self._halve_batch(part, error)
                elif not is_conflict(error):
                    self._wait_for_database(error)
            else:
                self._size = BATCH_MESSAGES
                return

    def _store(self, part: Sequence[ReceivedMessage]) -> None:
        poison_run = storing.count_poison_run(self._poison_run, part)
        positions = dict(self._reader.positions)  # as they were before: the reader reads on meanwhile
        with metrics.INBOX_STORE_SECONDS.time():
            batch = storing.store(self._ensure_connection(), self._topic_id, positions, part, self._reader.prefetch)
        self._reader.mark_stored(part)
        self._postgres.end()
        self._poison_run = poison_run
        self._stored_since_check = True
        for frame in batch.frames:
            if frame.frame_number == 0:
                metrics.observe_first_frame(frame.scenario_uuid, time.time() + self._database_ahead_s)
        for verdict, count in batch.verdicts.items():
            metrics.INBOX_MESSAGES.labels(verdict).inc(count)
        poison = [taken for taken in part if taken.error is not None]
        metrics.INBOX_DEAD_LETTERS.inc(len(poison))
        for taken in poison:
            _log.error("dead_letter", topic=RESULTS, partition=taken.partition, offset=taken.offset, error=taken.error)

    def _halve_batch(self, part: Sequence[ReceivedMessage], error: Exception) -> None:
        """Tries half of the messages next, after some one among `part` was refused."""
        self._size = max(len(part) // 2, 1)
        if len(part) == 1:
            self._reader.refuse(part[0], str(error).splitlines()[0])

    def _seek_to_stored(self, partitions: Iterable[int]) -> None:
        """Reads partitions again from the table's positions, those of them that are still given to this inbox."""
        for partition, offset in self._read_positions(sorted(self._reader.positions.keys() & set(partitions))).items():
            self._reader.seek(partition, offset)

    def _suspend(self, poison: storing.PoisonLimitExceeded) -> None:
        """Takes and stores nothing until somebody moves a position, or this inbox is given other partitions.

        It stays, since its next start would meet the same messages; that it catches up with nothing makes vidflow unready.
        """
        _log.error("mostly_poison", reason=poison.message)
        held = dict(self._reader.positions)
        self._reader.pause()
        while self._reader.positions == held == self._read_positions(sorted(held)) and not self._stop.requested:
            self._reader.poll(CHECK_INTERVAL_S)
            try:
                self._request_topic_snapshot(self._ensure_connection())
                self._require_same_topic(self._inspector.take_answer(ANSWER_WAIT_S))
            except psycopg.Error as error:
                self._drop_connection(error)
        self._poison_run = 0
        self._seek_to_stored(self._reader.positions)
        self._reader.resume()

    def _read_positions(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """The table's positions; waits for the database. Called by the client too, when it is given partitions.

        On a connection of its own: that may be while a batch is being copied.
        """
        while not self._stop.requested:
            try:
                with self._connect() as tables:
                    positions = inbox_partitions.read_positions(tables, RESULTS, self._topic_id, partitions)
            except psycopg.Error as error:
                self._report_outage(error)
                self._stop.wait(RETRY_S)
            else:
                self._postgres.end()
                self._checked_s = float("-inf")  # whether all is stored of what it was just given is told at once
                return positions
        return {}

    def _ensure_connection(self) -> Connection:
        if self._tables is not None and is_closed_by_server(self._tables):
            self._tables.close()
            self._tables = None
        if self._tables is None:
            self._tables = self._connect()
        return self._tables

    def _connect(self) -> Connection:
        """A new connection. Ends the transaction of an inbox that froze or lost its network: it would lock out who takes its place."""
        busy = None if self._tables is None else self._tables.info.backend_pid  # it may be copying just now
        tables = connect(self._url, name="vidflow inbox", response_timeout_s=RESPONSE_TIMEOUT_S)
        try:
            stalled = end_stalled_sessions(tables, except_pid=busy)
        except BaseException:
            tables.close()
            raise
        if stalled:
            _log.warning("stalled_inbox_cut_off", postgres_pids=stalled)
        return tables

    def _drop_connection(self, error: BaseException) -> None:
        """Says that the database is away and drops the connection; any other error is raised."""
        self._report_outage(error)
        if self._tables is not None:
            self._tables.close()
            self._tables = None

    def _report_outage(self, error: BaseException) -> None:
        if not is_away(error):
            raise error
        self._postgres.begin(error)

    def _wait_for_database(self, error: BaseException) -> None:
        """Takes no message until the database answers, but polls on, so as to stay in the group."""
        self._drop_connection(error)
        self._reader.pause()
        while not self._stop.requested:
            self._reader.poll(RETRY_S)
            try:
                inbox_partitions.read_database_time(self._ensure_connection())
            except psycopg.Error as again:
                self._drop_connection(again)
            else:
                # Not said to be back before something is stored: on a full disk it answers, and takes nothing.
                self._reader.resume()
                return

    def check(self, *, drained: bool) -> None:
        """Each second, and as soon as a partition is drained: notes what is caught up with, and whether all is as it was."""
        since_s = time.monotonic() - self._checked_s
        due = since_s >= CHECK_INTERVAL_S or (
            drained and self._stored_since_check and since_s >= DRAINED_CHECK_INTERVAL_S
        )
        try:
            if due:
                self._checked_s = time.monotonic()
                self._stored_since_check = False
                self._sync_positions(self._ensure_connection())
                self._request_topic_snapshot(self._ensure_connection())
            if self._inspector.busy:
                self._apply_topic_snapshot(self._inspector.take_answer(ANSWER_WAIT_S if due else 0.0))
        except psycopg.Error as error:
            if not is_conflict(error):
                self._wait_for_database(error)

    def _request_topic_snapshot(self, tables: Connection) -> None:
        """Note that this inbox holds its partitions, and begin to ask Kafka, unless an earlier question is under way."""
        inbox_partitions.note_seen(tables, RESULTS, self._topic_id, self._reader.positions)
        if not self._inspector.busy:
            at = inbox_partitions.read_database_time(
                tables
            )  # before the ends: what lies below them was there at that time
            self._database_ahead_s = at.timestamp() - time.time()
            self._inspector.ask(TopicQuery(at, dict(self._reader.positions), self._list_stuck()))

    def _apply_topic_snapshot(self, look: TopicSnapshot | errors.KafkaAway | None) -> None:
        self._require_same_topic(look)
        if isinstance(look, errors.KafkaAway):
            self._kafka.begin(look)
        if not isinstance(look, TopicSnapshot):
            return
        self._kafka.end()
        tables, asked = self._ensure_connection(), look.query
        behind = inbox_partitions.note_caught_up(
            tables, RESULTS, self._topic_id, asked.positions, look.end_offsets, asked.asked_at
        )
        self._postgres.end()
        metrics.export_lag(look.end_offsets, behind)
        self._reader.commit_positions()
        self._repair_positions(tables, behind, look)

    def _sync_positions(self, tables: Connection) -> None:
        """Begins again where the table has other positions than this inbox holds.

        A batch would notice by itself; but where nothing more comes, a restored database's older position would never be left.
        """
        held = dict(self._reader.positions)
        there = inbox_partitions.read_positions(tables, RESULTS, self._topic_id, held)
        lost = [one for one, offset in held.items() if there[one] != offset]
        if lost:
            _log.warning("position_lost", partitions=sorted(lost), reason="a restored database, or another inbox")
        for one in lost:
            self._reader.seek(one, there[one])

    def _require_same_topic(self, look: TopicSnapshot | errors.KafkaAway | None) -> None:
        if isinstance(look, TopicSnapshot) and look.topic_id != self._topic_id:
            raise TopicRecreated(
                f"its id was {self._topic_id} and is {look.topic_id}: beginning again with the new one"
            )

    def _repair_positions(self, tables: Connection, behind: Mapping[int, int], look: TopicSnapshot) -> None:
        """Moves positions that the log has not got: it was cut behind them, or has lost what lay there to its retention.

        Nothing would ever come from there, and the partition would never be caught up with.
        """
        self._stuck = {one: (at, self._stuck_since_s(one, at)) for one, at in behind.items()}
        for one in self._list_stuck():
            first, end, at = look.first_offsets.get(one), look.end_offsets[one], behind[one]
            if first is None or first <= at <= end or self._reader.positions.get(one) != at:
                continue
            if inbox_partitions.move_positions(tables, RESULTS, self._topic_id, {one: (at, first)}):
                _log.error("log_has_changed", topic=RESULTS, partition=one, position=at, first=first, end=end)
                self._reader.seek(one, first)

    def _list_stuck(self) -> list[int]:
        """The partitions that have stood short of their ends for long, with nothing to read."""
        if self._reader.batch:
            return []
        return [one for one, (_, since_s) in self._stuck.items() if self._checked_s - since_s >= STUCK_S]

    def _stuck_since_s(self, partition: int, position: int) -> float:
        """Since which look the partition has stood at this position, short of its end."""
        before, since_s = self._stuck.get(partition, (position, self._checked_s))
        return since_s if before == position else self._checked_s

    def close(self) -> None:
        """Leaves the group; what was read and not stored is read again."""
        self._reader.close()
        if self._tables is not None:
            self._tables.close()
