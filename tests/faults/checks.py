"""What must hold after any fault, by the numbers of the invariants: in the tables and for those who read. More: silence.py, trails.py."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import psycopg
from psycopg.rows import namedtuple_row
from tests.faults.system_under_test import Frames, SystemUnderTest
from tests.faults.topic_checks import check_7_quiescence, count_frames_sent
from tests.faults.trail_checks import check_trails
from tests.faults.violation import violation
from tests.faults.workloads import Workload
from tests.integration.server_owner import wait_until

from vidflow.domain.scenario import TRANSITIONS, Outcome, State

LEGAL_MOVES: Final = frozenset({(state, step.to) for (state, _), step in TRANSITIONS.items()})
OUTBOX_LIMIT_S: Final = 30.0

Connection = psycopg.Connection[Any]


@dataclass(frozen=True)
class CheckTotals:
    """What was looked at: frames read, missing of those that completed ones should have, and sent beyond those that were read."""

    scenarios: int
    frames: int
    frames_missing: int
    duplicate_frames: int
    losses: int
    requeues: int


@dataclass(frozen=True)
class FrameCounts:
    """Frames of one scenario: read, and missing."""

    read: int
    missing: int


def check_all(scene: SystemUnderTest) -> CheckTotals:
    """Waits until all is over, then makes all checks, of every scenario that the tables know and that was not yet looked at."""
    scene.wait_until_all_inactive()
    with scene.connect() as tables:
        tables.row_factory = namedtuple_row
        uuids = [uuid for uuid in check_1_created(tables, scene.created) if uuid not in scene.checked]
        read = lost = 0
        for uuid in uuids:
            check_3_history(tables, uuid)
            check_4_epochs(tables, uuid)
            check_5_rows(tables, uuid)
            found = check_6_to_8_frames(scene, tables, uuid)
            read, lost = read + found.read, lost + found.missing
        check_2_outbox(tables)
        check_7_quiescence(scene.processes)
        check_trails(scene, uuids)
        scene.checked.update(uuids)
        absorbed = count_frames_sent(scene.processes, uuids) - read
        return CheckTotals(len(uuids), read, lost, absorbed, *_count_losses_and_requeues(tables, uuids))


def check_1_created(tables: Connection, born: Collection[str]) -> list[str]:
    """What a client was told exists is there. (There may be more: births whose answer was lost.)"""
    uuids = [str(row.scenario_uuid) for row in tables.execute("SELECT scenario_uuid FROM scenarios")]
    if lost := set(born) - set(uuids):
        raise violation(1, f"clients were told of scenarios that are not there: {lost}")
    return uuids


def check_2_outbox(tables: Connection) -> None:
    """Every row reached Kafka. (The leader may add a ping at any moment: hence a wait for one without any that waits.)"""

    def is_empty() -> bool:
        [row] = tables.execute("SELECT count(*) AS waiting FROM outbox WHERE published_at IS NULL AND error IS NULL")
        return bool(row.waiting == 0)

    wait_until(is_empty, "invariant 2: the outbox is empty", OUTBOX_LIMIT_S)
    if aside := tables.execute("SELECT topic, error FROM outbox WHERE error IS NOT NULL").fetchall():
        raise violation(2, f"set aside: {aside}")


def check_3_history(tables: Connection, uuid: str) -> None:
    """The history is one path along the transition table, from birth to inactive, which is for ever."""
    history = _history(tables, uuid)
    scenario = _one(tables, "SELECT state, outcome, error FROM scenarios WHERE scenario_uuid = %s", uuid)
    if [row.number for row in history] != list(range(history[0].number, history[0].number + len(history))):
        raise violation(3, f"{uuid}: moves are missing: {history}")
    if history[0].from_state is not None or history[0].to_state != State.INIT_STARTUP:
        raise violation(3, f"{uuid}: born by {history[0]}")
    for before, move in pairwise(history):
        if move.from_state != before.to_state or (State(move.from_state), State(move.to_state)) not in LEGAL_MOVES:
            raise violation(3, f"{uuid}: {move} behind {before}")
    if not history[-1].to_state == scenario.state == State.INACTIVE:
        raise violation(3, f"{uuid} is {scenario.state}, and its history ends with {history[-1]}")


def check_4_epochs(tables: Connection, uuid: str) -> None:
    """Each deployment raises the epoch, nothing else does, and no row is of an epoch that was over before the row ahead of it."""
    given = [0]
    for move in _history(tables, uuid):
        if move.to_state == State.IN_STARTUP_PROCESSING:
            if move.epoch <= given[-1]:
                raise violation(4, f"{uuid}: epoch {move.epoch} behind {given[-1]}")
            given.append(move.epoch)
        elif move.epoch != given[-1]:
            raise violation(4, f"{uuid}: {move} within epoch {given[-1]}")
    stored = [row.epoch for row in _rows(tables, uuid)]
    if stored != sorted(stored) or not set(stored) <= set(given):
        raise violation(4, f"{uuid}: rows of the epochs {sorted(set(stored))}, given out: {given}")
    progress = _progress(tables, uuid)
    if progress.epoch != given[-1]:
        raise violation(4, f"{uuid}: progress at epoch {progress.epoch}, given out: {given}")


def check_5_rows(tables: Connection, uuid: str) -> None:
    """One row for each number from 0, as many as the progress says, in the order of the source."""
    rows = _rows(tables, uuid)
    if [row.frame_number for row in rows] != list(range(_progress(tables, uuid).next_frame)):
        raise violation(5, f"{uuid}: next_frame {_progress(tables, uuid).next_frame}, rows {_numbers(rows)}")
    if any(one.pts >= other.pts for one, other in pairwise(rows)):
        raise violation(5, f"{uuid}: a frame took another moment's place")


def check_6_to_8_frames(scene: SystemUnderTest, tables: Connection, uuid: str) -> FrameCounts:
    """Who reads it finds what an undisturbed run saw, and what a request for a shutdown was told is what became of it."""
    query = "SELECT outcome, error, source, model, fps FROM scenarios WHERE scenario_uuid = %s"
    scenario = _one(tables, query, uuid)
    told = scene.reported_outcomes.get(uuid, scenario.outcome)
    if scenario.outcome == Outcome.FAILED:
        raise violation(8, f"{uuid} failed, and its work is healthy: {scenario.error}; {_history(tables, uuid)}")
    if scenario.outcome != told:
        raise violation(3, f"{uuid}: a client was told {told}, and it is {scenario.outcome}")
    if not _progress(tables, uuid).closed:
        raise violation(6, f"{uuid} is inactive and not closed")
    frames, expected = scene.vidflow.frames(uuid), _expected(scene, scenario)
    check_frames(uuid, scenario.outcome, frames, expected)
    return FrameCounts(len(frames), len(expected) - len(frames) if scenario.outcome == Outcome.COMPLETED else 0)


def check_frames(uuid: str, outcome: str, frames: Frames, expected: Frames) -> None:
    """All that an undisturbed run saw where it completed, the beginning of it where it was stopped; nothing else."""
    if outcome == Outcome.COMPLETED and len(frames) != len(expected):
        raise violation(6, f"{uuid} is completed with {len(frames)} of {len(expected)} frames")
    if len(frames) > len(expected):
        raise violation(5, f"{uuid} has {len(frames)} frames, and there are {len(expected)}")
    for frame, undisturbed in zip(frames, expected, strict=False):
        if frame != undisturbed:
            raise violation(8, f"{uuid}: {frame} is stored; undisturbed it is {undisturbed}")


def _expected(scene: SystemUnderTest, scenario: Any) -> Frames:
    for work, frames in scene.reference_frames.items():
        if _key(work) == (scenario.source, scenario.model, scenario.fps):
            return frames
    raise violation(1, f"nobody asked for {scenario}")


def _key(work: Workload) -> tuple[str, str, str]:
    return str(work.source), work.model, str(work.fps)


def _history(tables: Connection, uuid: str) -> list[Any]:
    return tables.execute(
        "SELECT number, from_state, to_state, epoch, attempt, reason FROM scenario_history"
        " WHERE scenario_uuid = %s ORDER BY number",
        (uuid,),
    ).fetchall()


def _rows(tables: Connection, uuid: str) -> list[Any]:
    query = "SELECT frame_number, epoch, pts FROM scenario_results WHERE scenario_uuid = %s ORDER BY frame_number"
    return tables.execute(query, (uuid,)).fetchall()


def _progress(tables: Connection, uuid: str) -> Any:
    return _one(tables, "SELECT next_frame, epoch, closed FROM scenario_progress WHERE scenario_uuid = %s", uuid)


def _one(tables: Connection, query: str, uuid: str) -> Any:
    [row] = tables.execute(query, (uuid,)).fetchall()
    return row


def _numbers(rows: list[Any]) -> str:
    numbers = [row.frame_number for row in rows]
    return f"{len(numbers)} from {min(numbers, default=None)} to {max(numbers, default=None)}"


def _count_losses_and_requeues(tables: Connection, uuids: list[str]) -> tuple[int, int]:
    """How often a deployment was lost, and how often one came back that had not failed."""
    [row] = tables.execute(
        "SELECT count(*) FILTER (WHERE attempt > 0) AS losses, count(*) FILTER (WHERE attempt = 0) AS returns"
        " FROM scenario_history"
        " WHERE from_state IS NOT NULL AND to_state = 'init_startup' AND scenario_uuid = ANY(%s::uuid[])",
        (uuids,),
    )
    return row.losses, row.returns
