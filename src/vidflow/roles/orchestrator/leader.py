"""One leadership's loop: look at the tables and at what was heard, reconcile (domain), write what follows under the lease's fence."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import msgspec
import psycopg

from vidflow.domain.errors import IllegalTransition
from vidflow.domain.leader import CommandKey, Given, Known, Memory, Plan, Timing, World, hear_all, remember
from vidflow.domain.messages import Report
from vidflow.domain.reconcile import reconcile, vacancies
from vidflow.domain.scenario import Decision, Event, Limits, State, decide
from vidflow.infra.postgres import leader_tables, lifecycle, runners
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.postgres.errors import is_conflict, is_disk_full
from vidflow.infra.postgres.lease import Lease
from vidflow.infra.process.crashpoint import crashpoint
from vidflow.infra.telemetry import metrics
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.outage import postgres_outage
from vidflow.roles.orchestrator.hearing import Hearing

TICK_S: Final = 0.2
"""The longest pause between two ticks."""
FIRST_PAUSE_S: Final = 0.01
"""The pause after a tick that something woke: what a report told of is often stored a moment later."""
CHUNK: Final = 250
"""How many events and commands one transaction writes: far fewer than the fence's second is enough for."""
WRITE_S: Final = 0.5
"""For how long one tick begins further transactions. What is left follows in the next ones, behind what is more urgent then."""
SHOW_RUNNERS_S: Final = 1.0
_log = log("orchestrator")

Write = tuple[Sequence[tuple[Known, Event]], Sequence[Given]]
"""What one transaction writes."""


class Leader:
    """What one leadership knows: its memory, and when it last did what it does less often than each tick."""

    def __init__(self, lease: Lease, hearing: Hearing, tables: Connection, attempts: int) -> None:
        self._limits = Limits(attempts=attempts)
        self._timing = Timing()
        self._lease = lease
        self._hearing = hearing
        self._tables = tables
        self._postgres = postgres_outage()
        self._memory = Memory()
        self._shown_s = float("-inf")

    def run(self, goes_on: Callable[[], bool]) -> None:
        """Tick until `goes_on` says no: at once where something was moved or heard, else at the latest after `TICK_S`."""
        pause_s = 0.0
        while True:
            woken = self._hearing.wait(pause_s)
            if not goes_on():
                return
            began_s = time.monotonic()
            with metrics.TICK_SECONDS.time():
                moved = self.tick()
            pause_s = pause_after(pause_s, time.monotonic() - began_s, woken=woken, moved=moved)

    def tick(self) -> bool:
        """Look, reconcile, write. Return whether a scenario was moved: its next move may be due."""
        heard = self._hearing.reports()
        if any(report.runner not in self._memory.runners for report, _ in heard):
            self._shown_s = float("-inf")  # a new runner is shown at once
        self._memory = hear_all(self._memory, heard)
        try:
            plan = reconcile(self._memory, self._world(), self._limits, self._timing)
            moved = self._write(plan)
            self._show_runners()
        except psycopg.Error as error:
            if is_disk_full(error):
                self._postgres.away(error)  # it answers: to lead again from the start would not help
            elif is_conflict(error):
                _log.debug("conflict", error=str(error).strip())
            else:
                raise
            return False  # the next tick finds again what was not written
        return moved

    def _world(self) -> World:
        """What was heard is taken before the database's clock is read: a loss heard of before it is caught up with after it."""
        now_s = time.monotonic()
        hearing_since_s = self._hearing.hearing_since(now_s)
        topic = self._hearing.results
        engaged = leader_tables.engagement(
            self._tables,
            _ended(self._memory),
            (topic.name, topic.id, topic.partitions) if topic else None,
            self._limits,
        )
        if engaged.backoff_over:
            with self._lease.fenced() as tx:
                leader_tables.end_backoffs(tx)
        world = World(engaged.known, now_s, engaged.now_db_s, engaged.caught_up_db_s, hearing_since_s)
        room = vacancies(self._memory, world, self._timing)
        waiting = leader_tables.head_of_queue(self._tables, room, self._limits)
        return msgspec.structs.replace(world, known=[*world.known, *waiting])

    def _write(self, plan: Plan) -> bool:
        """Write the plan in transactions of bounded size. What was not written is not remembered either."""
        events: set[str] = set()
        commands: set[CommandKey] = set()
        before, moved = self._memory, False
        end_s = time.monotonic() + WRITE_S
        try:
            for some, given in chunks(plan):
                moved = bool(self._write_chunk(some, given)) or moved
                events |= {known.scenario.scenario_uuid for known, _ in some}
                commands |= {one.key for one in given}
                if time.monotonic() > end_s:
                    break
        finally:
            self._memory = remember(before, plan, events, commands)
        return moved

    def _write_chunk(self, events: Sequence[tuple[Known, Event]], commands: Sequence[Given]) -> list[Decision]:
        with self._lease.fenced() as tx:
            effective = lifecycle.write_back(tx, decided(events), commands)
            crashpoint("orchestrator.before_commit")
        crashpoint("orchestrator.after_commit")
        self._postgres.back()
        _log_moves(effective, commands)
        return effective

    def _show_runners(self) -> None:
        now_s = time.monotonic()
        if now_s - self._shown_s < SHOW_RUNNERS_S:
            return
        self._shown_s = now_s
        with self._lease.fenced() as tx:
            runners.write(tx, self._memory.runners, now_s)


def pause_after(pause_s: float, took_s: float, *, woken: bool, moved: bool) -> float:
    """Return the pause after a tick that took `took_s`, before which there was one of `pause_s`.

    None where a scenario was moved. Short where the tick was woken, then doubled from tick to tick: what a report told of is
    stored soon, or not soon. Never shorter than the tick itself, so that a flood of reports takes half of a core at most.
    """
    if moved:
        return 0.0
    wanted_s = FIRST_PAUSE_S if woken else 2 * pause_s
    return min(max(wanted_s, took_s, FIRST_PAUSE_S), TICK_S)


def chunks(plan: Plan) -> Iterator[Write]:
    """Return the plan in parts of at most `CHUNK` events and `CHUNK` commands, in the plan's order."""
    for start in range(0, max(len(plan.events), len(plan.commands)), CHUNK):
        yield plan.events[start : start + CHUNK], plan.commands[start : start + CHUNK]


def decided(events: Iterable[tuple[Known, Event]]) -> list[Decision]:
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


def _ended(memory: Memory) -> list[str]:
    reports: list[Report] = [view.report for view in memory.runners.values() if view.report]
    return [entry.scenario_uuid for report in reports for entry in report.entries if not entry.running]


def _log_moves(decisions: Sequence[Decision], commands: Sequence[Given]) -> None:
    for decision in decisions:
        after = decision.after or decision.before
        metrics.MOVES.labels(after.state).inc()
        if after.state is State.INACTIVE:
            metrics.ENDED.labels(after.outcome).inc()
        _log.info(
            "scenario_moved", scenario_uuid=after.scenario_uuid, to=after.state, reason=decision.event.reason, epoch=after.epoch,
            attempt=after.attempt or None, runner=after.runner, outcome=after.outcome,
            error=after.error.message if after.error else None,
        )  # fmt: skip
    for one in commands:
        _log.debug("command_given", kind=one.kind, scenario_uuid=one.scenario_uuid, epoch=one.epoch, runner=one.runner)
