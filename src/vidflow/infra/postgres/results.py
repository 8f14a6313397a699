"""Store the results of scenarios, and read them for clients."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from vidflow.domain.access import ReadScope
from vidflow.domain.messages import Frame
from vidflow.domain.scenario import State
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.postgres.pages import MAX_PAGE_BYTES, trim_page
from vidflow.infra.postgres.parameters import columns, to_json
from vidflow.infra.postgres.scopes import IS_IN_SCOPE

ROWS_PER_CALLBACK: Final = 200
"""Rows copied between two calls of `while_waiting`. The server works on them in the meantime."""
_UNIX_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
BEFORE_FIRST_FRAME: Final = -1
"""Frame number that precedes all results."""


class FrameRow(msgspec.Struct, frozen=True):
    """A row of `scenario_results`. `captured_at` is in RFC 3339, `detections` the JSON array as PostgreSQL returned it."""

    frame_number: int
    epoch: int
    time_s: float
    width: int
    height: int
    corrupt: bool
    captured_at: str | None
    captured_by: str | None
    detections: str


class ResultPage(msgspec.Struct, frozen=True):
    """A page of results in order of frame numbers, without omissions.

    `last_frame` is the number of the last frame of the page, or the requested `after` of an empty page. `complete` means that the scenario
    is inactive and no further results follow or will follow. `removed` means that retention has removed the results.
    """

    frames: list[FrameRow]
    last_frame: int
    complete: bool
    removed: bool


def add_frames(tx: Connection, frames: Sequence[Frame], while_waiting: Callable[[], None] = lambda: None) -> None:
    """Store new frames by COPY. `while_waiting` is called every ROWS_PER_CALLBACK rows. It must not use the connection.

    Raises UniqueViolation if a frame is stored already, which the rules of domain/progress.py prevent. Roll back then, and use
    `add_missing_frames`.
    """
    if not frames:
        return
    query = """
        COPY scenario_results (scenario_uuid, frame_number, epoch, pts, time_s, width, height, corrupt, captured_at,
                               captured_by, at, detections)
        FROM STDIN
    """
    with tx.cursor().copy(query) as copy:
        for number, frame in enumerate(frames, 1):
            copy.write_row(_row(frame))
            if number % ROWS_PER_CALLBACK == 0:
                while_waiting()


def add_missing_frames(tx: Connection, frames: Sequence[Frame]) -> None:
    """Store the frames that are not stored yet, more slowly than `add_frames`. A frame that is stored already is not changed."""
    if not frames:
        return
    tx.execute(
        """
        INSERT INTO scenario_results (scenario_uuid, frame_number, epoch, pts, time_s, width, height, corrupt, captured_at,
                                      captured_by, at, detections)
        SELECT n.scenario_uuid, n.frame_number, n.epoch, n.pts, n.time_s, n.width, n.height, n.corrupt, n.captured_at,
               n.captured_by, n.at, n.detections::jsonb
          FROM unnest(%b::uuid[], %b::bigint[], %b::bigint[], %b::bigint[], %b::float8[], %b::int[], %b::int[],
                      %b::bool[], %b::timestamptz[], %b::text[], %b::text[], %b::text[])
               AS n (scenario_uuid, frame_number, epoch, pts, time_s, width, height, corrupt, captured_at, captured_by, at,
                     detections)
            ON CONFLICT (scenario_uuid, frame_number) DO NOTHING
        """,
        columns(_row(frame) for frame in frames),
    )


def _row(frame: Frame) -> tuple[object, ...]:
    return (
        frame.scenario_uuid, frame.frame_number, frame.epoch, frame.pts, frame.time_s, frame.width, frame.height,
        frame.corrupt, None if frame.captured_us is None else _UNIX_EPOCH + datetime.timedelta(microseconds=frame.captured_us),
        frame.captured_by, frame.at, to_json(frame.detections),
    )  # fmt: skip


def read_result_page(tx: Connection, scope: ReadScope, scenario_uuid: str, after: int, limit: int) -> ResultPage | None:
    """Return at most `limit` results after frame `after`, or None if the scenario does not exist in this scope.

    One statement reads the results and the scenario's state, so that `complete` is never True before the last result.
    """
    rows = tx.execute(
        f"""
        WITH RECURSIVE page AS (
            SELECT %(after)s::bigint AS frame_number, 0::bigint AS epoch, 0::float8 AS time_s, 0 AS width, 0 AS height,
                   false AS corrupt, NULL::timestamptz AS captured_at, NULL::text AS captured_by,
                   NULL::text AS detections, 0 AS row_number, 0::bigint AS page_bytes
             UNION ALL
            SELECT next.frame_number, next.epoch, next.time_s, next.width, next.height, next.corrupt, next.captured_at,
                   next.captured_by, next.detections, page.row_number + 1,
                   page.page_bytes + 200 + octet_length(next.detections)
              FROM page
             CROSS JOIN LATERAL (
                   SELECT r.frame_number, r.epoch, r.time_s, r.width, r.height, r.corrupt, r.captured_at, r.captured_by,
                          r.detections::text AS detections
                     FROM scenario_results r
                    WHERE r.scenario_uuid = %(scenario_uuid)s AND r.frame_number > page.frame_number
                    ORDER BY r.frame_number
                    LIMIT 1) AS next
             WHERE page.row_number <= %(limit)s AND (page.row_number <= 1 OR page.page_bytes <= %(page_bytes)s)
        )
        SELECT s.state,
               EXISTS (SELECT FROM results_removed x WHERE x.from_uuid <= s.scenario_uuid AND x.to_uuid > s.scenario_uuid) AS removed,
               page.page_bytes, page.row_number, page.frame_number, page.epoch, page.time_s, page.width, page.height, page.corrupt,
               to_char(page.captured_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), page.captured_by, page.detections
          FROM scenarios s
         CROSS JOIN page
         WHERE s.scenario_uuid = %(scenario_uuid)s AND {IS_IN_SCOPE}
         ORDER BY page.row_number
        """,  # noqa: S608 - a constant condition
        {
            "scenario_uuid": scenario_uuid,
            "owner": scope.only_owner,
            "after": after,
            "limit": limit,
            "page_bytes": MAX_PAGE_BYTES,
        },
    ).fetchall()
    if not rows:
        return None
    (state, removed), results = rows[0][:2], rows[1:]  # the first row is the starting point of the recursion
    page, more = trim_page([(FrameRow(*row[4:]), row[2]) for row in results], limit)
    return ResultPage(
        frames=page,
        last_frame=page[-1].frame_number if page else after,
        complete=state == State.INACTIVE and not more,
        removed=removed,
    )
