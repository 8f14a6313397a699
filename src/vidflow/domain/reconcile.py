"""The leader's reconciliation of the tables with the runners' reports.

It is level-triggered: each tick derives the events to apply and the commands to send from the current tables and the last
report of each runner. The memory holds nothing essential; a new leader starts with an empty LeaderState.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from vidflow.domain.assessment import assess_scenario
from vidflow.domain.leader import (
    CommandKey,
    Finding,
    LeaderState,
    OutgoingCommand,
    Plan,
    RunnerView,
    ScenarioView,
    Snapshot,
    TickContext,
    Timing,
)
from vidflow.domain.messages import Forget, Ping, StopWork
from vidflow.domain.placement import QueuedScenario, RunnerSlots, place_scenarios
from vidflow.domain.reason_codes import ReasonCode
from vidflow.domain.scenario import (
    DEFAULT_POOL,
    DEPLOYED,
    SHUTTING_DOWN,
    Event,
    Kind,
    RetryPolicy,
    Scenario,
    State,
    next_epoch,
)  # fmt: skip


def reconcile(memory: LeaderState, snapshot: Snapshot, retry_policy: RetryPolicy, timing: Timing) -> Plan:
    """Return the plan of one tick: assess each scenario, answer each report and place the head of the queue."""
    tick = build_tick_context(memory, snapshot, retry_policy, timing)
    assessed = [
        (item, assess_scenario(item, memory.findings.get(item.scenario.scenario_uuid), tick))
        for item in snapshot.scenarios
    ]
    tick = _mark_runners(tick, {item.scenario.runner for item, assessment in assessed if assessment.marks_runner})
    events = [(item, assessment.event) for item, assessment in assessed if assessment.event]
    findings: dict[str, Finding] = {
        item.scenario.scenario_uuid: assessment.finding for item, assessment in assessed if assessment.finding
    }
    deploys = [_build_deploy(item.scenario) for item, assessment in assessed if assessment.resend_deploy]
    wanted = [*deploys, *answer_reports(tick), *ping_marked_runners(tick)]
    commands, last_sent_s = _select_due(wanted, memory.last_sent_s, tick)
    events += assign_scenarios(tick)
    events.sort(key=lambda pair: pair[0].scenario.state in SHUTTING_DOWN)  # shutdowns can wait and are written last
    return Plan(LeaderState(tick.runners, findings, last_sent_s), events, commands)


def count_free_slots(memory: LeaderState, snapshot: Snapshot, timing: Timing) -> dict[str, int]:
    """Return how many scenarios this tick may place in each pool. Reading more of the queue is pointless.

    `snapshot` need not contain queued scenarios.
    """
    free: defaultdict[str, int] = defaultdict(int)
    # The entries by scenario are left out: find_free_slots does not use them.
    tick = TickContext(snapshot, _select_runners(memory, snapshot, timing), RetryPolicy(), timing, {})
    for slots in find_free_slots(tick):
        free[slots.pool] += max(slots.free, 0)
    return {pool: min(count, timing.max_assignments) for pool, count in free.items() if count}


# --- the runners


def build_tick_context(
    memory: LeaderState, snapshot: Snapshot, retry_policy: RetryPolicy, timing: Timing
) -> TickContext:
    """Return the context of a tick over this memory and snapshot."""
    runners = _select_runners(memory, snapshot, timing)
    entries = {
        name: {entry.scenario_uuid: entry for entry in view.report.entries}
        for name, view in runners.items()
        if view.report is not None
    }
    return TickContext(snapshot, runners, retry_policy, timing, entries)


def _select_runners(memory: LeaderState, snapshot: Snapshot, timing: Timing) -> dict[str, RunnerView]:
    """Return the runners to remember. One that only the tables name gets a whole lease from now."""
    named = {item.scenario.runner for item in snapshot.scenarios if item.scenario.runner}
    runners = {
        name: view
        for name, view in memory.runners.items()
        if name in named or snapshot.now_s - view.last_seen_s < timing.forget_runner_s
    }
    return runners | {name: RunnerView(snapshot.now_s) for name in named - runners.keys()}


def _mark_runners(tick: TickContext, names: set[str | None]) -> TickContext:
    """Mark these runners, which report but take no commands, with the count that must grow for the mark to go."""
    marked = {
        name: msgspec.structs.replace(view, mark=view.report.taken)
        for name, view in tick.runners.items()
        if name in names and view.report is not None
    }
    return msgspec.structs.replace(tick, runners={**tick.runners, **marked}) if marked else tick


def answer_reports(tick: TickContext) -> Iterable[OutgoingCommand]:
    """Return a stop for each running entry that should not run there, and a forget for each ended one.

    The ended entry of a scenario that is shutting down is kept, since it shows that the scenario is drained.
    """
    wanted = _select_placed(tick, DEPLOYED)
    shutting_down = _select_placed(tick, SHUTTING_DOWN)
    for runner, view in tick.runners.items():
        if view.report is None or tick.is_silent(view):
            continue
        for entry in view.report.entries:
            place = (runner, entry.scenario_uuid, entry.epoch)
            if place in wanted or (place in shutting_down and not entry.is_running):
                continue
            command_type, kind = (StopWork, "stop") if entry.is_running else (Forget, "forget")
            command = command_type(entry.scenario_uuid, entry.epoch)
            yield OutgoingCommand(runner, command, kind, entry.scenario_uuid, entry.epoch, view.report.pool)


def _select_placed(tick: TickContext, states: Collection[State]) -> set[tuple[str | None, str, int]]:
    """Return runner, scenario_uuid and epoch of the scenarios in these states."""
    return {
        (item.scenario.runner, item.scenario.scenario_uuid, item.scenario.epoch)
        for item in tick.snapshot.scenarios
        if item.scenario.state in states
    }


def ping_marked_runners(tick: TickContext) -> Iterable[OutgoingCommand]:
    """Return a ping for each marked runner. The runner's report shows when it takes commands again."""
    for runner, view in tick.runners.items():
        if view.mark is not None and not tick.is_silent(view):
            pool = view.report.pool if view.report else DEFAULT_POOL
            yield OutgoingCommand(runner, Ping(runner), "ping", runner, 0, pool)


def _build_deploy(scenario: Scenario) -> OutgoingCommand:
    return OutgoingCommand(scenario.runner or "", None, "deploy", scenario.scenario_uuid, scenario.epoch, scenario.pool)


def _select_due(
    wanted: Sequence[OutgoingCommand], previous_s: Mapping[CommandKey, float], tick: TickContext
) -> tuple[list[OutgoingCommand], dict[CommandKey, float]]:
    """Return the wanted commands whose resend interval is over, and when each wanted command was last sent."""
    commands: list[OutgoingCommand] = []
    last_sent_s: dict[CommandKey, float] = {}
    for command in wanted:
        key = command.key
        interval_s = tick.timing.resend_deploy_s if command.kind == "deploy" else tick.timing.resend_s
        if key in previous_s and tick.snapshot.now_s - previous_s[key] < interval_s:
            last_sent_s[key] = previous_s[key]
            continue
        last_sent_s[key] = tick.snapshot.now_s
        commands.append(command)
    return commands, last_sent_s


# --- placement of queued scenarios


def assign_scenarios(tick: TickContext) -> list[tuple[ScenarioView, Event]]:
    """Return an assignment for each scenario that is due and gets a free slot in its pool."""
    due = {
        item.scenario.scenario_uuid: item
        for item in tick.snapshot.scenarios
        if item.scenario.state is State.INIT_STARTUP and item.due
    }
    if not due:
        return []
    waiting: defaultdict[str, list[QueuedScenario]] = defaultdict(list)
    for uuid, item in due.items():
        queued = QueuedScenario(uuid, item.priority, item.since_s, _previous_runner(item.scenario))
        waiting[item.scenario.pool].append(queued)
    for item in find_endangered(tick):
        queued = QueuedScenario(
            item.scenario.scenario_uuid, item.priority, item.since_s, item.scenario.runner, expected=True
        )
        waiting[item.scenario.pool].append(queued)
    slots: defaultdict[str, list[RunnerSlots]] = defaultdict(list)
    for runner_slots in find_free_slots(tick):
        slots[runner_slots.pool].append(runner_slots)
    placed = [
        pair for pool in waiting for pair in place_scenarios(waiting[pool], slots[pool], tick.timing.max_assignments)
    ]
    return [(due[uuid], _build_assignment_event(due[uuid], runner, tick.snapshot)) for uuid, runner in placed]


def find_endangered(tick: TickContext) -> Iterable[ScenarioView]:
    """Return the scenarios of runners that have missed a report, until their leases have expired and a little longer.

    A killed runner is often restarted, and its successor has free slots, before its lease expires. Without this, scenarios of
    lower priority would get these slots, and the interrupted ones would wait for those to end.
    """
    snapshot, timing = tick.snapshot, tick.timing
    for item in snapshot.scenarios:
        view = tick.runners.get(item.scenario.runner or "")
        if view is None or view.report is None or item.scenario.state not in DEPLOYED:
            continue
        silence_s = snapshot.now_s - view.last_seen_s
        if tick.is_silent_for(view, timing.missed_report_s) and silence_s < timing.runner_lease_s + timing.keep_slot_s:
            yield item


def _previous_runner(scenario: Scenario) -> str | None:
    return scenario.runner if scenario.attempt or scenario.requeues else None


def find_free_slots(tick: TickContext) -> list[RunnerSlots]:
    """Return the free slots of all runners that may get work: within their lease, not draining, not marked.

    The number of free slots may be zero or negative.
    """
    snapshot = tick.snapshot
    held: defaultdict[str | None, set[str]] = defaultdict(set)
    for item in snapshot.scenarios:
        if item.scenario.state in DEPLOYED:
            held[item.scenario.runner].add(item.scenario.scenario_uuid)
    slots = []
    for runner, view in tick.runners.items():
        report = view.report
        if report is None or report.draining or view.mark is not None:
            continue
        if snapshot.probes_received_since_s is None or snapshot.now_s - view.last_seen_s >= tick.timing.runner_lease_s:
            continue
        busy = held[runner] | {entry.scenario_uuid for entry in report.entries if entry.is_running}
        slots.append(RunnerSlots(runner, report.capacity - len(busy), report.pool))
    return slots


def _build_assignment_event(scenario_view: ScenarioView, runner: str, snapshot: Snapshot) -> Event:
    """Return the assignment of a scenario to a runner.

    `resume_frame` is the value in the snapshot; the statement that raises the epoch reads it again under the progress row's
    lock. A frame stored since the scenario was requeued, by a worker that lived on for a while, resets the attempts.
    """
    scenario, next_frame = scenario_view.scenario, scenario_view.progress.next_frame
    return Event(
        kind=Kind.ASSIGNED,
        reason_code=ReasonCode.ASSIGNED,
        reason="assigned",
        epoch=scenario.epoch,
        runner=runner,
        new_epoch=next_epoch(scenario.epoch, int(snapshot.now_db_s * 1000)),
        resume_frame=next_frame,
        attempt=0 if next_frame > scenario.resume_frame else None,
    )
