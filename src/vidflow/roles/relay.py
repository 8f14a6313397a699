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

from vidflow.infra.kafka.publisher import Answers, Flight, Publisher, add_answers
from vidflow.infra.postgres import outbox
from vidflow.infra.postgres.connection import Connection, while_there
from vidflow.infra.postgres.errors import is_disk_full
from vidflow.infra.postgres.lease import LeaseLost
from vidflow.infra.postgres.migrations import wait_for_schema
from vidflow.infra.postgres.outbox import Pending
from vidflow.infra.postgres.shares import Shares, kept
from vidflow.infra.process.crashpoint import crashpoint
from vidflow.infra.process.stopping import Stop, start_thread
from vidflow.infra.telemetry import metrics
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.outage import postgres_outage, require_kafka, require_postgres
from vidflow.settings import RelayOptions

BATCH: Final = 2000
ON_THEIR_WAY: Final = 2
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
CARE_S: Final = 5.0
"""How often the lag is measured, and what an earlier version has marked is deleted."""
MARKED: Final = 10_000
_log = log("relay")


def run(options: RelayOptions, stop: Stop) -> None:
    """Publishes the shards that it owns until it is to stop, and ends behind what is on its way then."""
    require_postgres(options.database_url)
    require_kafka(options.kafka)
    wait_for_schema(options.database_url, stop)
    registry = metrics.registry_of("relay", metrics.RELAY)
    with (
        metrics.served(registry, options.metrics_port, options.metrics_host),
        kept(options.database_url, stop) as shares,
    ):
        caring = start_thread("outbox care", lambda: _work(options, stop, "care", partial(care, shares, stop)), stop)
        _work(options, stop, "reads", partial(publish, options, shares, stop))
        caring.join()


def _work(options: RelayOptions, stop: Stop, name: str, body: Callable[[Connection], None]) -> None:
    while_there(options.database_url, name=f"vidflow relay {name}", stop=stop, pause_s=RETRY_S, body=body)


def publish(options: RelayOptions, shares: Shares, stop: Stop, tables: Connection) -> None:
    """Batch after batch: read, publish, remove; until a stop is requested, and what is on its way then has its answers."""
    publisher = Publisher(options.kafka, client_id="vidflow-relay")
    try:
        relay = Relay(shares, publisher, tables, stop)
        while not stop.requested:
            stop.wait(relay.step())
        relay.land()
    finally:
        publisher.close()


class Relay:
    """What lies between two batches: those on their way, how far a backlog is sent, which topics are passed over."""

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
        self._flights: deque[Flight] = deque()
        self._sent = 0
        """Where a backlog goes on: nothing waits up to this id but what is on its way. 0: there is no backlog."""

    def step(self) -> float:
        """Sends a batch; where several are on their way or none is new, removes what is answered.

        Returns for how long to wait before the next step.
        """
        self._settle_shares()
        batch = self._next()
        if batch:
            self._send(batch)
        if (not batch or len(self._flights) > ON_THEIR_WAY) and self.land(ON_THEIR_WAY):
            return RETRY_S
        self._pause_s = BUSY_POLL_S if batch or self._flights else min(self._pause_s * 1.5, IDLE_POLL_S)
        return 0.0 if self._sent else self._pause_s

    def land(self, left: int = 0) -> bool:
        """Removes what has its answers, and waits for them while more than `left` batches are on their way.

        Whether some of it failed: then all has landed, and what lies behind a failure of its key is sent again too.
        """
        answers, shards = Answers(), set[int]()
        self._publisher.hear()
        while self._flights and (len(self._flights) > left or not self._flights[0].waiting or answers.failed):
            flight = self._flights.popleft()
            self._wait(flight)
            add_answers(answers, flight)
            shards |= flight.shards
        failed = bool(shards) and not self._removed(answers, shards)
        if failed or not left:
            self._sent = 0
        return failed

    def _settle_shares(self) -> None:
        """Takes note of shards that came or went, with nothing on its way: rows further down may be ours to publish now."""
        if self._shares.surplus:
            self.land()
            self._shares.give_up_surplus(self._tables)
        if (owned := self._shares.owned()) != self._shards:
            self.land()
            self._shards, self._swept_s = owned, float("-inf")

    def _next(self) -> list[Pending]:
        """The next batch: of a backlog, what follows; else what is new among the last ids, and each second among all."""
        if not self._shards:
            return []
        without = _still(self._held_back)
        batch = None
        if not without and time.monotonic() - self._swept_s < SWEEP_S:
            batch = self._following() if self._sent else self._read(window=outbox.WINDOW)
        if batch is None:
            batch, self._swept_s = self._read(without=without), time.monotonic()
        self._sent = batch[-1].id if _is_full(batch) else 0
        return batch

    def _following(self) -> list[Pending] | None:
        """What follows in the backlog; None where a row has become visible below it, which may come before others of its key.

        Looked for behind the read: what it comes before was visible then, so it is now, and nobody else removes it.
        """
        batch = self._read(after=self._sent)
        known = sum(row.id <= self._sent for flight in self._flights for row in flight.batch)
        return batch if outbox.waiting_up_to(self._tables, self._sent, self._shards) == known else None

    def _read(self, *, after: int = 0, window: int | None = None, without: Collection[str] = ()) -> list[Pending]:
        """A batch of what waits and is not on its way."""
        on_way = [row.id for flight in self._flights for row in flight.batch if row.id > after]
        return outbox.pending(
            self._tables, BATCH, after=after, window=window, shards=self._shards, without=without, on_way=on_way
        )

    def _send(self, batch: list[Pending]) -> None:
        sendable = self._hold_back(batch)
        crashpoint("relay.before_publish")
        if sendable:
            self._flights.append(self._publisher.send(sendable))

    def _hold_back(self, batch: list[Pending]) -> list[Pending]:
        """The batch without the messages to topics that the broker has not got; these wait, and hold up no others."""
        missing = self._publisher.missing({row.topic for row in batch})
        if missing:
            until_s = time.monotonic() + HOLD_BACK_S
            self._held_back = dict.fromkeys(missing, until_s) | _still(self._held_back)
            return [row for row in batch if row.topic not in missing]
        return batch

    def _wait(self, flight: Flight) -> None:
        """Waits for the answers while the shards are ours, and in a stop for a while."""
        since_s = time.monotonic()

        def wanted() -> bool:
            in_time = not self._stop.requested or time.monotonic() - since_s < GRACE_S
            return in_time and self._shares.owns(flight.shards)

        self._publisher.wait(flight, wanted)

    def _removed(self, answers: Answers, shards: set[int]) -> bool:
        """Removes what was acknowledged; whether nothing is to be sent again."""
        crashpoint("relay.after_publish")
        try:
            self._until_removed(answers, shards)
        except LeaseLost as lost:  # another relay sends it again
            _log.warning("lease_lost", reason=lost.message)
            return False
        crashpoint("relay.after_mark")
        return not answers.failed

    def _until_removed(self, answers: Answers, shards: set[int]) -> None:
        """Removes; on a full disk again and again: what is not removed would be published again, all the time."""
        while True:
            try:
                self._remove(answers, shards)
            except psycopg.Error as error:
                if not is_disk_full(error):
                    raise
                self._postgres.away(error)
                if self._stop.wait(RETRY_S):
                    raise
            else:
                self._postgres.back()
                return

    def _remove(self, answers: Answers, shards: set[int]) -> None:
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


def _is_full(batch: Sequence[Pending]) -> bool:
    """Whether more may wait behind it: it was cut by its rows or by its bytes."""
    return len(batch) >= BATCH or sum(len(row.payload) for row in batch) >= outbox.BATCH_BYTES


def _still(held_back: dict[str, float]) -> dict[str, float]:
    now_s = time.monotonic()
    return {topic: until_s for topic, until_s in held_back.items() if until_s > now_s}


def care(shares: Shares, stop: Stop, tables: Connection) -> None:
    """Beside the publishing, for the shards that are owned: measures the lag, and deletes what earlier versions marked."""
    while not stop.wait(CARE_S):
        shards = shares.owned()
        lag = outbox.lag(tables, shards)
        metrics.OUTBOX_WAITING.set(lag.waiting)
        metrics.OUTBOX_OLDEST_S.set(lag.oldest_s)
        metrics.OUTBOX_SET_ASIDE.set(lag.set_aside)
        # One relay deletes: the rows of all shards lie side by side.
        while 0 in shards and not stop.requested and outbox.remove_marked(tables, MARKED) == MARKED:
            pass
