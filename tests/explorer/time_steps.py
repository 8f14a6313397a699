"""A unit of time passes: who is well reports, everything else gets older. When it may pass: once all that is prompt is done."""

from __future__ import annotations

from tests.explorer.leader_steps import can_report, hear_runner
from tests.explorer.state import LONG_AGO_S, TrackedFinding, WorldState, age_by_unit, is_kafka_away, replace
from tests.invariants.simulation_state import RunnerMode

from vidflow.domain.leader import Cause, RunnerView


def can_time_pass(state: WorldState, ticked: WorldState) -> bool:
    """Whether nothing prompt is left to do: the leader has decided, the relay has published, the runners have read.

    `ticked` is the state after one more tick of the leader. Results may be as slow as they like, and so may workers that have
    frames to do; anything else that is slow is a fault ("slip").
    """
    if state.pending_plan or ticked != state:
        return False
    if is_kafka_away(state):
        return True
    return not state.outbox and not any(
        runner.mode is RunnerMode.HEALTHY and (runner.commands or any(one and one.finishing for one in runner.workers))
        for runner in state.runners
    )


def advance_time(state: WorldState) -> WorldState:
    """One unit later."""
    leader = state.leader
    views = tuple(
        (name, RunnerView(age_by_unit(view.last_seen_s), view.report, view.mark)) for name, view in leader.views
    )
    found = tuple(one and _age_finding(one) for one in leader.findings)
    state = state._replace(
        leader=leader._replace(
            views=views, findings=found, commands_sent=frozenset((key, LONG_AGO_S) for key, _ in leader.commands_sent)
        ),
        probes_heard_since_s=None if state.probes_heard_since_s is None else age_by_unit(state.probes_heard_since_s),
        rows=tuple(row if row.due else row._replace(due=True) for row in state.rows),
    )
    for slot in range(len(state.runners)):
        if can_report(state, slot):
            state = hear_runner(state, slot)
    return state


def _age_finding(found: TrackedFinding) -> TrackedFinding:
    if found.finding.cause not in {Cause.UNLISTED, Cause.RUNS_ON}:
        return found
    return found._replace(finding=replace(found.finding, since_s=age_by_unit(found.finding.since_s)))
