"""The relay: publish outbox messages to Kafka, and remove them when the broker has acknowledged them.

Any number of relays share the outbox's shards. Only acknowledged messages are removed, and no transaction is open while the relay
waits for Kafka. If a relay dies before it removes what it has published, the next one publishes it again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final

import psycopg

from vidflow.infra.kafka.publisher import DeliveryResults, InFlightBatch, Publisher, add_delivery_results
from vidflow.infra.postgres import outbox
from vidflow.infra.postgres.connection import (
    Connection,
    discard_plans,
    prepare_repeated_statements,
    run_with_reconnect,
)
from vidflow.infra.postgres.errors import is_disk_full
from vidflow.infra.postgres.lease import LeaseLost
from vidflow.infra.postgres.migrations import wait_for_schema
from vidflow.infra.postgres.outbox import PendingMessage
from vidflow.infra.postgres.shard_leases import ShardLeases, maintain_shard_leases
from vidflow.infra.process.crashpoint import crashpoint
from vidflow.infra.process.stopping import Stop, start_thread
from vidflow.infra.telemetry import metrics
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.outage import postgres_outage, require_kafka, require_postgres
from vidflow.settings import RelayOptions

BATCH_ROWS: Final = 2000
IN_FLIGHT_BATCHES: Final = 2
"""Batches that may be sent before the first of them must be acknowledged."""
BUSY_POLL_S: Final = 0.002
IDLE_POLL_S: Final = 0.02
SWEEP_S: Final = 1.0
"""Interval of reads that include all ids, not only the newest ones."""
HOLD_BACK_S: Final = 1.0
"""How long messages to a missing topic are skipped, so that they do not delay others."""
RETRY_S: Final = 0.2
GRACE_S: Final = 5.0
"""How long a stopping relay waits for the acknowledgement of sent batches."""
MAINTENANCE_INTERVAL_S: Final = 5.0
"""Interval of measuring the lag."""
_log = log("relay")


def run(options: RelayOptions, stop: Stop) -> None:
    """Publish the shards that this relay owns until a stop is requested. Batches already sent are completed first."""
    require_postgres(options.database_url)
    require_kafka(options.kafka)
    wait_for_schema(options.database_url, stop)
    registry = metrics.build_role_registry("relay", metrics.RELAY_REGISTRY)
    with (
        metrics.served(registry, options.metrics_port, options.metrics_host),
        maintain_shard_leases(options.database_url, stop) as leases,
    ):
        maintenance = start_thread(
            "outbox maintenance",
            lambda: _run_with_connection(options, stop, "care", partial(maintain_outbox, leases, stop)),
            stop,
        )
        _run_with_connection(options, stop, "reads", partial(publish, options, leases, stop))
        maintenance.join()


def _run_with_connection(options: RelayOptions, stop: Stop, name: str, body: Callable[[Connection], None]) -> None:
    run_with_reconnect(options.database_url, name=f"vidflow relay {name}", stop=stop, pause_s=RETRY_S, body=body)


def publish(options: RelayOptions, leases: ShardLeases, stop: Stop, connection: Connection) -> None:
    """Read, publish and remove batches until a stop is requested. Then complete the batches that were sent."""
    prepare_repeated_statements(connection)
    publisher = Publisher(options.kafka, client_id="vidflow-relay")
    try:
        relay = Relay(leases, publisher, connection, stop)
        while not stop.requested:
            stop.wait(relay.step())
        relay.complete_batches()
    finally:
        publisher.close()


class Relay:
    """The publishing loop and its state: batches in flight, the position in a backlog, and topics that are held back."""

    def __init__(self, leases: ShardLeases, publisher: Publisher, connection: Connection, stop: Stop) -> None:
        self._leases = leases
        self._publisher = publisher
        self._connection = connection
        self._stop = stop
        self._postgres = postgres_outage()
        self._pause_s = BUSY_POLL_S
        self._swept_s = float("-inf")
        self._held_back: dict[str, float] = {}
        self._shards: frozenset[int] = frozenset()
        self._in_flight: deque[InFlightBatch] = deque()
        self._backlog_cursor = 0
        """Id up to which a backlog has been sent, except for rows that become visible later. 0 if there is no backlog."""

    def step(self) -> float:
        """Send a batch. If there is none, or enough batches are in flight, remove what was acknowledged.

        Returns how long to wait before the next step, in seconds.
        """
        self._update_shards()
        batch = self._read_next()
        if batch:
            self._send(batch)
        if (not batch or len(self._in_flight) > IN_FLIGHT_BATCHES) and self.complete_batches(IN_FLIGHT_BATCHES):
            return RETRY_S
        self._pause_s = BUSY_POLL_S if batch or self._in_flight else min(self._pause_s * 1.5, IDLE_POLL_S)
        return 0.0 if self._backlog_cursor else self._pause_s

    def complete_batches(self, max_in_flight: int = 0) -> bool:
        """Remove acknowledged messages. Wait for acknowledgements while more than `max_in_flight` batches are in flight.

        Returns whether a delivery failed. In this case no batch is in flight any more, and the messages after a failed one of the same
        key will be sent again, too.
        """
        answers, shards = DeliveryResults(), set[int]()
        self._publisher.poll()
        while self._in_flight and (
            len(self._in_flight) > max_in_flight or not self._in_flight[0].unanswered or answers.failed
        ):
            flight = self._in_flight.popleft()
            self._wait(flight)
            add_delivery_results(answers, flight)
            shards |= flight.shards
        failed = bool(shards) and not self._try_remove(answers, shards)
        if failed or not max_in_flight:
            self._backlog_cursor = 0
        return failed

    def _update_shards(self) -> None:
        """Complete all batches before the owned shards change, and then read all ids: a new shard may have older rows."""
        if self._leases.surplus:
            self.complete_batches()
            self._leases.release_surplus(self._connection)
        if (owned := self._leases.owned_shards()) != self._shards:
            self.complete_batches()
            self._shards, self._swept_s = owned, float("-inf")

    def _read_next(self) -> list[PendingMessage]:
        """Return the next batch: the continuation of a backlog, or rows among the newest ids, or each second among all ids."""
        if not self._shards:
            return []
        held_back = _unexpired(self._held_back)
        batch = None
        if not held_back and time.monotonic() - self._swept_s < SWEEP_S:
            batch = self._read_backlog() if self._backlog_cursor else self._read_newest()
        if batch is None:
            discard_plans(self._connection)
            batch, self._swept_s = self._read(excluded_topics=held_back), time.monotonic()
        self._backlog_cursor = batch[-1].id if _is_full(batch) else 0
        return batch

    def _read_newest(self) -> list[PendingMessage]:
        """Return a batch among the newest ids. An idle relay first asks whether there is any, which costs far less."""
        is_idle = self._pause_s >= IDLE_POLL_S and not self._in_flight
        if is_idle and not outbox.has_pending_messages(self._connection):
            return []
        return self._read(window=outbox.WINDOW)

    def _read_backlog(self) -> list[PendingMessage] | None:
        """Return the rows after the cursor, or None if a row has become visible below it: it may precede others of its key.

        The count follows the read. A row that precedes one of the batch was visible to the read, so the count includes it, because
        no other relay removes it.
        """
        batch = self._read(after=self._backlog_cursor)
        in_flight = sum(row.id <= self._backlog_cursor for flight in self._in_flight for row in flight.batch)
        pending = outbox.count_pending_up_to(self._connection, self._backlog_cursor, self._shards)
        return batch if pending == in_flight else None

    def _read(
        self, *, after: int = 0, window: int | None = None, excluded_topics: Collection[str] = ()
    ) -> list[PendingMessage]:
        """Return a batch of pending rows that are not in flight."""
        in_flight_ids = [row.id for flight in self._in_flight for row in flight.batch if row.id > after]
        return outbox.read_pending_messages(
            self._connection,
            BATCH_ROWS,
            after_id=after,
            window=window,
            shards=self._shards,
            excluded_topics=excluded_topics,
            in_flight_ids=in_flight_ids,
        )

    def _send(self, batch: list[PendingMessage]) -> None:
        sendable = self._hold_back(batch)
        crashpoint("relay.before_publish")
        if sendable:
            self._in_flight.append(self._publisher.send(sendable))

    def _hold_back(self, batch: list[PendingMessage]) -> list[PendingMessage]:
        """Return the batch without messages to missing topics. These are skipped for HOLD_BACK_S."""
        missing = self._publisher.find_missing_topics({row.topic for row in batch})
        if missing:
            until_s = time.monotonic() + HOLD_BACK_S
            self._held_back = dict.fromkeys(missing, until_s) | _unexpired(self._held_back)
            return [row for row in batch if row.topic not in missing]
        return batch

    def _wait(self, flight: InFlightBatch) -> None:
        """Wait for the delivery of a batch while this relay owns its shards. During a stop, wait at most GRACE_S in all."""
        began_s = time.monotonic()

        def keep_waiting() -> bool:
            in_time = not self._stop.requested or time.monotonic() - began_s < GRACE_S
            return in_time and self._leases.owns(flight.shards)

        self._publisher.wait_for_delivery(flight, keep_waiting)

    def _try_remove(self, answers: DeliveryResults, shards: set[int]) -> bool:
        """Remove what was acknowledged. Return False if something must be sent again."""
        crashpoint("relay.after_publish")
        try:
            self._remove_with_retries(answers, shards)
        except LeaseLost as error:  # another relay sends it again
            _log.warning("lease_lost", reason=error.message)
            return False
        crashpoint("relay.after_mark")
        return not answers.failed

    def _remove_with_retries(self, answers: DeliveryResults, shards: set[int]) -> None:
        """Remove, and retry while the disk is full: what stays would be published again and again."""
        while True:
            try:
                self._remove(answers, shards)
            except psycopg.Error as error:
                if not is_disk_full(error):
                    raise
                self._postgres.begin(error)
                if self._stop.wait(RETRY_S):
                    raise
            else:
                self._postgres.end()
                return

    def _remove(self, answers: DeliveryResults, shards: set[int]) -> None:
        with self._leases.fenced(shards) as tx:
            removed = outbox.remove_published(tx, answers.acknowledged)
            for row_id, error in answers.refused.items():
                outbox.set_aside(tx, row_id, error)
        metrics.RELAY_PUBLISHED.inc(removed)
        metrics.RELAY_SET_ASIDE.inc(len(answers.refused))
        metrics.RELAY_FAILED.inc(len(answers.failed))
        if removed < len(answers.acknowledged):
            _log.warning("removed_elsewhere", rows=len(answers.acknowledged) - removed)
        for row_id, error in answers.refused.items():
            _log.error("set_aside", outbox_id=row_id, error=error, needs="see: vidflow outbox list")
        if answers.failed:
            key, error = next(iter(answers.failed.items()))
            _log.warning("delivery_failed", keys=len(answers.failed), first_key=key, error=error)


def _is_full(batch: Sequence[PendingMessage]) -> bool:
    """Return whether the batch reached a limit, of rows or bytes, so that more rows may follow."""
    return len(batch) >= BATCH_ROWS or sum(len(row.payload) for row in batch) >= outbox.BATCH_BYTES


def _unexpired(held_back: dict[str, float]) -> dict[str, float]:
    now_s = time.monotonic()
    return {topic: until_s for topic, until_s in held_back.items() if until_s > now_s}


def maintain_outbox(leases: ShardLeases, stop: Stop, connection: Connection) -> None:
    """Measure the lag of the owned shards. Runs on its own thread."""
    while not stop.wait(MAINTENANCE_INTERVAL_S):
        lag = outbox.read_lag(connection, leases.owned_shards())
        metrics.RELAY_OUTBOX_WAITING.set(lag.waiting)
        metrics.RELAY_OUTBOX_OLDEST_S.set(lag.oldest_s)
        metrics.RELAY_OUTBOX_SET_ASIDE.set(lag.set_aside)
