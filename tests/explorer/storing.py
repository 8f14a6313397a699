"""The inbox's move: it stores the next message of a partition, as domain/progress.py says; and what would be wrong to store."""

from __future__ import annotations

from functools import partial

from tests.explorer.state import Found, Leader, State, put, replace, with_leader
from tests.invariants.holds import broken

from vidflow.domain.messages import End, Frame, Result
from vidflow.domain.progress import Progress, Verdict, advance
from vidflow.domain.scenario import State as Stage


def stores(state: State, index: int) -> State:
    """The next message of the scenario's partition; all that was found before it lay there is nearer to be caught up with."""
    return passed_over(taken(state, index, state.logs[index][0]), index)


def passed_over(state: State, index: int) -> State:
    """The next message of the partition lies behind the inbox."""
    message, *rest = state.logs[index]
    state = state._replace(logs=put(state.logs, index, tuple(rest)))
    backup = state.backup
    if backup and backup.rows:
        backup = backup._replace(stored=put(backup.stored, index, (*backup.stored[index], message)))
    return with_leader(state, partial(_nearer_all, index=index))._replace(backup=backup)


def _nearer_all(leader: Leader, index: int) -> Leader:
    return leader._replace(found=tuple(_nearer(one, index) for one in leader.found))


def _nearer(found: Found | None, index: int) -> Found | None:
    if found is None or not found.behind[index]:
        return found
    return found._replace(behind=put(found.behind, index, found.behind[index] - 1))


def taken(state: State, index: int, message: Result) -> State:
    """What the message makes of the scenario's progress. What it repeats is counted by nobody here."""
    row = state.rows[index]
    progress, verdict = advance(row.progress, message)
    if verdict is Verdict.STORED:
        _check_stored(row.progress, progress, message, row.scenario.state)
    elif progress.next_frame != row.progress.next_frame:
        raise broken(5, f"next_frame moved to {progress.next_frame} with {verdict}")
    if progress.repeats:
        progress = replace(progress, repeats=0)
    if progress == row.progress:
        return state
    in_a_row = row.in_a_row if progress.next_frame == row.progress.next_frame else 0
    return state._replace(rows=put(state.rows, index, row._replace(progress=progress, in_a_row=in_a_row)))


def _check_stored(before: Progress, after: Progress, message: Result, stage: Stage) -> None:
    if stage is Stage.INACTIVE and not isinstance(message, End):
        raise broken(6, "a row came behind `complete`")
    if message.epoch < before.epoch:
        raise broken(4, f"epoch {message.epoch} stored something while {before.epoch} counts")
    if isinstance(message, Frame) and message.frame_number != before.next_frame:
        raise broken(5, f"frame {message.frame_number} is stored behind {before.next_frame} rows")
    if after.next_frame != before.next_frame + isinstance(message, Frame):
        raise broken(5, f"next_frame {after.next_frame} with {before.next_frame} rows and one more")
