"""One leadership's loop: look at the tables and at what was heard, reconcile (domain), write what follows under the lease's fence."""

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
from vidflow.infra.postgres.lease import Lease
from vidflow.infra.process.crashpoint import crashpoint
from vidflow.infra.telemetry import metrics
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.outage import postgres_outage
from vidflow.roles.orchestrator.listener import LeaderListener

TICK_S: Final = 0.2
"""The longest pause between two ticks."""
FIRST_PAUSE_S: Final = 0.01
"""The pause after a tick that something woke: what a report told of is often stored a moment later."""
CHUNK_SIZE: Final = 250
"""How many events and commands one transaction writes: far fewer than the fence's second is enough for."""
WRITE_BUDGET_S: Final = 0.5
"""For how long one tick begins further transactions. What is left follows in the next ones, behind what is more urgent then."""
WRITE_RUNNERS_INTERVAL_S: Final = 1.0
_log = log("orchestrator")

Chunk = tuple[Sequence[tuple[ScenarioView, Event]], Sequence[OutgoingCommand]]
"""What one transaction writes."""


class Leader:
    """What one leadership knows: its memory, and when it last did what it does less often than each tick."""

    def __init__(self, lease: Lease, hearing: LeaderListener, tables: Connection, attempts: int) -> None:
        self._retry_policy = RetryPolicy(max_attempts=attempts)
        self._timing = Timing()
        self._lease = lease
        self._listener = hearing
        self._tables = tables
        self._postgres = postgres_outage()
        self._state = LeaderState()
        self._runners_written_s = float("-inf")

    def run(self, goes_on: Callable[[], bool]) -> None:
        """Tick until `goes_on` says no: at once where something was moved or heard, else at the latest after `TICK_S`."""
        pause_s = 0.0
        while True:
            woken = self._listener.wait(pause_s)
            if not goes_on():
                return
            began_s = time.monotonic()
            with metrics.TICK_SECONDS.time():
                moved = self.tick()
            pause_s = pause_after(pause_s, time.monotonic() - began_s, woken=woken, moved=moved)

    def tick(self) -> bool:
        """Look, reconcile, write. Return whether a scenario was moved: its next move may be due."""
        heard = self._listener.take_reports()
        if any(report.runner not in self._state.runners for report, _ in heard):
            self._runners_written_s = float("-inf")  # a new runner is shown at once
        self._state = apply_reports(self._state, heard)
        try:
            plan = reconcile(self._state, self._read_snapshot(), self._retry_policy, self._timing)
            moved = self._write(plan)
            self._write_runners()
        except psycopg.Error as error:
            if is_disk_full(error):
                self._postgres.begin(error)  # it answers: to lead again from the start would not help
            elif is_conflict(error):
                _log.debug("conflict", error=str(error).strip())
            else:
                raise
            return False  # the next tick finds again what was not written
        return moved

    def _read_snapshot(self) -> Snapshot:
        """What was heard is taken before the database's clock is read: a loss heard of before it is caught up with after it."""
        now_s = time.monotonic()
        hearing_since_s = self._listener.probes_ok_since(now_s)
        topic = self._listener.results_topic
        engaged = leader_tables.read_tables_snapshot(
            self._tables,
            _find_ended_scenarios(self._state),
            (topic.name, topic.id, topic.partitions) if topic else None,
            self._retry_policy,
        )
        if engaged.backoff_over:
            with self._lease.fenced() as tx:
                leader_tables.end_backoffs(tx)
        world = Snapshot(engaged.scenarios, now_s, engaged.now_db_s, engaged.caught_up_db_s, hearing_since_s)
        room = count_free_slots(self._state, world, self._timing)
        waiting = leader_tables.read_queue_head(self._tables, room, self._retry_policy)
        return msgspec.structs.replace(world, scenarios=[*world.scenarios, *waiting])

    def _write(self, plan: Plan) -> bool:
        """Write the plan in transactions of bounded size. What was not written is not remembered either."""
        events: set[str] = set()
        commands: set[CommandKey] = set()
        before, moved = self._state, False
        end_s = time.monotonic() + WRITE_BUDGET_S
        try:
            for some, given in split_plan(plan):
                moved = bool(self._write_chunk(some, given)) or moved
                events |= {known.scenario.scenario_uuid for known, _ in some}
                commands |= {one.key for one in given}
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
    """Return the pause after a tick that took `took_s`, before which there was one of `pause_s`.

    None where a scenario was moved. Short where the tick was woken, then doubled from tick to tick: what a report told of is
    stored soon, or not soon. Never shorter than the tick itself, so that a flood of reports takes half of a core at most.
    """
    if moved:
        return 0.0
    wanted_s = FIRST_PAUSE_S if woken else 2 * pause_s
    return min(max(wanted_s, took_s, FIRST_PAUSE_S), TICK_S)


def split_plan(plan: Plan) -> Iterator[Chunk]:
    """Return the plan in parts of at most `CHUNK_SIZE` events and `CHUNK_SIZE` commands, in the plan's order."""
    for start in range(0, max(len(plan.events), len(plan.commands)), CHUNK_SIZE):
        yield plan.events[start : start + CHUNK_SIZE], plan.commands[start : start + CHUNK_SIZE]


def decide_all(events: Iterable[tuple[ScenarioView, Event]]) -> list[Decision]:
    """Return what the lifecycle makes of the events. An illegal one is our own fault: logged, and the others go on."""
    decisions = []
    for known, event in events:
        try:
            decisions.append(decide(known.scenario, event))
        except IllegalTransition as error:
            _log.error(
                "illegal_transition", scenario_uuid=known.scenario.scenario_uuid, kind=event.kind, error=error.message
            )
    return decisions


def _find_ended_scenarios(memory: LeaderState) -> list[str]:
    reports: list[Report] = [view.report for view in memory.runners.values() if view.report]
    return [entry.scenario_uuid for report in reports for entry in report.entries if not entry.is_running]


def _log_moves(decisions: Sequence[Decision], commands: Sequence[OutgoingCommand]) -> None:
    for decision in decisions:
        after = decision.after or decision.before
        metrics.MOVES.labels(after.state).inc()
        if after.state is State.INACTIVE:
            metrics.ENDED_SCENARIOS.labels(after.outcome).inc()
        _log.info(
            "scenario_moved", scenario_uuid=after.scenario_uuid, to=after.state, reason=decision.event.reason, epoch=after.epoch,
            attempt=after.attempt or None, runner=after.runner, outcome=after.outcome,
            error=after.error.message if after.error else None,
        )  # fmt: skip
    for one in commands:
        _log.debug("command_given", kind=one.kind, scenario_uuid=one.scenario_uuid, epoch=one.epoch, runner=one.runner)
