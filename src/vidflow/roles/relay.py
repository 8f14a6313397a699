"""The relay: reads the outbox, publishes to Kafka, removes what the broker has acknowledged. It decides nothing else.

Any number of relays share the outbox's shards. Nothing is removed that was not acknowledged, and no transaction is open while
Kafka is waited for: a relay that dies between the two is followed by one that publishes again, never too little.
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
from vidflow.infra.postgres.connection import Connection, run_with_reconnect
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
"""How many batches are sent before the first of them must have its answers."""
BUSY_POLL_S: Final = 0.002
IDLE_POLL_S: Final = 0.02
SWEEP_S: Final = 1.0
"""How often all ids are looked through, not the last ones alone."""
HOLD_BACK_S: Final = 1.0
"""How long the messages to a missing topic are passed over, so that they hold up no other."""
RETRY_S: Final = 0.2
GRACE_S: Final = 5.0
"""How long a relay that is to stop waits for the answers to what is on its way."""
MAINTENANCE_INTERVAL_S: Final = 5.0
"""How often the lag is measured, and what an earlier version has marked is deleted."""
MARKED_BATCH_ROWS: Final = 10_000
_log = log("relay")


def run(options: RelayOptions, stop: Stop) -> None:
    """Publishes the shards that it owns until it is to stop, and ends behind what is on its way then."""
    require_postgres(options.database_url)
    require_kafka(options.kafka)
    wait_for_schema(options.database_url, stop)
    registry = metrics.build_role_registry("relay", metrics.RELAY_REGISTRY)
    with (
        metrics.served(registry, options.metrics_port, options.metrics_host),
        maintain_shard_leases(options.database_url, stop) as shares,
    ):
        caring = start_thread(
            "outbox care",
            lambda: _run_with_connection(options, stop, "care", partial(maintain_outbox, shares, stop)),
            stop,
        )
        _run_with_connection(options, stop, "reads", partial(publish, options, shares, stop))
        caring.join()


def _run_with_connection(options: RelayOptions, stop: Stop, name: str, body: Callable[[Connection], None]) -> None:
    run_with_reconnect(options.database_url, name=f"vidflow relay {name}", stop=stop, pause_s=RETRY_S, body=body)


def publish(options: RelayOptions, shares: ShardLeases, stop: Stop, tables: Connection) -> None:
    """Batch after batch: read, publish, remove; until a stop is requested, and what is on its way then has its answers."""
    publisher = Publisher(options.kafka, client_id="vidflow-relay")
    try:
        relay = Relay(shares, publisher, tables, stop)
        while not stop.requested:
            stop.wait(relay.step())
        relay.complete_batches()
    finally:
        publisher.close()


class Relay:
    """What lies between two batches: those on their way, how far a backlog is sent, which topics are passed over."""

    def __init__(self, shares: ShardLeases, publisher: Publisher, tables: Connection, stop: Stop) -> None:
        self._shares = shares
        self._publisher = publisher
        self._tables = tables
        self._stop = stop
        self._postgres = postgres_outage()
        self._pause_s = BUSY_POLL_S
        self._swept_s = float("-inf")
        self._held_back: dict[str, float] = {}
        self._shards: frozenset[int] = frozenset()
        self._in_flight: deque[InFlightBatch] = deque()
        self._backlog_cursor = 0
        """Where a backlog goes on: nothing waits up to this id but what is on its way. 0: there is no backlog."""

    def step(self) -> float:
        """Sends a batch; where several are on their way or none is new, removes what is answered.

        Returns for how long to wait before the next step.
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
        """Removes what has its answers, and waits for them while more than `max_in_flight` batches are on their way.

        Whether some of it failed: then all has landed, and what lies behind a failure of its key is sent again too.
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
        """Takes note of shards that came or went, with nothing on its way: rows further down may be ours to publish now."""
        if self._shares.surplus:
            self.complete_batches()
            self._shares.release_surplus(self._tables)
        if (owned := self._shares.owned_shards()) != self._shards:
            self.complete_batches()
            self._shards, self._swept_s = owned, float("-inf")

    def _read_next(self) -> list[PendingMessage]:
        """The next batch: of a backlog, what follows; else what is new among the last ids, and each second among all."""
        if not self._shards:
            return []
        without = _unexpired(self._held_back)
        batch = None
        if not without and time.monotonic() - self._swept_s < SWEEP_S:
            batch = self._read_backlog() if self._backlog_cursor else self._read(window=outbox.WINDOW)
        if batch is None:
            batch, self._swept_s = self._read(excluded_topics=without), time.monotonic()
        self._backlog_cursor = batch[-1].id if _is_full(batch) else 0
        return batch

    def _read_backlog(self) -> list[PendingMessage] | None:
        """What follows in the backlog; None where a row has become visible below it, which may come before others of its key.

        Looked for behind the read: what it comes before was visible then, so it is now, and nobody else removes it.
        """
        batch = self._read(after=self._backlog_cursor)
        known = sum(row.id <= self._backlog_cursor for flight in self._in_flight for row in flight.batch)
        return batch if outbox.count_pending_up_to(self._tables, self._backlog_cursor, self._shards) == known else None

    def _read(
        self, *, after: int = 0, window: int | None = None, excluded_topics: Collection[str] = ()
    ) -> list[PendingMessage]:
        """A batch of what waits and is not on its way."""
        on_way = [row.id for flight in self._in_flight for row in flight.batch if row.id > after]
        return outbox.read_pending_messages(
            self._tables,
            BATCH_ROWS,
            after_id=after,
            window=window,
            shards=self._shards,
            excluded_topics=excluded_topics,
            in_flight_ids=on_way,
        )

    def _send(self, batch: list[PendingMessage]) -> None:
        sendable = self._hold_back(batch)
        crashpoint("relay.before_publish")
        if sendable:
            self._in_flight.append(self._publisher.send(sendable))

    def _hold_back(self, batch: list[PendingMessage]) -> list[PendingMessage]:
        """The batch without the messages to topics that the broker has not got; these wait, and hold up no others."""
        missing = self._publisher.find_missing_topics({row.topic for row in batch})
        if missing:
            until_s = time.monotonic() + HOLD_BACK_S
            self._held_back = dict.fromkeys(missing, until_s) | _unexpired(self._held_back)
            return [row for row in batch if row.topic not in missing]
        return batch

    def _wait(self, flight: InFlightBatch) -> None:
        """Waits for the answers while the shards are ours, and in a stop for a while."""
        since_s = time.monotonic()

        def wanted() -> bool:
            in_time = not self._stop.requested or time.monotonic() - since_s < GRACE_S
            return in_time and self._shares.owns(flight.shards)

        self._publisher.wait_for_delivery(flight, wanted)

    def _try_remove(self, answers: DeliveryResults, shards: set[int]) -> bool:
        """Removes what was acknowledged; whether nothing is to be sent again."""
        crashpoint("relay.after_publish")
        try:
            self._remove_with_retries(answers, shards)
        except LeaseLost as lost:  # another relay sends it again
            _log.warning("lease_lost", reason=lost.message)
            return False
        crashpoint("relay.after_mark")
        return not answers.failed

    def _remove_with_retries(self, answers: DeliveryResults, shards: set[int]) -> None:
        """Removes; on a full disk again and again: what is not removed would be published again, all the time."""
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
        with self._shares.fenced(shards) as tx:
            removed = outbox.remove_published(tx, answers.acknowledged)
            for row_id, error in answers.refused.items():
                outbox.set_aside(tx, row_id, error)
        metrics.RELAY_PUBLISHED.inc(removed)
        metrics.RELAY_SET_ASIDE.inc(len(answers.refused))
        metrics.RELAY_FAILED.inc(len(answers.failed))
        if removed < len(answers.acknowledged):
            _log.warning("removed_elsewhere", rows=len(answers.acknowledged) - removed)
        for row_id, error in answers.refused.items():
            _log.error("set_aside", outbox_id=row_id, error=error, needs="look at it: vidflow outbox list")
        if answers.failed:
            key, error = next(iter(answers.failed.items()))
            _log.warning("delivery_failed", keys=len(answers.failed), first_key=key, error=error)


def _is_full(batch: Sequence[PendingMessage]) -> bool:
    """Whether more may wait behind it: it was cut by its rows or by its bytes."""
    return len(batch) >= BATCH_ROWS or sum(len(row.payload) for row in batch) >= outbox.BATCH_BYTES


def _unexpired(held_back: dict[str, float]) -> dict[str, float]:
    now_s = time.monotonic()
    return {topic: until_s for topic, until_s in held_back.items() if until_s > now_s}


def maintain_outbox(shares: ShardLeases, stop: Stop, tables: Connection) -> None:
    """Beside the publishing, for the shards that are owned: measures the lag, and deletes what earlier versions marked."""
    while not stop.wait(MAINTENANCE_INTERVAL_S):
        shards = shares.owned_shards()
        lag = outbox.read_lag(tables, shards)
        metrics.RELAY_OUTBOX_WAITING.set(lag.waiting)
        metrics.RELAY_OUTBOX_OLDEST_S.set(lag.oldest_s)
        metrics.RELAY_OUTBOX_SET_ASIDE.set(lag.set_aside)
        # One relay deletes: the rows of all shards lie side by side.
        while (
            0 in shards
            and not stop.requested
            and outbox.remove_legacy_published(tables, MARKED_BATCH_ROWS) == MARKED_BATCH_ROWS
        ):
            pass
