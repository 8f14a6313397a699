"""Store the gaps of scenarios, and read them for clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from psycopg.rows import class_row

from vidflow.domain.access import ReadScope
from vidflow.domain.messages import End, Frame
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.postgres.parameters import columns
from vidflow.infra.postgres.scopes import IS_SCENARIO_IN_SCOPE


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


def add_gaps(tx: Connection, messages: Sequence[Frame | End]) -> int:
    """Store the messages' gaps and return how many were new or longer. A gap that is reported again is stored once.

    A later deployment may report a longer one at the same place, if another frame is skipped there.
    """
    newest = {
        (message.scenario_uuid, message.previous_frame, gap.reason, gap.from_s): (message.epoch, gap)
        for message in messages
        for gap in message.gaps
    }
    if not newest:
        return 0
    return tx.execute(
        """
        INSERT INTO scenario_gaps (scenario_uuid, epoch, after_frame, from_s, to_s, frames, reason)
        SELECT n.scenario_uuid, n.epoch, n.after_frame, n.from_s, n.to_s, n.frames, n.reason
          FROM unnest(%b::uuid[], %b::bigint[], %b::bigint[], %b::float8[], %b::float8[], %b::bigint[], %b::text[])
               AS n (scenario_uuid, epoch, after_frame, from_s, to_s, frames, reason)
            ON CONFLICT (scenario_uuid, after_frame, reason, from_s) DO UPDATE
           SET epoch = excluded.epoch, to_s = excluded.to_s, frames = excluded.frames
         WHERE excluded.epoch > scenario_gaps.epoch AND excluded.to_s > scenario_gaps.to_s
        """,
        columns(
            (scenario_uuid, epoch, after_frame, from_s, gap.to_s, gap.frames, reason.value)
            for (scenario_uuid, after_frame, reason, from_s), (epoch, gap) in newest.items()
        ),
    ).rowcount


def read_gap_page(
    tx: Connection, scope: ReadScope, scenario_uuid: str, after: GapKey, limit: int
) -> tuple[list[GapRow], bool]:
    """Return at most `limit` gaps after `after` in video order, and whether more follow.

    Rows are small, so the number of rows also bounds the size of the page.
    """
    gaps = (
        tx.cursor(row_factory=class_row(GapRow))
        .execute(
            f"""
            SELECT after_frame, from_s, to_s, frames, reason, epoch
              FROM scenario_gaps
             WHERE scenario_uuid = %(scenario_uuid)s
               AND (after_frame, from_s, reason) > (%(after_frame)s::bigint, %(from_s)s::float8, %(reason)s::text)
               AND {IS_SCENARIO_IN_SCOPE}
             ORDER BY after_frame, from_s, reason
             LIMIT %(limit)s + 1
            """,  # noqa: S608 - a constant condition
            {
                "scenario_uuid": scenario_uuid,
                "owner": scope.only_owner,
                "limit": limit,
                **msgspec.structs.asdict(after),
            },
        )
        .fetchall()
    )
    return gaps[:limit], len(gaps) > limit
