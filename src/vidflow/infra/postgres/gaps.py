"""A scenario's gaps as clients read them. The inbox stores them: results.py."""

from __future__ import annotations

from typing import Final

import msgspec
from psycopg.rows import class_row

from vidflow.infra.postgres.connection import Connection


class StoredGap(msgspec.Struct, frozen=True):
    """Frames that should have been kept and are not: after which frame (-1: before the first), from when to when, how many."""

    after_frame: int
    from_s: float
    to_s: float
    frames: int | None
    reason: str
    epoch: int


class GapKey(msgspec.Struct, frozen=True, array_like=True):
    """Where a gap stands among those of its scenario."""

    after_frame: int
    from_s: float
    reason: str


BEFORE_FIRST_GAP: Final = GapKey(-2, 0.0, "")


def read_gap_page(tx: Connection, scenario_uuid: str, after: GapKey, limit: int) -> tuple[list[StoredGap], bool]:
    """Return at most `limit` gaps after `after` in the order of the video, and whether more follow.

    A gap is small, so that a limit of rows is a limit of bytes.
    """
    found = (
        tx.cursor(row_factory=class_row(StoredGap))
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
    return found[:limit], len(found) > limit
