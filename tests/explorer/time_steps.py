"""A unit of time passes once nothing prompt is left to do: everything ages, then runners that can report do so."""

from __future__ import annotations

from tests.explorer.leader_steps import can_report, receive_current_report
from tests.explorer.state import LONG_AGO_S, TrackedFinding, WorldState, age_by_unit, is_kafka_away, replace
from tests.invariants.simulation_state import RunnerMode

from vidflow.domain.leader import Cause, RunnerView


def can_time_pass(state: WorldState, ticked: WorldState) -> bool:
    """Return whether nothing prompt is left to do: the leader has decided, the relay has published, the runners have read.

    `ticked` is the state after one more tick of the leader. Storing results and processing frames may take any time. Anything
    else that is slow is a fault ("delay").
    """
    if state.pending_plan or ticked != state:
        return False
    if is_kafka_away(state):
        return True
    return not state.outbox and not any(
        runner.mode is RunnerMode.HEALTHY
        and (runner.commands or any(worker and worker.finishing for worker in runner.workers))
        for runner in state.runners
    )


def advance_time(state: WorldState) -> WorldState:
    """Return the state one unit of time later."""
    leader = state.leader
    views = tuple(
        (name, RunnerView(age_by_unit(view.last_seen_s), view.report, view.mark)) for name, view in leader.views
    )
    findings = tuple(finding and _age_finding(finding) for finding in leader.findings)
    commands_sent = frozenset((key, LONG_AGO_S) for key, _ in leader.commands_sent)
    since_s = state.probes_received_since_s
    state = state._replace(
        leader=leader._replace(views=views, findings=findings, commands_sent=commands_sent),
        probes_received_since_s=None if since_s is None else age_by_unit(since_s),
        rows=tuple(row if row.due else row._replace(due=True) for row in state.rows),
    )
    for slot in range(len(state.runners)):
        if can_report(state, slot):
            state = receive_current_report(state, slot)
    return state


def _age_finding(tracked: TrackedFinding) -> TrackedFinding:
    finding = tracked.finding
    if finding.cause not in {Cause.UNLISTED, Cause.RUNS_ON}:
        return tracked
    return tracked._replace(finding=replace(finding, since_s=age_by_unit(finding.since_s)))
