"""Read a scenario's results for clients, in one snapshot with its state."""

from __future__ import annotations

from typing import Final

import msgspec

from vidflow.domain.scenario import State
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.postgres.pages import MAX_PAGE_BYTES, trim_page

BEFORE_FIRST_FRAME: Final = -1
"""Frame number that precedes all results."""


class FrameRow(msgspec.Struct, frozen=True):
    """A row of `scenario_results`. `detections` is the JSON array as PostgreSQL returned it."""

    frame_number: int
    time_s: float
    width: int
    height: int
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


def read_result_page(tx: Connection, scenario_uuid: str, after: int, limit: int) -> ResultPage | None:
    """Return at most `limit` results after frame `after`, or None if the scenario does not exist."""
    rows = tx.execute(
        """
        WITH RECURSIVE page AS (
            SELECT %(after)s::bigint AS frame_number, 0::float8 AS time_s, 0 AS width, 0 AS height, NULL::text AS detections,
                   0 AS row_number, 0::bigint AS page_bytes
             UNION ALL
            SELECT next.frame_number, next.time_s, next.width, next.height, next.detections,
                   page.row_number + 1, page.page_bytes + 100 + octet_length(next.detections)
              FROM page
             CROSS JOIN LATERAL (
                   SELECT r.frame_number, r.time_s, r.width, r.height, r.detections::text AS detections
                     FROM scenario_results r
                    WHERE r.scenario_uuid = %(scenario_uuid)s AND r.frame_number > page.frame_number
                    ORDER BY r.frame_number
                    LIMIT 1) AS next
             WHERE page.row_number <= %(limit)s AND (page.row_number <= 1 OR page.page_bytes <= %(page_bytes)s)
        )
        SELECT s.state,
               EXISTS (SELECT FROM results_removed x WHERE x.from_uuid <= s.scenario_uuid AND x.to_uuid > s.scenario_uuid) AS removed,
               page.page_bytes, page.row_number, page.frame_number, page.time_s, page.width, page.height, page.detections
          FROM scenarios s
         CROSS JOIN page
         WHERE s.scenario_uuid = %(scenario_uuid)s
         ORDER BY page.row_number
        """,
        {"scenario_uuid": scenario_uuid, "after": after, "limit": limit, "page_bytes": MAX_PAGE_BYTES},
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
