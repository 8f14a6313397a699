"""What the leader makes of the tables and the runners' reports: the events to apply and the commands to give again.

The leader compares levels, it does not follow edges: each tick it takes all that it last heard and all that the tables know,
and says what should follow. Nothing that it remembers is the only trace of anything; a new leader starts with an empty Memory.
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
from vidflow.domain.scenario import (
    DEFAULT_POOL,
    DEPLOYED,
    SHUTTING_DOWN,
    Event,
    Kind,
    RetryPolicy,
    State,
    next_epoch,
)  # fmt: skip


def reconcile(memory: LeaderState, world: Snapshot, limits: RetryPolicy, timing: Timing) -> Plan:
    """One tick: each scenario of the world is judged, each report answered, and the first of the queue are placed."""
    tick = build_tick_context(memory, world, limits, timing)
    judged = [
        (known, assess_scenario(known, memory.findings.get(known.scenario.scenario_uuid), tick))
        for known in world.scenarios
    ]
    tick = _mark_runners(tick, {known.scenario.runner for known, judgement in judged if judgement.marks_runner})
    events = [(known, judgement.event) for known, judgement in judged if judgement.event]
    findings: dict[str, Finding] = {k.scenario.scenario_uuid: j.finding for k, j in judged if j.finding}
    again = [_build_deploy(known) for known, judgement in judged if judgement.resend_deploy]
    commands, given = _select_due([*again, *answer_reports(tick), *ping_marked_runners(tick)], memory.last_sent_s, tick)
    events += assign_scenarios(tick)
    events.sort(key=lambda pair: pair[0].scenario.state in SHUTTING_DOWN)  # what may wait is written last
    return Plan(LeaderState(tick.runners, findings, given), events, commands)


def count_free_slots(memory: LeaderState, world: Snapshot, timing: Timing) -> dict[str, int]:
    """Return how many scenarios of each pool this tick may place at most: what is worth reading of the queue.

    `snapshot` need not hold anything that waits.
    """
    free: defaultdict[str, int] = defaultdict(int)
    tick = TickContext(
        world, _select_runners(memory, world, timing), RetryPolicy(), timing, {}
    )  # slots ask for no entries by their scenarios
    for slots in find_free_slots(tick):
        free[slots.pool] += max(slots.free, 0)
    return {pool: min(count, timing.max_assignments) for pool, count in free.items() if count}


# --- the runners


def build_tick_context(memory: LeaderState, world: Snapshot, limits: RetryPolicy, timing: Timing) -> TickContext:
    """Return the look of a leader that remembers this at this world."""
    runners = _select_runners(memory, world, timing)
    entries = {
        name: {entry.scenario_uuid: entry for entry in view.report.entries}
        for name, view in runners.items()
        if view.report is not None
    }
    return TickContext(world, runners, limits, timing, entries)


def _select_runners(memory: LeaderState, world: Snapshot, timing: Timing) -> dict[str, RunnerView]:
    """The runners that are worth remembering, with those that only the tables name: these have a whole lease from now."""
    named = {known.scenario.runner for known in world.scenarios if known.scenario.runner}
    runners = {
        name: view
        for name, view in memory.runners.items()
        if name in named or world.now_s - view.last_seen_s < timing.forget_runner_s
    }
    return runners | {name: RunnerView(world.now_s) for name in named - runners.keys()}


def _mark_runners(tick: TickContext, marks: set[str | None]) -> TickContext:
    """The runners with those marked that report but take nothing: the mark is the count that must grow for it to go."""
    marked = {
        name: msgspec.structs.replace(view, mark=view.report.taken)
        for name, view in tick.runners.items()
        if name in marks and view.report is not None
    }
    return msgspec.structs.replace(tick, runners={**tick.runners, **marked}) if marked else tick


def answer_reports(tick: TickContext) -> Iterable[OutgoingCommand]:
    """What the reports ask for: a stop for what runs and is not wanted there, a forget for what has ended and is not.

    The ended entry of a scenario in its shutdown stays: it tells that the scenario is drained.
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
            kind = StopWork if entry.is_running else Forget
            name = "stop" if entry.is_running else "forget"
            command = kind(entry.scenario_uuid, entry.epoch)
            yield OutgoingCommand(runner, command, name, entry.scenario_uuid, entry.epoch, view.report.pool)


def _select_placed(tick: TickContext, states: Collection[State]) -> set[tuple[str | None, str, int]]:
    """Runner, scenario and epoch of the scenarios in these states."""
    return {
        (known.scenario.runner, known.scenario.scenario_uuid, known.scenario.epoch)
        for known in tick.snapshot.scenarios
        if known.scenario.state in states
    }


def ping_marked_runners(tick: TickContext) -> Iterable[OutgoingCommand]:
    """A command without effect for each marked runner: its report tells when it has taken it."""
    for runner, view in tick.runners.items():
        if view.mark is not None and not tick.is_silent(view):
            pool = view.report.pool if view.report else DEFAULT_POOL
            yield OutgoingCommand(runner, Ping(runner), "ping", runner, 0, pool)


def _build_deploy(known: ScenarioView) -> OutgoingCommand:
    scenario = known.scenario
    return OutgoingCommand(scenario.runner or "", None, "deploy", scenario.scenario_uuid, scenario.epoch, scenario.pool)


def _select_due(
    wanted: Sequence[OutgoingCommand], given: Mapping[CommandKey, float], tick: TickContext
) -> tuple[list[OutgoingCommand], dict[CommandKey, float]]:
    """Of the commands that are wanted those that were not given just now; and when each was last given."""
    commands: list[OutgoingCommand] = []
    last: dict[CommandKey, float] = {}
    for one in wanted:
        key = one.key
        pause_s = tick.timing.resend_deploy_s if one.kind == "deploy" else tick.timing.resend_s
        if key in given and tick.snapshot.now_s - given[key] < pause_s:
            last[key] = given[key]
            continue
        last[key] = tick.snapshot.now_s
        commands.append(one)
    return commands, last


# --- placing what waits


def assign_scenarios(tick: TickContext) -> list[tuple[ScenarioView, Event]]:
    """An assignment for each scenario that is due and finds a free slot in its pool."""
    due = {
        k.scenario.scenario_uuid: k for k in tick.snapshot.scenarios if k.scenario.state is State.INIT_STARTUP and k.due
    }
    if not due:
        return []
    waiting: defaultdict[str, list[QueuedScenario]] = defaultdict(list)
    for uuid, known in due.items():
        waiting[known.scenario.pool].append(
            QueuedScenario(uuid, known.priority, known.since_s, _previous_runner(known))
        )
    slots: defaultdict[str, list[RunnerSlots]] = defaultdict(list)
    for one in find_free_slots(tick):
        slots[one.pool].append(one)
    placed = [
        pair for pool in waiting for pair in place_scenarios(waiting[pool], slots[pool], tick.timing.max_assignments)
    ]
    return [(due[uuid], _build_assignment_event(due[uuid], runner, tick.snapshot)) for uuid, runner in placed]


def _previous_runner(known: ScenarioView) -> str | None:
    scenario = known.scenario
    return scenario.runner if scenario.attempt or scenario.returns else None


def find_free_slots(tick: TickContext) -> list[RunnerSlots]:
    """The runners of all pools that may be given work: heard within their lease, not draining, not marked; and their free slots."""
    world = tick.snapshot
    held: defaultdict[str | None, set[str]] = defaultdict(set)
    for known in world.scenarios:
        if known.scenario.state in DEPLOYED:
            held[known.scenario.runner].add(known.scenario.scenario_uuid)
    slots = []
    for runner, view in tick.runners.items():
        report = view.report
        if report is None or report.draining or view.mark is not None:
            continue
        if world.probes_received_since_s is None or world.now_s - view.last_seen_s >= tick.timing.runner_lease_s:
            continue
        busy = held[runner] | {entry.scenario_uuid for entry in report.entries if entry.is_running}
        slots.append(RunnerSlots(runner, report.capacity - len(busy), report.pool))
    return slots


def _build_assignment_event(known: ScenarioView, runner: str, world: Snapshot) -> Event:
    """`resume_frame` is what was read; the statement that raises the epoch reads it again, under the progress row's lock.

    A frame that was stored since the scenario came back (its worker lived on for a while) starts the count again.
    """
    scenario = known.scenario
    return Event(
        kind=Kind.ASSIGNED,
        reason="assigned",
        epoch=scenario.epoch,
        runner=runner,
        new_epoch=next_epoch(scenario.epoch, int(world.now_db_s * 1000)),
        resume_frame=known.progress.next_frame,
        attempt=0 if known.progress.next_frame > scenario.resume_frame else None,
    )
