"""The inbox's loop: read results, store them, and record the time up to which all results are stored.

It runs on one thread. While the database is away, it takes no messages but stays in its consumer group. What a message changes is
decided in domain/progress.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import Final

import psycopg

from vidflow.domain.errors import Unavailable
from vidflow.domain.stalls import STALL_TIMEOUT_S, StallWatch
from vidflow.domain.topics import RESULTS
from vidflow.infra.kafka import admin, errors, offsets
from vidflow.infra.postgres import inbox_partitions
from vidflow.infra.postgres.connection import (
    RESPONSE_TIMEOUT_S,
    Connection,
    connect,
    discard_plans,
    is_closed_by_server,
    prepare_repeated_statements,
)
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
"""Shortest interval of checks after partitions were read to their ends, if the last check found them short of these."""
COLLECT_S: Final = 0.015
"""Shortest interval of transactions while few messages arrive. A transaction costs as much as the storing of some 50 frames."""
RETRY_S: Final = 0.2
ANSWER_WAIT_S: Final = 0.02
"""How long to wait for Kafka's answer at once. A later answer is processed by a later check."""
OUTSIDE_LOG_S: Final = 3.0
"""How long a position may be short of the log's end, with nothing to read, before the log's first offset is checked."""
_log = log("inbox")


class TopicRecreated(Unavailable):
    """The topic's id has changed since the start: its offsets now refer to other messages."""

    default_code = "topic_recreated"


class ResultsStalled(Unavailable):
    """Messages are available but none arrives, or no inbox has the partitions. A new consumer is needed."""

    default_code = "results_stalled"


def run(options: InboxOptions, stop: Stop) -> None:
    """Store results until a stop is requested."""
    require_postgres(options.database_url)
    require_kafka(options.kafka)
    wait_for_schema(options.database_url, stop)
    admin.wait_for_broker(options.kafka, stop)
    client = admin.ReplacingAdmin(options.kafka)
    with (
        metrics.served(
            metrics.build_role_registry("inbox", metrics.INBOX_REGISTRY), options.metrics_port, options.metrics_host
        ),
        closing(TopicInspector(options.kafka, stop)) as inspector,
    ):
        while (
            topic_id := admin.retry_while_away(lambda: client.call(offsets.read_topic_id, RESULTS), stop)
        ) is not None:
            try:
                _serve(Inbox(options, inspector, topic_id, stop), stop)
            except TopicRecreated as error:
                _log.warning("topic_recreated", topic=RESULTS, reason=error.message)
            except ResultsStalled as error:
                _log.error("results_stalled", topic=RESULTS, reason=error.message)


def _serve(inbox: Inbox, stop: Stop) -> None:
    try:
        while not stop.requested:
            drained = inbox.read()
            inbox.store()
            inbox.check(drained=drained)
    finally:
        inbox.close()


class Inbox:
    """The state of the loop and its steps: `read`, `store` and `check`."""

    def __init__(self, options: InboxOptions, inspector: TopicInspector, topic_id: str, stop: Stop) -> None:
        self._url = options.database_url
        self._inspector = inspector
        self._topic_id = topic_id
        self._stop = stop
        self._connection: Connection | None = None
        self._postgres = postgres_outage()
        self._kafka = kafka_outage()
        self._size = BATCH_MESSAGES
        self._poison_run = 0
        self._checked_s = float("-inf")
        self._store_began_s = float("-inf")
        self._lags = False
        self._database_ahead_s = 0.0
        self._stall_watch = StallWatch()
        self._unassigned_since_s: float | None = None
        self._reader = Reader(options.kafka, options.group_protocol, self._read_positions)

    def read(self) -> bool:
        """Fill the batch, also with what arrives within COLLECT_S of the last transaction. Return whether all available was read."""
        return self._reader.fill(POLL_S, self._store_began_s + COLLECT_S)

    def store(self) -> None:
        """Store the batch, or a part of it if PostgreSQL rejects a row. Retry until something is stored.

        The rejected message is found by halving the batch, and becomes a dead letter.
        """
        while (part := self._reader.batch[: self._size]) and not self._stop.requested:
            try:
                self._store(part)
            except storing.PositionLost as error:
                _log.warning("position_lost", partitions=sorted(error.partitions), reason=error.message)
                self._seek_to_stored(error.partitions)
            except storing.PoisonLimitExceeded as error:
                self._suspend(error)
            except (psycopg.Error, UnicodeEncodeError) as error:
                if is_data_error(error):
                    self._halve_batch(part, error)
                elif not is_conflict(error):
                    self._wait_for_database(error)
            else:
                self._size = BATCH_MESSAGES
                return

    def _store(self, part: Sequence[ReceivedMessage]) -> None:
        self._store_began_s = time.monotonic()
        poison_run = storing.count_poison_run(self._poison_run, part)
        positions = dict(self._reader.positions)  # a copy, because prefetch may change them
        with metrics.INBOX_STORE_SECONDS.time():
            batch = storing.store(self._ensure_connection(), self._topic_id, positions, part, self._reader.prefetch)
        self._reader.mark_stored(part)
        self._postgres.end()
        self._poison_run = poison_run
        for frame in batch.frames:
            if frame.frame_number == 0:
                metrics.observe_first_frame(frame.scenario_uuid, time.time() + self._database_ahead_s)
        for verdict, count in batch.verdicts.items():
            metrics.INBOX_MESSAGES.labels(verdict).inc(count)
        poison = [message for message in part if message.error is not None]
        metrics.INBOX_DEAD_LETTERS.inc(len(poison))
        for message in poison:
            _log.error(
                "dead_letter",
                topic=RESULTS,
                partition=message.partition,
                offset=message.offset,
                error=message.error,
            )

    def _halve_batch(self, part: Sequence[ReceivedMessage], error: Exception) -> None:
        """Try half of the messages next, because one of `part` was rejected. If it has only one, refuse it."""
        self._size = max(len(part) // 2, 1)
        if len(part) == 1:
            self._reader.refuse(part[0], str(error).splitlines()[0])

    def _seek_to_stored(self, partitions: Iterable[int]) -> None:
        """Read partitions again from the positions in the database, if they are still assigned to this inbox."""
        for partition, offset in self._read_positions(sorted(self._reader.positions.keys() & set(partitions))).items():
            self._reader.seek(partition, offset)

    def _suspend(self, error: storing.PoisonLimitExceeded) -> None:
        """Read and store nothing until an operator moves a position or the assignment of partitions changes.

        The process does not exit, because it would find the same messages after a restart. Meanwhile vidflow is not ready, because
        the inbox does not catch up.
        """
        _log.error("mostly_poison", reason=error.message)
        held = dict(self._reader.positions)
        self._reader.pause()
        while self._reader.positions == held == self._read_positions(sorted(held)) and not self._stop.requested:
            self._reader.poll(CHECK_INTERVAL_S)
            try:
                self._request_topic_snapshot(self._ensure_connection())
                self._require_same_topic(self._inspector.take_answer(ANSWER_WAIT_S))
            except psycopg.Error as database_error:
                self._drop_connection(database_error)
        self._poison_run = 0
        self._seek_to_stored(self._reader.positions)
        self._restart_stall_watch()
        self._reader.resume()

    def _read_positions(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """Return the positions in the database, waiting for it. The reader calls this when it is assigned partitions.

        It uses a separate connection, because the other one may be in the middle of a COPY.
        """
        while not self._stop.requested:
            try:
                with self._connect() as connection:
                    positions = inbox_partitions.read_positions(connection, RESULTS, self._topic_id, partitions)
            except psycopg.Error as error:
                self._report_outage(error)
                self._stop.wait(RETRY_S)
            else:
                self._postgres.end()
                self._checked_s = float("-inf")  # check the new partitions at once
                return positions
        return {}

    def _ensure_connection(self) -> Connection:
        if self._connection is not None and is_closed_by_server(self._connection):
            self._connection.close()
            self._connection = None
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> Connection:
        """Return a new connection. End the transactions of stalled inboxes first, because their locks would block this one."""
        busy_pid = None if self._connection is None else self._connection.info.backend_pid  # it may be in a COPY
        connection = connect(self._url, name="vidflow inbox", response_timeout_s=RESPONSE_TIMEOUT_S)
        try:
            prepare_repeated_statements(connection)
            stalled = end_stalled_sessions(connection, except_pid=busy_pid)
        except BaseException:
            connection.close()
            raise
        if stalled:
            _log.warning("stalled_inbox_cut_off", postgres_pids=stalled)
        return connection

    def _drop_connection(self, error: BaseException) -> None:
        """Report that the database is away and close the connection. Raises any other error."""
        self._report_outage(error)
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _report_outage(self, error: BaseException) -> None:
        if not is_away(error):
            raise error
        self._postgres.begin(error)

    def _wait_for_database(self, error: BaseException) -> None:
        """Take no messages until the database answers, but poll the client to stay in the group."""
        self._drop_connection(error)
        self._reader.pause()
        while not self._stop.requested:
            self._reader.poll(RETRY_S)
            try:
                inbox_partitions.read_database_time(self._ensure_connection())
            except psycopg.Error as retry_error:
                self._drop_connection(retry_error)
            else:
                # The outage ends when a batch is stored: with a full disk, PostgreSQL answers but stores nothing.
                self._restart_stall_watch()
                self._reader.resume()
                return

    def check(self, *, drained: bool) -> None:
        """Check positions and topic each second, and soon after a backlog if no more messages are available (`drained`).

        Records for each partition up to which time it is stored. Raises TopicRecreated and ResultsStalled.
        """
        since_s = time.monotonic() - self._checked_s
        due = since_s >= CHECK_INTERVAL_S or (drained and self._lags and since_s >= DRAINED_CHECK_INTERVAL_S)
        try:
            if due:
                self._checked_s = time.monotonic()
                self._lags = False
                discard_plans(self._ensure_connection())
                self._sync_positions(self._ensure_connection())
                self._request_topic_snapshot(self._ensure_connection())
            if self._inspector.busy:
                self._apply_topic_snapshot(self._inspector.take_answer(ANSWER_WAIT_S if due else 0.0))
        except psycopg.Error as error:
            if not is_conflict(error):
                self._wait_for_database(error)

    def _request_topic_snapshot(self, connection: Connection) -> None:
        """Record that this inbox holds its partitions, and query Kafka unless an earlier query is running."""
        inbox_partitions.note_seen(connection, RESULTS, self._topic_id, self._reader.positions)
        if not self._inspector.busy:
            # Read before the end offsets, so that all messages sent before this time are below them.
            now = inbox_partitions.read_database_time(connection)
            self._database_ahead_s = now.timestamp() - time.time()
            self._inspector.ask(TopicQuery(now, dict(self._reader.positions), self._list_stalled(OUTSIDE_LOG_S)))

    def _apply_topic_snapshot(self, answer: TopicSnapshot | errors.KafkaAway | None) -> None:
        self._require_same_topic(answer)
        if isinstance(answer, errors.KafkaAway):
            self._kafka.begin(answer)
            self._restart_stall_watch()
        if not isinstance(answer, TopicSnapshot):
            return
        self._kafka.end()
        connection, query = self._ensure_connection(), answer.query
        lagging = inbox_partitions.note_caught_up(
            connection, RESULTS, self._topic_id, query.positions, answer.end_offsets, query.asked_at
        )
        self._postgres.end()
        metrics.export_lag(answer.end_offsets, lagging)
        self._lags = bool(lagging)
        self._reader.commit_positions()
        self._stall_watch.observe(lagging, self._checked_s)
        self._repair_positions(connection, lagging, answer)
        self._require_messages(connection)

    def _sync_positions(self, connection: Connection) -> None:
        """Continue from the positions in the database where they differ from this inbox's.

        Storing a batch would notice the difference, but there may be no further batch after a restore of the database.
        """
        held = dict(self._reader.positions)
        stored = inbox_partitions.read_positions(connection, RESULTS, self._topic_id, held)
        lost = [partition for partition, offset in held.items() if stored[partition] != offset]
        if lost:
            _log.warning("position_lost", partitions=sorted(lost), reason="a restored database, or another inbox")
        for partition in lost:
            self._reader.seek(partition, stored[partition])

    def _require_same_topic(self, answer: TopicSnapshot | errors.KafkaAway | None) -> None:
        if isinstance(answer, TopicSnapshot) and answer.topic_id != self._topic_id:
            raise TopicRecreated(
                f"The topic's id changed from {self._topic_id} to {answer.topic_id}. Starting again with the new topic."
            )

    def _repair_positions(self, connection: Connection, lagging: Mapping[int, int], snapshot: TopicSnapshot) -> None:
        """Move positions outside the log to its first offset: the log was truncated, or retention deleted their messages.

        No message would ever arrive at such a position, and the partition would never catch up.
        """
        for partition in self._list_stalled(OUTSIDE_LOG_S):
            first, end = snapshot.first_offsets.get(partition), snapshot.end_offsets[partition]
            position = lagging[partition]
            if first is None or first <= position <= end or self._reader.positions.get(partition) != position:
                continue
            if inbox_partitions.move_positions(connection, RESULTS, self._topic_id, {partition: (position, first)}):
                _log.error(
                    "position_outside_log", topic=RESULTS, partition=partition, position=position, first=first, end=end
                )
                self._reader.seek(partition, first)

    def _require_messages(self, connection: Connection) -> None:
        """Raise ResultsStalled if the client no longer delivers messages or has lost its place in the consumer group."""
        if stalled := self._list_stalled(STALL_TIMEOUT_S):
            raise ResultsStalled(
                f"No message arrived from partition {', '.join(map(str, stalled))} for {STALL_TIMEOUT_S:.0f} s although some are "
                "available. Opening a new consumer."
            )
        if self._reader.positions:
            self._unassigned_since_s = None
        elif self._unassigned_since_s is None:
            self._unassigned_since_s = self._checked_s
        elif self._checked_s - self._unassigned_since_s >= STALL_TIMEOUT_S:
            self._unassigned_since_s = None
            if not inbox_partitions.are_all_held(connection, RESULTS, self._topic_id, STALL_TIMEOUT_S):
                raise ResultsStalled(
                    f"This inbox was assigned no partition for {STALL_TIMEOUT_S:.0f} s, and some are held by no other inbox. "
                    "Opening a new consumer."
                )

    def _restart_stall_watch(self) -> None:
        """Start to measure again, because until now nothing could arrive."""
        self._stall_watch = StallWatch()
        self._unassigned_since_s = None

    def _list_stalled(self, for_s: float) -> list[int]:
        """Return the partitions whose position has been short of the end for `for_s` seconds, with nothing to read."""
        return [] if self._reader.batch else self._stall_watch.list_stalled(self._checked_s, for_s)

    def close(self) -> None:
        """Leave the group. Messages that were read but not stored will be read again."""
        self._reader.close()
        if self._connection is not None:
            self._connection.close()
