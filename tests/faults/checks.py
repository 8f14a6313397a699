"""What must hold after any fault, by the numbers of the invariants: in the tables and for those who read. More: silence.py, trails.py."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import psycopg
from psycopg.rows import namedtuple_row
from tests.faults.broken import broken
from tests.faults.scene import Frames, Scene
from tests.faults.silence import check_7_silence, frames_sent
from tests.faults.trails import check_traces
from tests.faults.works import Work
from tests.integration.embedded import wait_until

from vidflow.domain.scenario import TRANSITIONS, Outcome, State

STEPS: Final = frozenset({(state, step.to) for (state, _), step in TRANSITIONS.items()})
OUTBOX_S: Final = 30.0

Tables = psycopg.Connection[Any]


@dataclass(frozen=True)
class Sums:
    """What was looked at: frames read, missing of those that completed ones should have, and sent beyond those that were read."""

    scenarios: int
    frames: int
    lost: int
    absorbed: int
    losses: int
    returns: int


@dataclass(frozen=True)
class Found:
    """Frames of one scenario: read, and missing."""

    read: int
    lost: int


def all_hold(scene: Scene) -> Sums:
    """Waits until all is over, then makes all checks, of every scenario that the tables know and that was not yet looked at."""
    scene.until_settled()
    with scene.tables() as tables:
        tables.row_factory = namedtuple_row
        uuids = [uuid for uuid in check_1_known(tables, scene.born) if uuid not in scene.checked]
        read = lost = 0
        for uuid in uuids:
            check_3_path(tables, uuid)
            check_4_epochs(tables, uuid)
            check_5_rows(tables, uuid)
            found = check_6_to_8_frames(scene, tables, uuid)
            read, lost = read + found.read, lost + found.lost
        check_2_outbox(tables)
        check_7_silence(scene.parts)
        check_traces(scene, uuids)
        scene.checked.update(uuids)
        absorbed = frames_sent(scene.parts, uuids) - read
        return Sums(len(uuids), read, lost, absorbed, *_ways_back(tables, uuids))


def check_1_known(tables: Tables, born: Collection[str]) -> list[str]:
    """What a client was told exists is there. (There may be more: births whose answer was lost.)"""
    uuids = [str(row.scenario_uuid) for row in tables.execute("SELECT scenario_uuid FROM scenarios")]
    if lost := set(born) - set(uuids):
        raise broken(1, f"clients were told of scenarios that are not there: {lost}")
    return uuids


def check_2_outbox(tables: Tables) -> None:
    """Every row reached Kafka. (The leader may add a ping at any moment: hence a wait for one without any that waits.)"""

    def is_empty() -> bool:
        [row] = tables.execute("SELECT count(*) AS waiting FROM outbox WHERE published_at IS NULL AND error IS NULL")
        return bool(row.waiting == 0)

    wait_until(is_empty, "invariant 2: the outbox is empty", OUTBOX_S)
    if aside := tables.execute("SELECT topic, error FROM outbox WHERE error IS NOT NULL").fetchall():
        raise broken(2, f"set aside: {aside}")


def check_3_path(tables: Tables, uuid: str) -> None:
    """The history is one path along the transition table, from birth to inactive, which is for ever."""
    history = _history(tables, uuid)
    scenario = _one(tables, "SELECT state, outcome, error FROM scenarios WHERE scenario_uuid = %s", uuid)
    if [row.number for row in history] != list(range(history[0].number, history[0].number + len(history))):
        raise broken(3, f"{uuid}: moves are missing: {history}")
    if history[0].from_state is not None or history[0].to_state != State.INIT_STARTUP:
        raise broken(3, f"{uuid}: born by {history[0]}")
    for before, move in pairwise(history):
        if move.from_state != before.to_state or (State(move.from_state), State(move.to_state)) not in STEPS:
            raise broken(3, f"{uuid}: {move} behind {before}")
    if not history[-1].to_state == scenario.state == State.INACTIVE:
        raise broken(3, f"{uuid} is {scenario.state}, and its history ends with {history[-1]}")


def check_4_epochs(tables: Tables, uuid: str) -> None:
    """Each deployment raises the epoch, nothing else does, and no row is of an epoch that was over before the row ahead of it."""
    given = [0]
    for move in _history(tables, uuid):
        if move.to_state == State.IN_STARTUP_PROCESSING:
            if move.epoch <= given[-1]:
                raise broken(4, f"{uuid}: epoch {move.epoch} behind {given[-1]}")
            given.append(move.epoch)
        elif move.epoch != given[-1]:
            raise broken(4, f"{uuid}: {move} within epoch {given[-1]}")
    stored = [row.epoch for row in _rows(tables, uuid)]
    if stored != sorted(stored) or not set(stored) <= set(given):
        raise broken(4, f"{uuid}: rows of the epochs {sorted(set(stored))}, given out: {given}")
    progress = _progress(tables, uuid)
    if progress.epoch != given[-1]:
        raise broken(4, f"{uuid}: progress at epoch {progress.epoch}, given out: {given}")


def check_5_rows(tables: Tables, uuid: str) -> None:
    """One row for each number from 0, as many as the progress says, in the order of the source."""
    rows = _rows(tables, uuid)
    if [row.frame_number for row in rows] != list(range(_progress(tables, uuid).next_frame)):
        raise broken(5, f"{uuid}: next_frame {_progress(tables, uuid).next_frame}, rows {_numbers(rows)}")
    if any(one.pts >= other.pts for one, other in pairwise(rows)):
        raise broken(5, f"{uuid}: a frame took another moment's place")


def check_6_to_8_frames(scene: Scene, tables: Tables, uuid: str) -> Found:
    """Who reads it finds what an undisturbed run saw, and what a request for a shutdown was told is what became of it."""
    query = "SELECT outcome, error, source, model, fps FROM scenarios WHERE scenario_uuid = %s"
    scenario = _one(tables, query, uuid)
    told = scene.outcomes.get(uuid, scenario.outcome)
    if scenario.outcome == Outcome.FAILED:
        raise broken(8, f"{uuid} failed, and its work is healthy: {scenario.error}; {_history(tables, uuid)}")
    if scenario.outcome != told:
        raise broken(3, f"{uuid}: a client was told {told}, and it is {scenario.outcome}")
    if not _progress(tables, uuid).closed:
        raise broken(6, f"{uuid} is inactive and not closed")
    frames, expected = scene.vidflow.frames(uuid), _expected(scene, scenario)
    same_frames(uuid, scenario.outcome, frames, expected)
    return Found(len(frames), len(expected) - len(frames) if scenario.outcome == Outcome.COMPLETED else 0)


def same_frames(uuid: str, outcome: str, frames: Frames, expected: Frames) -> None:
    """All that an undisturbed run saw where it completed, the beginning of it where it was stopped; nothing else."""
    if outcome == Outcome.COMPLETED and len(frames) != len(expected):
        raise broken(6, f"{uuid} is completed with {len(frames)} of {len(expected)} frames")
    if len(frames) > len(expected):
        raise broken(5, f"{uuid} has {len(frames)} frames, and there are {len(expected)}")
    for frame, undisturbed in zip(frames, expected, strict=False):
        if frame != undisturbed:
            raise broken(8, f"{uuid}: {frame} is stored; undisturbed it is {undisturbed}")


def _expected(scene: Scene, scenario: Any) -> Frames:
    for work, frames in scene.undisturbed.items():
        if _key(work) == (scenario.source, scenario.model, scenario.fps):
            return frames
    raise broken(1, f"nobody asked for {scenario}")


def _key(work: Work) -> tuple[str, str, str]:
    return str(work.source), work.model, str(work.fps)


def _history(tables: Tables, uuid: str) -> list[Any]:
    return tables.execute(
        "SELECT number, from_state, to_state, epoch, attempt, reason FROM scenario_history"
        " WHERE scenario_uuid = %s ORDER BY number",
        (uuid,),
    ).fetchall()


def _rows(tables: Tables, uuid: str) -> list[Any]:
    query = "SELECT frame_number, epoch, pts FROM scenario_results WHERE scenario_uuid = %s ORDER BY frame_number"
    return tables.execute(query, (uuid,)).fetchall()


def _progress(tables: Tables, uuid: str) -> Any:
    return _one(tables, "SELECT next_frame, epoch, closed FROM scenario_progress WHERE scenario_uuid = %s", uuid)


def _one(tables: Tables, query: str, uuid: str) -> Any:
    [row] = tables.execute(query, (uuid,)).fetchall()
    return row


def _numbers(rows: list[Any]) -> str:
    numbers = [row.frame_number for row in rows]
    return f"{len(numbers)} from {min(numbers, default=None)} to {max(numbers, default=None)}"


def _ways_back(tables: Tables, uuids: list[str]) -> tuple[int, int]:
    """How often a deployment was lost, and how often one came back that had not failed."""
    [row] = tables.execute(
        "SELECT count(*) FILTER (WHERE attempt > 0) AS losses, count(*) FILTER (WHERE attempt = 0) AS returns"
        " FROM scenario_history"
        " WHERE from_state IS NOT NULL AND to_state = 'init_startup' AND scenario_uuid = ANY(%s::uuid[])",
        (uuids,),
    )
    return row.losses, row.returns
