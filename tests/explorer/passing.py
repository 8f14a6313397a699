"""A unit of time passes: who is well reports, everything else gets older. When it may pass: once all that is prompt is done."""

from __future__ import annotations

from tests.explorer.leading import can_report, hears
from tests.explorer.state import LONG_AGO_S, Found, State, is_away, older, replace
from tests.invariants.parts import Mode

from vidflow.domain.leader import Cause, RunnerView


def may_pass(state: State, ticked: State) -> bool:
    """Whether nothing prompt is left to do: the leader has decided, the relay has published, the runners have read.

    `ticked` is the state after one more tick of the leader. Results may be as slow as they like, and so may workers that have
    frames to do; anything else that is slow is a fault ("slip").
    """
    if state.looked or ticked != state:
        return False
    if is_away(state):
        return True
    return not state.outbox and not any(
        runner.mode is Mode.WELL and (runner.commands or any(one and one.finishing for one in runner.workers))
        for runner in state.runners
    )


def later(state: State) -> State:
    """One unit later."""
    leader = state.leader
    views = tuple((name, RunnerView(older(view.heard_s), view.report, view.mark)) for name, view in leader.views)
    found = tuple(one and _older(one) for one in leader.found)
    state = state._replace(
        leader=leader._replace(views=views, found=found, given=frozenset((key, LONG_AGO_S) for key, _ in leader.given)),
        hearing_s=None if state.hearing_s is None else older(state.hearing_s),
        rows=tuple(row if row.due else row._replace(due=True) for row in state.rows),
    )
    for slot in range(len(state.runners)):
        if can_report(state, slot):
            state = hears(state, slot)
    return state


def _older(found: Found) -> Found:
    if found.finding.cause not in {Cause.UNLISTED, Cause.RUNS_ON}:
        return found
    return found._replace(finding=replace(found.finding, since_s=older(found.finding.since_s)))
