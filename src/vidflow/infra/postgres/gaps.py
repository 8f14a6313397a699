"""Read a scenario's gaps for clients. They are written in results.py."""

from __future__ import annotations

from typing import Final

import msgspec
from psycopg.rows import class_row

from vidflow.infra.postgres.connection import Connection


class GapRow(msgspec.Struct, frozen=True):
    """A row of `scenario_gaps`: frames that are missing from the results.

    `after_frame` is the number of the last frame before the gap, or -1. `from_s` and `to_s` are times in the video. `frames` is None if
    the number of missing frames is unknown.
    """

    after_frame: int
    from_s: float
    to_s: float
    frames: int | None
    reason: str
    epoch: int


class GapKey(msgspec.Struct, frozen=True, array_like=True):
    """The position of a gap among the gaps of its scenario."""

    after_frame: int
    from_s: float
    reason: str


BEFORE_FIRST_GAP: Final = GapKey(-2, 0.0, "")


def read_gap_page(tx: Connection, scenario_uuid: str, after: GapKey, limit: int) -> tuple[list[GapRow], bool]:
    """Return at most `limit` gaps after `after` in video order, and whether more follow.

    Rows are small, so the number of rows also bounds the size of the page.
    """
    gaps = (
        tx.cursor(row_factory=class_row(GapRow))
        .execute(
            """
            SELECT after_frame, from_s, to_s, frames, reason, epoch
              FROM scenario_gaps
             WHERE scenario_uuid = %(scenario_uuid)s
               AND (after_frame, from_s, reason) > (%(after_frame)s::bigint, %(from_s)s::float8, %(reason)s::text)
             ORDER BY after_frame, from_s, reason
             LIMIT %(limit)s + 1
            """,
            {"scenario_uuid": scenario_uuid, "limit": limit, **msgspec.structs.asdict(after)},
        )
        .fetchall()
    )
    return gaps[:limit], len(gaps) > limit
