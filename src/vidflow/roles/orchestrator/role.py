"""The loop of the orchestrator: listen, look at the tables, reconcile (domain), write what follows under the lease's fence."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

import psycopg

from vidflow.domain.errors import IllegalTransition
from vidflow.domain.leader import Given, Known, Memory, Plan, Timing, World, hear
from vidflow.domain.messages import RESULTS, Report
from vidflow.domain.reconcile import reconcile
from vidflow.domain.scenario import Decision, Event, Limits, decide
from vidflow.infra import inbox_partitions, lifecycle, metrics, outbox, runners
from vidflow.infra.crashpoint import crashpoint
from vidflow.infra.kafka import KafkaAway, wait_for_broker
from vidflow.infra.lease import Lease, keep
from vidflow.infra.migrations import wait_for_schema
from vidflow.infra.outage import kafka_outage, postgres_outage, require_kafka, require_postgres
from vidflow.infra.postgres import Connection, connect, is_conflict, is_disk_full
from vidflow.infra.stopping import Stop, start_thread
from vidflow.infra.telemetry import log
from vidflow.roles.orchestrator.ears import Ears
from vidflow.roles.orchestrator.keeping import keep_tables, prepare
from vidflow.settings import OrchestratorOptions

LEASE: Final = "leader"
TICK_S: Final = 0.2
SHOW_RUNNERS_S: Final = 1.0
ASK_TOPIC_S: Final = 2.0
_log = log("orchestrator")


def run(options: OrchestratorOptions, stop: Stop) -> None:
    """Leads while it holds the lease, stands by while another does, until it is to stop."""
    require_postgres(options.database_url)
    require_kafka(options.kafka)
    options.keeping.checked()
    wait_for_schema(options.database_url, stop)
    with metrics.served(options.metrics_port):
        keep(options.database_url, LEASE, stop, lambda lease: lead(options, lease, stop))


def lead(options: OrchestratorOptions, lease: Lease, stop: Stop) -> None:
    """Ticks until the lease is lost or a stop is requested. What it remembers ends with it: the next leader starts empty."""
    prepare(options.database_url, lease, options.keeping)
    keeping = start_thread(
        "leader keeps", lambda: keep_tables(options.database_url, lease, options.keeping, stop), stop
    )
    ears = Ears(options.kafka, str(lease.holder))
    try:
        if not (wait_for_broker(options.kafka, stop) and _opened(ears, lease, stop)):
            return
        with connect(options.database_url, name="vidflow leader reads") as tables:
            leader = Leader(options, lease, ears, tables)
            metrics.LEADS.set(1)
            while lease.held() and not stop.requested:
                ears.listen(TICK_S, leader.hear)
                with metrics.TICK_SECONDS.time():
                    leader.tick()
    finally:
        metrics.LEADS.set(0)
        ears.close()
        lease.end()  # or the thread, and with it this leadership, would go on for as long as the lease is renewed
        keeping.join()


def _opened(ears: Ears, lease: Lease, stop: Stop) -> bool:
    """Waits for Kafka and its topics; False where the lease or the process ends before they are there."""
    outage = kafka_outage()
    while lease.held() and not stop.requested:
        try:
            ears.open()
        except KafkaAway as error:
            outage.away(error)
            stop.wait(TICK_S)
        else:
            outage.back()
            return True
    return False


class Leader:
    """What one leadership knows: its memory, and when it last did what it does less often than each tick."""

    def __init__(self, options: OrchestratorOptions, lease: Lease, ears: Ears, tables: Connection) -> None:
        self._pool = options.pool
        self._limits = Limits(attempts=options.attempts)
        self._timing = Timing()
        self._lease = lease
        self._ears = ears
        self._tables = tables
        self._postgres = postgres_outage()
        self._memory = Memory()
        self._topic: tuple[str, list[int]] | None = None
        self._asked_s = 0.0
        self._shown_s = 0.0

    def hear(self, report: Report) -> bool:
        """Remembers a report; whether it tells something that the one before did not."""
        before = self._memory.runners.get(report.runner)
        self._memory = hear(self._memory, report, time.monotonic())
        if before is None:
            self._shown_s = 0.0  # a new one is shown at once
        return before is None or before.report is None or _told(before.report) != _told(report)

    def tick(self) -> None:
        """Looks, reconciles, writes."""
        plan = reconcile(self._memory, self._world(), self._limits, self._timing)
        try:
            if plan.events or plan.commands:
                self._write(plan)
                self._postgres.back()
            self._show_runners()
        except psycopg.Error as error:
            if is_disk_full(error):
                self._postgres.away(error)  # it answers: to lead anew would mend nothing
            elif is_conflict(error):
                _log.debug("conflict", error=str(error).strip())
            else:
                raise
            return  # nothing was written: the next tick says the same again
        self._memory = plan.memory

    def _world(self) -> World:
        now_s = time.monotonic()
        hearing_since_s = self._ears.hearing_since(now_s)
        if hearing_since_s is not None and now_s - self._asked_s >= ASK_TOPIC_S:
            self._ask_topic(now_s)
        with self._tables.transaction():
            # In one snapshot, and the clock after what was heard: a loss that was heard before it is caught up with after it.
            self._tables.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            now_db_s = lifecycle.database_seconds(self._tables)
            known = lifecycle.unfinished(self._tables)
            caught_up_db_s = inbox_partitions.caught_up_s(self._tables, RESULTS, *self._topic) if self._topic else None
        return World(known, now_s, now_db_s, caught_up_db_s, hearing_since_s, self._pool)

    def _ask_topic(self, now_s: float) -> None:
        self._asked_s = now_s
        try:
            self._topic = self._ears.results_topic(RESULTS)
        except KafkaAway as error:
            self._topic = None  # nothing is caught up with a topic that nobody knows
            _log.debug("topic_unknown", topic=RESULTS, error=error.message)

    def _write(self, plan: Plan) -> None:
        decisions = decided(plan.events)
        with self._lease.fenced() as tx:
            effective = lifecycle.write_back(tx, decisions, self._pool)
            outbox.add_commands(tx, lifecycle.command_rows(tx, plan.commands, self._pool))
            crashpoint("orchestrator.before_commit")
        crashpoint("orchestrator.after_commit")
        _tell(effective, plan.commands)

    def _show_runners(self) -> None:
        now_s = time.monotonic()
        if now_s - self._shown_s < SHOW_RUNNERS_S:
            return
        self._shown_s = now_s
        with self._lease.fenced() as tx:
            runners.write(tx, self._memory.runners, now_s)


def decided(events: Iterable[tuple[Known, Event]]) -> list[Decision]:
    """What the lifecycle makes of the events. An illegal one is a fault of ours: told, and nothing for the others to fail by."""
    decisions = []
    for known, event in events:
        try:
            decisions.append(decide(known.scenario, event))
        except IllegalTransition as error:
            _log.error(
                "illegal_transition", scenario_uuid=known.scenario.scenario_uuid, kind=event.kind, error=error.message
            )
    return decisions


def _told(report: Report) -> tuple[object, ...]:
    """What of a report is news. That a running worker got on is none, once it has begun."""
    entries = [(e.scenario_uuid, e.epoch, e.reason, e.next_frame > 0) for e in report.entries]
    return report.draining, report.capacity, entries


def _tell(decisions: Sequence[Decision], commands: Sequence[Given]) -> None:
    for decision in decisions:
        after = decision.after or decision.before
        metrics.MOVES.labels(after.state).inc()
        _log.info(
            "scenario_moved", scenario_uuid=after.scenario_uuid, to=after.state, reason=decision.event.reason, epoch=after.epoch,
            attempt=after.attempt or None, runner=after.runner, outcome=after.outcome,
            error=after.error.message if after.error else None,
        )  # fmt: skip
    for one in commands:
        _log.debug("command_given", kind=one.kind, scenario_uuid=one.scenario_uuid, epoch=one.epoch, runner=one.runner)
