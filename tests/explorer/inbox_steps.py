"""The inbox's move: it stores the next message of a partition, as domain/progress.py says; and what would be wrong to store."""

from __future__ import annotations

from functools import partial

from tests.explorer.state import LeaderProcessState, TrackedFinding, WorldState, replace, replace_at, with_leader
from tests.invariants.simulation_checks import violation

from vidflow.domain.messages import End, Frame, Result
from vidflow.domain.progress import Progress, Verdict, advance
from vidflow.domain.scenario import State as Stage


def store_next(state: WorldState, index: int) -> WorldState:
    """The next message of the scenario's partition; all that was found before it lay there is nearer to be caught up with."""
    return skip_next(store_message(state, index, state.logs[index][0]), index)


def skip_next(state: WorldState, index: int) -> WorldState:
    """The next message of the partition lies behind the inbox."""
    message, *rest = state.logs[index]
    state = state._replace(logs=replace_at(state.logs, index, tuple(rest)))
    backup = state.backup
    if backup and backup.rows:
        backup = backup._replace(
            stored_since=replace_at(backup.stored_since, index, (*backup.stored_since[index], message))
        )
    return with_leader(state, partial(_reduce_lags, index=index))._replace(backup=backup)


def _reduce_lags(leader: LeaderProcessState, index: int) -> LeaderProcessState:
    return leader._replace(findings=tuple(_reduce_lag(one, index) for one in leader.findings))


def _reduce_lag(found: TrackedFinding | None, index: int) -> TrackedFinding | None:
    if found is None or not found.results_left[index]:
        return found
    return found._replace(results_left=replace_at(found.results_left, index, found.results_left[index] - 1))


def store_message(state: WorldState, index: int, message: Result) -> WorldState:
    """What the message makes of the scenario's progress. What it repeats is counted by nobody here."""
    row = state.rows[index]
    progress, verdict = advance(row.progress, message)
    if verdict is Verdict.STORED:
        _check_stored(row.progress, progress, message, row.scenario.state)
    elif progress.next_frame != row.progress.next_frame:
        raise violation(5, f"next_frame moved to {progress.next_frame} with {verdict}")
    if progress.repeats:
        progress = replace(progress, repeats=0)
    if progress == row.progress:
        return state
    in_a_row = row.losses_in_a_row if progress.next_frame == row.progress.next_frame else 0
    return state._replace(rows=replace_at(state.rows, index, row._replace(progress=progress, losses_in_a_row=in_a_row)))


def _check_stored(before: Progress, after: Progress, message: Result, stage: Stage) -> None:
    if stage is Stage.INACTIVE and not isinstance(message, End):
        raise violation(6, "a row came behind `complete`")
    if message.epoch < before.epoch:
        raise violation(4, f"epoch {message.epoch} stored something while {before.epoch} counts")
    if isinstance(message, Frame) and message.frame_number != before.next_frame:
        raise violation(5, f"frame {message.frame_number} is stored behind {before.next_frame} rows")
    if after.next_frame != before.next_frame + isinstance(message, Frame):
        raise violation(5, f"next_frame {after.next_frame} with {before.next_frame} rows and one more")
