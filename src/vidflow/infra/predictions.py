"""A scenario's stored results as clients read them, with its state in the same snapshot. It stores nothing."""

from __future__ import annotations

from typing import Final

import msgspec

from vidflow.domain.scenario import State
from vidflow.infra.postgres import Connection

BEFORE_THE_FIRST: Final = -1
"""The frame number behind which all results lie."""


class Results(msgspec.Struct, frozen=True):
    """A page of results: each frame as JSON, in the order of frame numbers, without a hole.

    `last_frame` is the number of the page's last frame, or the one behind which it was asked for. `complete`: the scenario is
    inactive and no row lies behind this page, so that none ever will. `removed`: there were results, and they were not kept.
    """

    frames: list[bytes]
    last_frame: int
    complete: bool
    removed: bool


def page(tx: Connection, scenario_uuid: str, after: int, limit: int) -> Results | None:
    """At most `limit` results behind frame `after`; None where there is no such scenario. One statement: one snapshot."""
    rows = tx.execute(
        """
        SELECT s.state,
               EXISTS (SELECT FROM results_removed x WHERE x.from_uuid <= s.scenario_uuid AND x.to_uuid > s.scenario_uuid) AS removed,
               r.frame_number, r.time_s, r.width, r.height, r.detections
          FROM scenarios s
          LEFT JOIN LATERAL (
               SELECT frame_number, time_s, width, height, detections::text AS detections
                 FROM scenario_results
                WHERE scenario_uuid = %(scenario_uuid)s AND frame_number > %(after)s
                ORDER BY frame_number
                LIMIT %(limit)s + 1) AS r ON true
         WHERE s.scenario_uuid = %(scenario_uuid)s
         ORDER BY r.frame_number
        """,
        {"scenario_uuid": scenario_uuid, "after": after, "limit": limit},
    ).fetchall()
    if not rows:
        return None
    state, removed = rows[0][:2]
    found = [row[2:] for row in rows if row[2] is not None]  # the row of a scenario without results has no frame
    shown = found[:limit]
    return Results(
        frames=[_frame(*row) for row in shown],
        last_frame=shown[-1][0] if shown else after,
        complete=state == State.INACTIVE and len(found) <= limit,
        removed=removed,
    )


def _frame(frame_number: int, time_s: float, width: int, height: int, detections: str) -> bytes:
    """A frame's result as JSON: the detections as PostgreSQL gave them, neither decoded nor encoded again."""
    return (
        f'{{"frame_number":{frame_number},"time_s":{time_s!r},"width":{width},"height":{height},"detections":{detections}}}'
    ).encode()
