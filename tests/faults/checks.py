"""What must hold after any fault, by the numbers of the invariants: in the tables, and in what clients read.

The checks of the topics and of the trail are in topic_checks.py and trail_checks.py.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import psycopg
from psycopg.rows import namedtuple_row
from tests.faults.live_checks import check_covered, check_stopped, read_gaps
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
    """Totals over the checked scenarios.

    `frames` were read over HTTP; `frames_missing` are those that completed scenarios lack; `duplicate_frames` were sent beyond those
    that were read.
    """

    scenarios: int
    frames: int
    frames_missing: int
    duplicate_frames: int
    losses: int
    requeues: int


@dataclass(frozen=True)
class FrameCounts:
    """The frames of one scenario that were read, and that are missing."""

    read: int
    missing: int


def check_all(system: SystemUnderTest) -> CheckTotals:
    """Wait until every scenario is inactive, then make all checks on those in the tables that were not checked before."""
    system.repeat_unanswered()
    system.wait_until_all_inactive()
    with system.connect() as connection:
        connection.row_factory = namedtuple_row
        uuids = [uuid for uuid in check_1_created(connection, system.created) if uuid not in system.checked]
        read = missing = 0
        for uuid in uuids:
            check_3_history(connection, uuid)
            check_4_epochs(connection, uuid)
            check_5_rows(connection, uuid)
            counts = check_6_to_8_frames(system, connection, uuid)
            read, missing = read + counts.read, missing + counts.missing
        check_2_outbox(connection)
        check_7_quiescence(system.processes)
        check_trails(system, uuids)
        system.checked.update(uuids)
        duplicates = count_frames_sent(system.processes, uuids) - read
        return CheckTotals(len(uuids), read, missing, duplicates, *_count_losses_and_requeues(connection, uuids))


def check_1_created(connection: Connection, created: Collection[str]) -> list[str]:
    """Every scenario confirmed to a client exists, and no other: clients repeat their requests. Return all scenarios."""
    uuids = [str(row.scenario_uuid) for row in connection.execute("SELECT scenario_uuid FROM scenarios")]
    if missing := set(created) - set(uuids):
        raise violation(1, f"scenarios confirmed to clients do not exist: {missing}")
    if more := set(uuids) - set(created):
        raise violation(1, f"scenarios that no client has an answer for: {more}")
    return uuids


def check_2_outbox(connection: Connection) -> None:
    """Every outbox row reached Kafka. Waits, because the leader may add a ping at any moment."""

    def is_empty() -> bool:
        [row] = connection.execute("SELECT count(*) AS waiting FROM outbox WHERE error IS NULL")
        return bool(row.waiting == 0)

    wait_until(is_empty, "invariant 2: the outbox is empty", OUTBOX_LIMIT_S)
    if rejected := connection.execute("SELECT topic, error FROM outbox WHERE error IS NOT NULL").fetchall():
        raise violation(2, f"outbox rows with errors: {rejected}")


def check_3_history(connection: Connection, uuid: str) -> None:
    """The history is one path along the transition table, from the creation to inactive, which is final."""
    history = _history(connection, uuid)
    scenario = _one(connection, "SELECT state, outcome, error FROM scenarios WHERE scenario_uuid = %s", uuid)
    if [row.number for row in history] != list(range(history[0].number, history[0].number + len(history))):
        raise violation(3, f"{uuid}: transitions are missing: {history}")
    if history[0].from_state is not None or history[0].to_state != State.INIT_STARTUP:
        raise violation(3, f"{uuid}: the history starts with {history[0]}")
    for before, move in pairwise(history):
        if move.from_state != before.to_state or (State(move.from_state), State(move.to_state)) not in LEGAL_MOVES:
            raise violation(3, f"{uuid}: illegal transition {move} after {before}")
    if not history[-1].to_state == scenario.state == State.INACTIVE:
        raise violation(3, f"{uuid} is {scenario.state}, but its history ends with {history[-1]}")


def check_4_epochs(connection: Connection, uuid: str) -> None:
    """Only deployments change the epoch, and each raises it. The epochs of the rows never fall and were all assigned."""
    assigned = [0]
    for move in _history(connection, uuid):
        if move.to_state == State.IN_STARTUP_PROCESSING:
            if move.epoch <= assigned[-1]:
                raise violation(4, f"{uuid}: epoch {move.epoch} assigned after {assigned[-1]}")
            assigned.append(move.epoch)
        elif move.epoch != assigned[-1]:
            raise violation(4, f"{uuid}: {move} during epoch {assigned[-1]}")
    stored = [row.epoch for row in _rows(connection, uuid)]
    if stored != sorted(stored) or not set(stored) <= set(assigned):
        raise violation(4, f"{uuid}: rows of the epochs {sorted(set(stored))}, assigned: {assigned}")
    progress = _progress(connection, uuid)
    if progress.epoch != assigned[-1]:
        raise violation(4, f"{uuid}: progress at epoch {progress.epoch}, assigned: {assigned}")


def check_5_rows(connection: Connection, uuid: str) -> None:
    """The rows are numbered from 0 without gaps, as many as the progress says, in the order of the source."""
    rows = _rows(connection, uuid)
    if [row.frame_number for row in rows] != list(range(_progress(connection, uuid).next_frame)):
        raise violation(5, f"{uuid}: next_frame {_progress(connection, uuid).next_frame}, rows {_numbers(rows)}")
    if any(row.pts >= next_row.pts for row, next_row in pairwise(rows)):
        raise violation(5, f"{uuid}: pts do not rise with the frame numbers")


def check_6_to_8_frames(system: SystemUnderTest, connection: Connection, uuid: str) -> FrameCounts:
    """A client reads what an undisturbed run gave, or a camera's frames and gaps, and the outcome that the shutdown request gave."""
    query = "SELECT outcome, error, source, model, fps FROM scenarios WHERE scenario_uuid = %s"
    scenario = _one(connection, query, uuid)
    reported = system.reported_outcomes.get(uuid, scenario.outcome)
    if scenario.outcome == Outcome.FAILED:
        raise violation(
            8, f"{uuid} failed although its work is healthy: {scenario.error}; {_history(connection, uuid)}"
        )
    if scenario.outcome != reported:
        raise violation(3, f"{uuid}: outcome {reported} was reported to a client, but it is {scenario.outcome}")
    if not _progress(connection, uuid).closed:
        raise violation(6, f"{uuid} is inactive but not closed")
    frames = system.vidflow.frames(uuid)
    if (camera := _find_camera(system, scenario)) is not None:
        check_stopped(connection, uuid, scenario.outcome)
        check_covered(uuid, frames, read_gaps(system, uuid), camera.live_rate or 0)
        return FrameCounts(len(frames), 0)
    expected = _expected(system, scenario)
    check_frames(uuid, scenario.outcome, frames, expected)
    return FrameCounts(len(frames), len(expected) - len(frames) if scenario.outcome == Outcome.COMPLETED else 0)


def check_frames(uuid: str, outcome: str, frames: Frames, expected: Frames) -> None:
    """A completed scenario has all frames of an undisturbed run, a stopped one has the first of them."""
    if outcome == Outcome.COMPLETED and len(frames) != len(expected):
        raise violation(6, f"{uuid} is completed with {len(frames)} of {len(expected)} frames")
    if len(frames) > len(expected):
        raise violation(5, f"{uuid} has {len(frames)} frames, more than the {len(expected)} of an undisturbed run")
    for frame, undisturbed in zip(frames, expected, strict=False):
        if frame != undisturbed:
            raise violation(8, f"{uuid}: {frame} is stored, an undisturbed run gives {undisturbed}")


def _find_camera(system: SystemUnderTest, scenario: Any) -> Workload | None:
    """Return the workload if it is a camera's."""
    created = (scenario.source, scenario.model, scenario.fps)
    return next((work for work in system.cameras if _key(work) == created), None)


def _expected(system: SystemUnderTest, scenario: Any) -> Frames:
    for work, frames in system.reference_frames.items():
        if _key(work) == (scenario.source, scenario.model, scenario.fps):
            return frames
    raise violation(1, f"no client created {scenario}")


def _key(work: Workload) -> tuple[str, str, str]:
    return str(work.source), work.model, str(work.fps)


def _history(connection: Connection, uuid: str) -> list[Any]:
    return connection.execute(
        "SELECT number, from_state, to_state, epoch, attempt, reason FROM scenario_history"
        " WHERE scenario_uuid = %s ORDER BY number",
        (uuid,),
    ).fetchall()


def _rows(connection: Connection, uuid: str) -> list[Any]:
    query = "SELECT frame_number, epoch, pts FROM scenario_results WHERE scenario_uuid = %s ORDER BY frame_number"
    return connection.execute(query, (uuid,)).fetchall()


def _progress(connection: Connection, uuid: str) -> Any:
    return _one(connection, "SELECT next_frame, epoch, closed FROM scenario_progress WHERE scenario_uuid = %s", uuid)


def _one(connection: Connection, query: str, uuid: str) -> Any:
    [row] = connection.execute(query, (uuid,)).fetchall()
    return row


def _numbers(rows: list[Any]) -> str:
    numbers = [row.frame_number for row in rows]
    return f"{len(numbers)} from {min(numbers, default=None)} to {max(numbers, default=None)}"


def _count_losses_and_requeues(connection: Connection, uuids: list[str]) -> tuple[int, int]:
    """Return how often a deployment was lost, and how often one was requeued without a failure."""
    [row] = connection.execute(
        "SELECT count(*) FILTER (WHERE attempt > 0) AS losses, count(*) FILTER (WHERE attempt = 0) AS requeues"
        " FROM scenario_history"
        " WHERE from_state IS NOT NULL AND to_state = 'init_startup' AND scenario_uuid = ANY(%s::uuid[])",
        (uuids,),
    )
    return row.losses, row.requeues
