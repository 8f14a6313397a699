"""The relay: reads the outbox, publishes to Kafka, marks what the broker has acknowledged. It decides nothing else.

One relay works at a time, by a lease; the others stand by. Nothing is marked that was not acknowledged, and no transaction is
open while Kafka is waited for: a relay that dies between the two publishes again, never too little.
"""

from __future__ import annotations

import time
from typing import Final

from vidflow.infra import metrics, outbox
from vidflow.infra.crashpoint import crashpoint
from vidflow.infra.lease import Lease, keep
from vidflow.infra.migrations import wait_for_schema
from vidflow.infra.outage import require_kafka, require_postgres
from vidflow.infra.outbox import Pending
from vidflow.infra.postgres import Connection, connect
from vidflow.infra.publisher import Answers, Publisher
from vidflow.infra.stopping import Stop
from vidflow.infra.telemetry import log
from vidflow.settings import RelayOptions

LEASE: Final = "relay"
BATCH: Final = 1000
BUSY_POLL_S: Final = 0.002
IDLE_POLL_S: Final = 0.05
SWEEP_S: Final = 1.0
"""How often all ids are looked through, not the last ones alone."""
HOLD_BACK_S: Final = 1.0
"""How long the messages to a missing topic are passed over, so that they hold up no other."""
FAILED_S: Final = 0.2
KEEP_PUBLISHED_S: Final = 3600.0
CARE_S: Final = 5.0
"""How often the lag is measured and old published messages are deleted."""
PRUNED: Final = 10_000
_log = log("relay")


def run(options: RelayOptions, stop: Stop) -> None:
    """Publishes while it holds the lease, stands by while another relay does, until it is to stop."""
    require_postgres(options.database_url)
    require_kafka(options.kafka)
    wait_for_schema(options.database_url, stop)
    with metrics.served(options.metrics_port):
        keep(options.database_url, LEASE, stop, lambda lease: publish_while_held(options, lease, stop))


def publish_while_held(options: RelayOptions, lease: Lease, stop: Stop) -> None:
    """Batch after batch: read, publish, mark; until the lease is lost or a stop is requested."""
    publisher = Publisher(options.kafka, client_id="vidflow-relay")
    try:
        with connect(options.database_url, name="vidflow relay reads") as tables:
            relay = Relay(lease, publisher, tables, stop)
            while relay.wanted():
                stop.wait(relay.step())
    finally:
        publisher.close()


class Relay:
    """What one holding of the lease knows: when it looked last, and which topics it passes over."""

    def __init__(self, lease: Lease, publisher: Publisher, tables: Connection, stop: Stop) -> None:
        self._lease = lease
        self._publisher = publisher
        self._tables = tables
        self._stop = stop
        self._pause_s = BUSY_POLL_S
        self._swept_s = float("-inf")
        self._cared_s = float("-inf")
        self._held_back: dict[str, float] = {}

    def wanted(self) -> bool:
        """Whether this process is to publish now."""
        return self._lease.held() and not self._stop.requested

    def step(self) -> float:
        """Moves one batch; returns for how long to wait before the next."""
        batch = self._pending()
        if not batch:
            self._pause_s = min(self._pause_s * 1.5, IDLE_POLL_S)
            self._publisher.idle()
            self._care()
            return self._pause_s
        self._pause_s = BUSY_POLL_S
        sendable = self._hold_back(batch)
        if not sendable:
            return BUSY_POLL_S
        crashpoint("relay.before_publish")
        answers = self._publisher.publish(sendable, self.wanted)
        crashpoint("relay.after_publish")
        self._mark(answers)
        crashpoint("relay.after_mark")
        return FAILED_S if answers.failed else 0.0

    def _pending(self) -> list[Pending]:
        """The next batch: from the last ids, and each second, or while there is a backlog, from all."""
        now_s = time.monotonic()
        without = [topic for topic, until_s in self._held_back.items() if until_s > now_s]
        if now_s - self._swept_s < SWEEP_S:
            return outbox.pending(self._tables, BATCH, window=outbox.WINDOW, without=without)
        batch = outbox.pending(self._tables, BATCH, without=without)
        if len(batch) < BATCH:
            self._swept_s = now_s
        return batch

    def _hold_back(self, batch: list[Pending]) -> list[Pending]:
        """The batch without the messages to topics that the broker has not got; these wait, and hold up no others."""
        missing = self._publisher.missing({row.topic for row in batch})
        until_s = time.monotonic() + HOLD_BACK_S
        self._held_back = dict.fromkeys(missing, until_s) | _still(self._held_back)
        return [row for row in batch if row.topic not in missing]

    def _mark(self, answers: Answers) -> None:
        with self._lease.fenced() as tx:
            marked = outbox.mark_published(tx, answers.acknowledged)
            for row_id, error in answers.refused.items():
                outbox.set_aside(tx, row_id, error)
        metrics.RELAY_PUBLISHED.inc(marked)
        metrics.RELAY_SET_ASIDE.inc(len(answers.refused))
        metrics.RELAY_FAILED.inc(len(answers.failed))
        if marked < len(answers.acknowledged):
            _log.warning("marked_elsewhere", rows=len(answers.acknowledged) - marked)
        for row_id, error in answers.refused.items():
            _log.error("set_aside", outbox_id=row_id, error=error, needs="look at the row; nothing will send it")
        if answers.failed:
            key, error = next(iter(answers.failed.items()))
            _log.warning("delivery_failed", keys=len(answers.failed), first_key=key, error=error)

    def _care(self) -> None:
        """What is done in a quiet moment: old published rows go, and the lag is measured."""
        if time.monotonic() - self._cared_s < CARE_S:
            return
        self._cared_s = time.monotonic()
        outbox.prune(self._tables, KEEP_PUBLISHED_S, PRUNED)
        lag = outbox.lag(self._tables)
        metrics.OUTBOX_WAITING.set(lag.waiting)
        metrics.OUTBOX_OLDEST_S.set(lag.oldest_s)


def _still(held_back: dict[str, float]) -> dict[str, float]:
    now_s = time.monotonic()
    return {topic: until_s for topic, until_s in held_back.items() if until_s > now_s}
