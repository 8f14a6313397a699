"""A scenario's stored results as clients read them, with its state in the same snapshot. It stores nothing."""

from __future__ import annotations

from typing import Final

import msgspec

from vidflow.domain.scenario import State
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.postgres.pages import MAX_PAGE_BYTES, trim_page

BEFORE_FIRST_FRAME: Final = -1
"""The frame number behind which all results lie."""


class ResultPage(msgspec.Struct, frozen=True):
    """A page of results: each frame as JSON, in the order of frame numbers, without a hole.

    `last_frame` is the number of the page's last frame, or the one behind which it was asked for. `complete`: the scenario is
    inactive and no row lies behind this page, so that none ever will. `removed`: there were results, and they were not kept.
    """

    frames: list[bytes]
    last_frame: int
    complete: bool
    removed: bool


def read_result_page(tx: Connection, scenario_uuid: str, after: int, limit: int) -> ResultPage | None:
    """Return the results after frame `after`, at most `limit`; None if the scenario does not exist. One statement: one snapshot."""
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
    (state, removed), found = rows[0][:2], rows[1:]  # the first row is the place where the page begins
    shown, more = trim_page([(row[4:], row[2]) for row in found], limit)
    return ResultPage(
        frames=[_frame(*row) for row in shown],
        last_frame=shown[-1][0] if shown else after,
        complete=state == State.INACTIVE and not more,
        removed=removed,
    )


def _frame(frame_number: int, time_s: float, width: int, height: int, detections: str) -> bytes:
    """A frame's result as JSON: the detections as PostgreSQL gave them, neither decoded nor encoded again."""
    return (
        f'{{"frame_number":{frame_number},"time_s":{time_s!r},"width":{width},"height":{height},"detections":{detections}}}'
    ).encode()
