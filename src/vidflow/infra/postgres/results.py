"""Store results, gaps and progress in batches.

domain/progress.py decides what is stored. The caller applies it while it holds the locks of `lock_progress`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from psycopg.errors import UniqueViolation
from psycopg.rows import dict_row

from vidflow.domain.messages import EndReason, Frame, Gap, SourceOpened
from vidflow.domain.progress import Progress
from vidflow.infra.postgres.connection import Connection

ROWS_PER_CALLBACK: Final = 200
"""Rows copied between two calls of `while_waiting`. The server works on them in the meantime."""


def decode_end_reason(text: str | None) -> EndReason | None:
    """Return the reason of a stored end marker."""
    return EndReason(text) if text else None


def lock_progress(tx: Connection, scenario_uuids: Sequence[str]) -> dict[str, Progress]:
    """Return the progress of scenarios and lock it until the end of the transaction. Scenarios without progress are left out.

    Rows are locked in order of uuid, so that two transactions cannot deadlock.
    """
    return _progress(
        tx,
        """
        SELECT *, scenario_uuid::text AS uuid
          FROM scenario_progress
         WHERE scenario_uuid = ANY (%b::uuid[])
         ORDER BY scenario_uuid
           FOR NO KEY UPDATE
        """,
        scenario_uuids,
    )


def lock_progress_rows(tx: Connection, scenario_uuids: Sequence[str]) -> None:
    """Lock the progress of scenarios as `lock_progress` does, but without reading it, so that a pipeline does not wait."""
    tx.execute(
        """
        SELECT
          FROM scenario_progress
         WHERE scenario_uuid = ANY (%b::uuid[])
         ORDER BY scenario_uuid
           FOR NO KEY UPDATE
        """,
        (list(scenario_uuids),),
    )


def read_progress(tx: Connection, scenario_uuids: Sequence[str]) -> dict[str, Progress]:
    """Return the progress of scenarios without locking it. Scenarios without progress are left out."""
    return _progress(
        tx,
        """
        SELECT *, scenario_uuid::text AS uuid
          FROM scenario_progress
         WHERE scenario_uuid = ANY (%b::uuid[])
        """,
        scenario_uuids,
    )


def _progress(tx: Connection, query: str, scenario_uuids: Sequence[str]) -> dict[str, Progress]:
    if not scenario_uuids:
        return {}
    rows = tx.cursor(row_factory=dict_row).execute(query, (list(scenario_uuids),)).fetchall()
    return {row["uuid"]: _decode_progress(row) for row in rows}


def _decode_progress(row: dict[str, Any]) -> Progress:
    values = {name: row[name] for name in Progress.__struct_fields__}
    values["end_reason"] = decode_end_reason(values["end_reason"])
    values["opened"] = msgspec.convert(values["opened"], SourceOpened | None)
    return Progress(**values)


def write_progress(tx: Connection, progress: Mapping[str, Progress]) -> None:
    """Write the inbox's columns of the progress. `epoch` and `closed` belong to the leader."""
    if not progress:
        return
    tx.execute(
        """
        UPDATE scenario_progress p
           SET next_frame = n.next_frame, origin_pts = n.origin_pts, time_base = n.time_base, last_pts = n.last_pts,
               last_time_s = n.last_time_s, end_epoch = n.end_epoch, end_last_frame = n.end_last_frame,
               end_reason = n.end_reason, hole_epoch = n.hole_epoch, repeats = n.repeats, opened = n.opened::jsonb
          FROM unnest(%b::uuid[], %b::bigint[], %b::bigint[], %b::text[], %b::bigint[], %b::float8[],
                      %b::bigint[], %b::bigint[], %b::text[], %b::bigint[], %b::bigint[], %b::text[])
               AS n (scenario_uuid, next_frame, origin_pts, time_base, last_pts, last_time_s,
                     end_epoch, end_last_frame, end_reason, hole_epoch, repeats, opened)
         WHERE p.scenario_uuid = n.scenario_uuid
        """,
        (
            list(progress),
            [p.next_frame for p in progress.values()],
            [p.origin_pts for p in progress.values()],
            [p.time_base for p in progress.values()],
            [p.last_pts for p in progress.values()],
            [p.last_time_s for p in progress.values()],
            [p.end_epoch for p in progress.values()],
            [p.end_last_frame for p in progress.values()],
            [p.end_reason.value if p.end_reason else None for p in progress.values()],
            [p.hole_epoch for p in progress.values()],
            [p.repeats for p in progress.values()],
            [_json(p.opened) if p.opened else None for p in progress.values()],
        ),
    )


def add_frames(tx: Connection, frames: Sequence[Frame], while_waiting: Callable[[], None] = lambda: None) -> int:
    """Store frames and return how many were new. A frame that is stored already is not changed.

    The rules of domain/progress.py let no duplicate through, so the rows are sent by COPY, and inserted by a slower statement only after a
    unique violation. `while_waiting` is called every ROWS_PER_CALLBACK rows while the server works on them. It must not use the connection.
    """
    if not frames:
        return 0
    try:
        with tx.transaction():
            _copy_frames(tx, frames, while_waiting)
    except UniqueViolation:
        return _insert_new_frames(tx, frames)
    return len(frames)


def _copy_frames(tx: Connection, frames: Sequence[Frame], while_waiting: Callable[[], None]) -> None:
    query = """
        COPY scenario_results (scenario_uuid, frame_number, epoch, pts, time_s, width, height, at, detections)
        FROM STDIN
    """
    with tx.cursor().copy(query) as copy:
        for number, frame in enumerate(frames, 1):
            copy.write_row((
                frame.scenario_uuid, frame.frame_number, frame.epoch, frame.pts, frame.time_s, frame.width, frame.height, frame.at,
                _json(frame.detections),
            ))  # fmt: skip
            if number % ROWS_PER_CALLBACK == 0:
                while_waiting()


def _insert_new_frames(tx: Connection, frames: Sequence[Frame]) -> int:
    return tx.execute(
        """
        INSERT INTO scenario_results (scenario_uuid, frame_number, epoch, pts, time_s, width, height, at, detections)
        SELECT n.scenario_uuid, n.frame_number, n.epoch, n.pts, n.time_s, n.width, n.height, n.at, n.detections::jsonb
          FROM unnest(%b::uuid[], %b::bigint[], %b::bigint[], %b::bigint[], %b::float8[], %b::int[], %b::int[],
                      %b::text[], %b::text[])
               AS n (scenario_uuid, frame_number, epoch, pts, time_s, width, height, at, detections)
            ON CONFLICT (scenario_uuid, frame_number) DO NOTHING
        """,
        (
            [frame.scenario_uuid for frame in frames],
            [frame.frame_number for frame in frames],
            [frame.epoch for frame in frames],
            [frame.pts for frame in frames],
            [frame.time_s for frame in frames],
            [frame.width for frame in frames],
            [frame.height for frame in frames],
            [frame.at for frame in frames],
            [_json(frame.detections) for frame in frames],
        ),
    ).rowcount


def add_gaps(tx: Connection, gaps: Sequence[Gap]) -> int:
    """Store gaps and return how many were new. A gap that was reported twice is stored once."""
    if not gaps:
        return 0
    return tx.execute(
        """
        INSERT INTO scenario_gaps (scenario_uuid, epoch, after_frame, from_s, to_s, frames, reason)
        SELECT n.scenario_uuid, n.epoch, n.after_frame, n.from_s, n.to_s, n.frames, n.reason
          FROM unnest(%b::uuid[], %b::bigint[], %b::bigint[], %b::float8[], %b::float8[], %b::bigint[], %b::text[])
               AS n (scenario_uuid, epoch, after_frame, from_s, to_s, frames, reason)
            ON CONFLICT (scenario_uuid, after_frame, reason, from_s) DO NOTHING
        """,
        (
            [gap.scenario_uuid for gap in gaps],
            [gap.epoch for gap in gaps],
            [gap.after_frame for gap in gaps],
            [gap.from_s for gap in gaps],
            [gap.to_s for gap in gaps],
            [gap.frames for gap in gaps],
            [gap.reason.value for gap in gaps],
        ),
    ).rowcount


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
