"""The inbox stores the next message of a partition, as domain/progress.py decides. Checks that it stores nothing wrong."""

from __future__ import annotations

from functools import partial

from tests.explorer.state import (
    LeaderProcessState,
    ScenarioRow,
    TrackedFinding,
    WorldState,
    replace,
    replace_at,
    with_leader,
)
from tests.invariants.simulation_checks import violation
from tests.invariants.simulation_state import PTS_STEP

from vidflow.domain.messages import End, Frame, GapReason, Result
from vidflow.domain.progress import Progress, Verdict, advance, select_gaps
from vidflow.domain.scenario import State


def store_next(state: WorldState, index: int) -> WorldState:
    """Store the next message of the scenario's partition and move past it."""
    return skip_next(store_message(state, index, state.logs[index][0]), index)


def skip_next(state: WorldState, index: int) -> WorldState:
    """Move the inbox past the next message of the partition, which also reduces the lag of every finding."""
    message, *rest = state.logs[index]
    state = state._replace(logs=replace_at(state.logs, index, tuple(rest)))
    backup = state.backup
    if backup and backup.rows:
        backup = backup._replace(
            stored_since=replace_at(backup.stored_since, index, (*backup.stored_since[index], message))
        )
    return with_leader(state, partial(_reduce_lags, index=index))._replace(backup=backup)


def _reduce_lags(leader: LeaderProcessState, index: int) -> LeaderProcessState:
    return leader._replace(findings=tuple(_reduce_lag(finding, index) for finding in leader.findings))


def _reduce_lag(finding: TrackedFinding | None, index: int) -> TrackedFinding | None:
    if finding is None or not finding.results_left[index]:
        return finding
    return finding._replace(results_left=replace_at(finding.results_left, index, finding.results_left[index] - 1))


def store_message(state: WorldState, index: int, message: Result) -> WorldState:
    """Apply the message to the scenario's progress. Repeats are not counted, to keep the number of states small."""
    row = state.rows[index]
    progress, verdict = advance(row.progress, message)
    if verdict is Verdict.STORED:
        _check_stored(row.progress, progress, message, row.scenario.state)
        row = row._replace(covered=_cover(row, message))
        state = state._replace(rows=replace_at(state.rows, index, row))
    elif progress.next_frame != row.progress.next_frame:
        raise violation(5, f"next_frame moved to {progress.next_frame} with {verdict}")
    if progress.repeats:
        progress = replace(progress, repeats=0)
    if progress == row.progress:
        return state
    losses = row.losses_in_a_row if progress.next_frame == row.progress.next_frame else 0
    return state._replace(rows=replace_at(state.rows, index, row._replace(progress=progress, losses_in_a_row=losses)))


def _cover(row: ScenarioRow, message: Result) -> int:
    """Return up to which index frames and gaps reach after the message.

    A gap may be reported again. That of skipped frames may be longer then.
    """
    covered = row.covered
    if not isinstance(message, Frame | End):
        return covered
    for gap in select_gaps(row.progress, message):
        if gap.to_s > covered and gap.from_s != covered and gap.reason is not GapReason.SKIPPED:
            raise violation(6, f"frames and gaps reach to index {covered}, then follows a gap from {gap.from_s:g}")
        covered = max(covered, int(gap.to_s))
    if isinstance(message, End):
        return covered
    if message.pts != covered * PTS_STEP:
        text = f"frame {message.frame_number} of index {message.pts // PTS_STEP}"
        raise violation(6, f"frames and gaps reach to index {covered}, then follows {text}")
    return covered + 1


def _check_stored(before: Progress, after: Progress, message: Result, scenario_state: State) -> None:
    if scenario_state is State.INACTIVE and not isinstance(message, End):
        raise violation(6, "a row was stored after `complete`")
    if message.epoch < before.epoch:
        raise violation(4, f"epoch {message.epoch} stored a result while epoch {before.epoch} is current")
    if isinstance(message, Frame) and message.frame_number != before.next_frame:
        raise violation(5, f"frame {message.frame_number} stored after {before.next_frame} rows")
    if after.next_frame != before.next_frame + isinstance(message, Frame):
        raise violation(5, f"next_frame moved from {before.next_frame} to {after.next_frame} with {message}")
