"""The relay: reads the outbox, publishes to Kafka, marks what the broker has acknowledged. It decides nothing else.

Any number of relays share the outbox's shards. Nothing is marked that was not acknowledged, and no transaction is open while
Kafka is waited for: a relay that dies between the two is followed by one that publishes again, never too little.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

import psycopg

from vidflow.infra import metrics, outbox
from vidflow.infra.crashpoint import crashpoint
from vidflow.infra.lease import LeaseLost
from vidflow.infra.migrations import wait_for_schema
from vidflow.infra.outage import postgres_outage, require_kafka, require_postgres
from vidflow.infra.outbox import Pending
from vidflow.infra.postgres import Connection, is_disk_full, while_there
from vidflow.infra.publisher import Answers, Flight, Publisher
from vidflow.infra.shares import Shares, kept
from vidflow.infra.stopping import Stop, start_thread
from vidflow.infra.telemetry import log
from vidflow.settings import RelayOptions

BATCH: Final = 1000
BUSY_POLL_S: Final = 0.002
IDLE_POLL_S: Final = 0.05
SWEEP_S: Final = 1.0
"""How often all ids are looked through, not the last ones alone."""
HOLD_BACK_S: Final = 1.0
"""How long the messages to a missing topic are passed over, so that they hold up no other."""
RETRY_S: Final = 0.2
GRACE_S: Final = 5.0
"""How long a relay that is to stop waits for the answers to what is on its way."""
KEEP_PUBLISHED_S: Final = 3600.0
CARE_S: Final = 5.0
"""How often the lag is measured and old published messages are deleted."""
PRUNED: Final = 10_000
_log = log("relay")


def run(options: RelayOptions, stop: Stop) -> None:
    """Publishes the shards that it owns until it is to stop, and ends behind what is on its way then."""
    require_postgres(options.database_url)
    require_kafka(options.kafka)
    wait_for_schema(options.database_url, stop)
    with metrics.served(options.metrics_port), kept(options.database_url, stop) as shares:
        caring = start_thread("outbox care", lambda: _work(options, stop, "care", partial(care, shares, stop)), stop)
        _work(options, stop, "reads", partial(publish, options, shares, stop))
        caring.join()


def _work(options: RelayOptions, stop: Stop, name: str, body: Callable[[Connection], None]) -> None:
    while_there(options.database_url, name=f"vidflow relay {name}", stop=stop, pause_s=RETRY_S, body=body)


def publish(options: RelayOptions, shares: Shares, stop: Stop, tables: Connection) -> None:
    """Batch after batch: read, publish, mark; until a stop is requested, and what is on its way then has its answers."""
    publisher = Publisher(options.kafka, client_id="vidflow-relay")
    try:
        relay = Relay(shares, publisher, tables, stop)
        while not stop.requested:
            stop.wait(relay.step())
        relay.land()
    finally:
        publisher.close()


class Relay:
    """What lies between two batches: the one on its way, how far the backlog is sent, which topics are passed over."""

    def __init__(self, shares: Shares, publisher: Publisher, tables: Connection, stop: Stop) -> None:
        self._shares = shares
        self._publisher = publisher
        self._tables = tables
        self._stop = stop
        self._postgres = postgres_outage()
        self._pause_s = BUSY_POLL_S
        self._swept_s = float("-inf")
        self._held_back: dict[str, float] = {}
        self._shards: frozenset[int] = frozenset()
        self._flight: Flight | None = None
        self._sent = 0
        """All that waits up to this id is on its way or answered; 0: unknown."""

    def step(self) -> float:
        """Sends a batch while the one before it is answered and marked; returns for how long to wait before the next."""
        self._settle_shares()
        batch = self._next()
        flight, before = self._sent_off(batch), self._flight
        self._flight = flight
        failed = self._answered(before) if before else False
        if failed or len(batch) < BATCH:
            failed = self.land() or failed
        if failed:
            return RETRY_S
        self._pause_s = BUSY_POLL_S if batch else min(self._pause_s * 1.5, IDLE_POLL_S)
        return 0.0 if len(batch) == BATCH else self._pause_s

    def land(self) -> bool:
        """Waits for what is on its way and marks it; whether some of it failed. Behind it the backlog is looked at anew."""
        flight, self._flight, self._sent = self._flight, None, 0
        return self._answered(flight) if flight else False

    def _settle_shares(self) -> None:
        """Takes note of shards that came or went, with nothing on its way: rows further down may be ours to publish now."""
        if self._shares.surplus:
            self.land()
            self._shares.give_up_surplus(self._tables)
        if (owned := self._shares.owned()) != self._shards:
            self.land()
            self._shards, self._swept_s = owned, float("-inf")

    def _next(self) -> list[Pending]:
        """The next batch: what follows the one on its way; else from the last ids, and each second from all."""
        if not self._shards:
            return []
        without = _still(self._held_back)
        if time.monotonic() - self._swept_s >= SWEEP_S or without:
            self.land()
            self._swept_s = time.monotonic()
        elif not self._sent:
            return outbox.pending(self._tables, BATCH, window=outbox.WINDOW, shards=self._shards, without=without)
        return outbox.pending(self._tables, BATCH, after=self._sent, shards=self._shards, without=without)

    def _sent_off(self, batch: list[Pending]) -> Flight | None:
        if not batch:
            self._publisher.idle()
            return None
        self._sent = batch[-1].id
        sendable = self._hold_back(batch)
        crashpoint("relay.before_publish")
        return self._publisher.send(sendable) if sendable else None

    def _hold_back(self, batch: list[Pending]) -> list[Pending]:
        """The batch without the messages to topics that the broker has not got; these wait, and hold up no others."""
        missing = self._publisher.missing({row.topic for row in batch})
        until_s = time.monotonic() + HOLD_BACK_S
        self._held_back = dict.fromkeys(missing, until_s) | _still(self._held_back)
        return [row for row in batch if row.topic not in missing]

    def _answered(self, flight: Flight) -> bool:
        """Waits for the answers and marks; whether some of it is to be sent again."""
        shards = {row.shard for row in flight.batch}
        since_s = time.monotonic()
        answers = self._publisher.answers(flight, lambda: self._wanted(shards, since_s))
        crashpoint("relay.after_publish")
        try:
            self._until_marked(answers, shards)
        except LeaseLost as lost:  # another relay sends it again
            _log.warning("lease_lost", reason=lost.message)
            return True
        crashpoint("relay.after_mark")
        return bool(answers.failed)

    def _wanted(self, shards: set[int], since_s: float) -> bool:
        """Whether their answers are to be waited for: while the shards are ours, and in a stop for a while."""
        in_time = not self._stop.requested or time.monotonic() - since_s < GRACE_S
        return in_time and self._shares.owns(shards)

    def _until_marked(self, answers: Answers, shards: set[int]) -> None:
        """Marks; on a full disk again and again: what is not marked would be published again, all the time."""
        while True:
            try:
                self._mark(answers, shards)
            except psycopg.Error as error:
                if not is_disk_full(error):
                    raise
                self._postgres.away(error)
                if self._stop.wait(RETRY_S):
                    raise
            else:
                self._postgres.back()
                return

    def _mark(self, answers: Answers, shards: set[int]) -> None:
        with self._shares.fenced(shards) as tx:
            marked = outbox.mark_published(tx, answers.acknowledged)
            for row_id, error in answers.refused.items():
                outbox.set_aside(tx, row_id, error)
        metrics.RELAY_PUBLISHED.inc(marked)
        metrics.RELAY_SET_ASIDE.inc(len(answers.refused))
        metrics.RELAY_FAILED.inc(len(answers.failed))
        if marked < len(answers.acknowledged):
            _log.warning("marked_elsewhere", rows=len(answers.acknowledged) - marked)
        for row_id, error in answers.refused.items():
            _log.error("set_aside", outbox_id=row_id, error=error, needs="look at it: vidflow outbox list")
        if answers.failed:
            key, error = next(iter(answers.failed.items()))
            _log.warning("delivery_failed", keys=len(answers.failed), first_key=key, error=error)


def _still(held_back: dict[str, float]) -> dict[str, float]:
    now_s = time.monotonic()
    return {topic: until_s for topic, until_s in held_back.items() if until_s > now_s}


def care(shares: Shares, stop: Stop, tables: Connection) -> None:
    """Beside the publishing, for the shards that are owned: measures the lag, and deletes what was published long ago."""
    while not stop.wait(CARE_S):
        shards = shares.owned()
        lag = outbox.lag(tables, shards)
        metrics.OUTBOX_WAITING.set(lag.waiting)
        metrics.OUTBOX_OLDEST_S.set(lag.oldest_s)
        metrics.OUTBOX_SET_ASIDE.set(lag.set_aside)
        # One relay deletes: the rows of all shards lie side by side.
        while 0 in shards and not stop.requested and outbox.prune(tables, KEEP_PUBLISHED_S, PRUNED) == PRUNED:
            pass
