"""The leader's loop: read the tables and the runners' reports, reconcile (domain), write the plan under the lease's fence."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import msgspec
import psycopg

from vidflow.domain.errors import IllegalTransition
from vidflow.domain.leader import (
    CommandKey,
    LeaderState,
    OutgoingCommand,
    Plan,
    ScenarioView,
    Snapshot,
    Timing,
    apply_reports,
    apply_written_plan,
)
from vidflow.domain.messages import Report
from vidflow.domain.reconcile import count_free_slots, reconcile
from vidflow.domain.scenario import Decision, Event, RetryPolicy, State, decide
from vidflow.infra.postgres import leader_tables, lifecycle, runners
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.postgres.errors import is_conflict, is_disk_full
from vidflow.infra.postgres.lease_holder import Lease
from vidflow.infra.process.crashpoint import crashpoint
from vidflow.infra.telemetry import metrics
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.outage import postgres_outage
from vidflow.roles.orchestrator.listener import LeaderListener

TICK_S: Final = 0.2
"""Longest pause between two ticks."""
FIRST_PAUSE_S: Final = 0.01
"""Pause after a tick that was woken: the rows that belong to a report are often stored a moment after it."""
CHUNK_SIZE: Final = 250
"""Events and commands written per transaction, far fewer than fit in the one second of a fenced transaction."""
WRITE_BUDGET_S: Final = 0.5
"""Time in which one tick may begin further transactions. The next ticks write the rest, after what is more urgent by then."""
WRITE_RUNNERS_INTERVAL_S: Final = 1.0
_log = log("orchestrator")

Chunk = tuple[Sequence[tuple[ScenarioView, Event]], Sequence[OutgoingCommand]]
"""The events and commands of one transaction."""


class Leader:
    """The work of one leader term. Its state is in memory and is lost with the term."""

    def __init__(self, lease: Lease, listener: LeaderListener, connection: Connection, attempts: int) -> None:
        self._retry_policy = RetryPolicy(max_attempts=attempts)
        self._timing = Timing()
        self._lease = lease
        self._listener = listener
        self._connection = connection
        self._postgres = postgres_outage()
        self._state = LeaderState()
        self._runners_written_s = float("-inf")

    def run(self, may_continue: Callable[[], bool]) -> None:
        """Tick until `may_continue` returns False.

        The next tick follows at once if a scenario moved, and after at most `TICK_S` otherwise.
        """
        pause_s = 0.0
        while True:
            woken = self._listener.wait(pause_s)
            if not may_continue():
                return
            began_s = time.monotonic()
            with metrics.TICK_SECONDS.time():
                moved = self.tick()
            pause_s = pause_after(pause_s, time.monotonic() - began_s, woken=woken, moved=moved)

    def tick(self) -> bool:
        """Read, reconcile, write. Return whether a scenario was moved, in which case its next move may be due."""
        reports = self._listener.take_reports()
        if any(report.runner not in self._state.runners for report, _ in reports):
            self._runners_written_s = float("-inf")  # write a new runner at once
        self._state = apply_reports(self._state, reports)
        try:
            plan = reconcile(self._state, self._read_snapshot(), self._retry_policy, self._timing)
            moved = self._write(plan)
            self._write_runners()
        except psycopg.Error as error:
            if is_disk_full(error):
                self._postgres.begin(error)  # the server answers, so a new term would not help
            elif is_conflict(error):
                _log.debug("conflict", error=str(error).strip())
            else:
                raise
            return False  # the next tick plans the unwritten part again
        return moved

    def _read_snapshot(self) -> Snapshot:
        """Return what the tables and the listener know now.

        Reports are taken before the database's clock is read, so a loss is dated no earlier than it happened. Once the inbox has
        caught up with that date, it has stored everything that was sent before the loss.
        """
        now_s = time.monotonic()
        probes_ok_since_s = self._listener.probes_ok_since(now_s)
        topic = self._listener.results_topic
        tables = leader_tables.read_tables_snapshot(
            self._connection,
            _find_ended_scenarios(self._state),
            (topic.name, topic.id, topic.partitions) if topic else None,
            self._retry_policy,
        )
        if tables.backoff_over:
            with self._lease.fenced() as tx:
                leader_tables.end_backoffs(tx)
        snapshot = Snapshot(tables.scenarios, now_s, tables.now_db_s, tables.caught_up_db_s, probes_ok_since_s)
        free_slots = count_free_slots(self._state, snapshot, self._timing)
        waiting = leader_tables.read_queue_head(self._connection, free_slots, self._retry_policy)
        return msgspec.structs.replace(snapshot, scenarios=[*snapshot.scenarios, *waiting])

    def _write(self, plan: Plan) -> bool:
        """Write the plan in transactions of bounded size. The state keeps only what was written."""
        events: set[str] = set()
        commands: set[CommandKey] = set()
        before, moved = self._state, False
        end_s = time.monotonic() + WRITE_BUDGET_S
        try:
            for chunk_events, chunk_commands in split_plan(plan):
                moved = bool(self._write_chunk(chunk_events, chunk_commands)) or moved
                events |= {view.scenario.scenario_uuid for view, _ in chunk_events}
                commands |= {command.key for command in chunk_commands}
                if time.monotonic() > end_s:
                    break
        finally:
            self._state = apply_written_plan(before, plan, events, commands)
        return moved

    def _write_chunk(
        self, events: Sequence[tuple[ScenarioView, Event]], commands: Sequence[OutgoingCommand]
    ) -> list[Decision]:
        with self._lease.fenced() as tx:
            effective = lifecycle.write_decisions(tx, decide_all(events), commands)
            crashpoint("orchestrator.before_commit")
        crashpoint("orchestrator.after_commit")
        self._postgres.end()
        _log_moves(effective, commands)
        return effective

    def _write_runners(self) -> None:
        now_s = time.monotonic()
        if now_s - self._runners_written_s < WRITE_RUNNERS_INTERVAL_S:
            return
        self._runners_written_s = now_s
        with self._lease.fenced() as tx:
            runners.write_runners(tx, self._state.runners, now_s)


def pause_after(pause_s: float, took_s: float, *, woken: bool, moved: bool) -> float:
    """Return the pause in seconds after a tick that took `took_s` and followed a pause of `pause_s`.

    There is no pause if a scenario moved. After a wake-up the pause is short, then doubles from tick to tick: the rows of a
    report are stored either soon or much later. It is never shorter than the tick, so that a flood of reports uses at most
    half a core.
    """
    if moved:
        return 0.0
    wanted_s = FIRST_PAUSE_S if woken else 2 * pause_s
    return min(max(wanted_s, took_s, FIRST_PAUSE_S), TICK_S)


def split_plan(plan: Plan) -> Iterator[Chunk]:
    """Yield the plan in chunks of at most `CHUNK_SIZE` events and `CHUNK_SIZE` commands, in order."""
    for start in range(0, max(len(plan.events), len(plan.commands)), CHUNK_SIZE):
        yield plan.events[start : start + CHUNK_SIZE], plan.commands[start : start + CHUNK_SIZE]


def decide_all(events: Iterable[tuple[ScenarioView, Event]]) -> list[Decision]:
    """Return the lifecycle's decisions. An illegal transition is a bug: it is logged and the other events still apply."""
    decisions = []
    for view, event in events:
        try:
            decisions.append(decide(view.scenario, event))
        except IllegalTransition as error:
            _log.error(
                "illegal_transition", scenario_uuid=view.scenario.scenario_uuid, kind=event.kind, error=error.message
            )
    return decisions


def _find_ended_scenarios(state: LeaderState) -> list[str]:
    reports: list[Report] = [view.report for view in state.runners.values() if view.report]
    return [entry.scenario_uuid for report in reports for entry in report.entries if not entry.is_running]


def _log_moves(decisions: Sequence[Decision], commands: Sequence[OutgoingCommand]) -> None:
    for decision in decisions:
        after = decision.after or decision.before
        metrics.MOVES.labels(after.state).inc()
        if after.state is State.INACTIVE:
            metrics.ENDED_SCENARIOS.labels(after.outcome).inc()
        _log.info(
            "scenario_moved", scenario_uuid=after.scenario_uuid, to=after.state, reason_code=decision.event.reason_code,
            reason=decision.event.reason, epoch=after.epoch, attempt=after.attempt or None, runner=after.runner, outcome=after.outcome,
            error=after.error.message if after.error else None,
        )  # fmt: skip
    for command in commands:
        _log.debug(
            "command_queued", kind=command.kind, scenario_uuid=command.scenario_uuid, epoch=command.epoch, runner=command.runner,
        )  # fmt: skip
