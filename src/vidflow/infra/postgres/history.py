"""Write the history of scenarios, and read it for clients."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Final

import msgspec
from psycopg.rows import dict_row

from vidflow.domain.access import ReadScope
from vidflow.domain.scenario import Decision
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.postgres.pages import MAX_PAGE_BYTES, trim_page
from vidflow.infra.postgres.parameters import columns
from vidflow.infra.postgres.scopes import IS_SCENARIO_IN_SCOPE

BEFORE_FIRST_TRANSITION: Final = -1
"""Number that precedes the first transition."""


class TransitionRow(msgspec.Struct, frozen=True):
    """A row of `scenario_history`: a state transition."""

    number: int
    from_state: str | None
    to_state: str
    reason_code: str
    reason: str
    epoch: int
    attempt: int
    runner: str | None
    detail: str | None
    at: datetime.datetime


def add_transitions(tx: Connection, decisions: Sequence[Decision]) -> None:
    """Add a row for each decision, whose transition the caller has written: the lock on the scenario's row makes the number unique."""
    tx.execute(
        """
        INSERT INTO scenario_history (scenario_uuid, number, from_state, to_state, reason_code, reason, epoch, attempt, runner,
                                      detail)
        SELECT n.scenario_uuid,
               (SELECT coalesce(max(h.number) + 1, 0) FROM scenario_history h WHERE h.scenario_uuid = n.scenario_uuid),
               n.from_state, n.to_state, n.reason_code, n.reason, n.epoch, n.attempt, n.runner, n.detail
          FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::text[], %b::text[], %b::bigint[], %b::int[], %b::text[],
                      %b::text[])
               AS n (scenario_uuid, from_state, to_state, reason_code, reason, epoch, attempt, runner, detail)
        """,
        columns(
            (
                d.before.scenario_uuid, d.before.state.value, after.state.value, d.event.reason_code.value, d.event.reason, after.epoch,
                after.attempt, after.runner, d.event.detail,
            )
            for d in decisions
            if (after := d.after)
        ),
    )  # fmt: skip


def read_history_page(
    tx: Connection, scope: ReadScope, scenario_uuid: str, after: int, limit: int
) -> tuple[list[TransitionRow], bool]:
    """Return at most `limit` transitions of a scenario after number `after`, in order, and whether more follow."""
    rows = (
        tx.cursor(row_factory=dict_row)
        .execute(
            f"""
            WITH RECURSIVE page AS (
                SELECT %(after)s::integer AS number, NULL::text AS from_state, NULL::text AS to_state,
                       NULL::text AS reason_code, NULL::text AS reason, 0::bigint AS epoch, 0::integer AS attempt,
                       NULL::text AS runner, NULL::text AS detail, now() AS at,
                       0 AS row_number, 0::bigint AS page_bytes
                 UNION ALL
                SELECT next.number, next.from_state, next.to_state, next.reason_code, next.reason, next.epoch, next.attempt,
                       next.runner, next.detail, next.at, page.row_number + 1,
                       page.page_bytes + 300 + octet_length(next.reason) + coalesce(octet_length(to_json(next.detail)::text), 0)
                  FROM page
                 CROSS JOIN LATERAL (
                       SELECT h.*
                         FROM scenario_history h
                        WHERE h.scenario_uuid = %(scenario_uuid)s AND h.number > page.number
                        ORDER BY h.number
                        LIMIT 1) AS next
                 WHERE page.row_number <= %(limit)s AND (page.row_number <= 1 OR page.page_bytes <= %(page_bytes)s)
            )
            SELECT number, from_state, to_state, reason_code, reason, epoch, attempt, runner, detail, at, page_bytes
              FROM page
             WHERE row_number > 0 AND {IS_SCENARIO_IN_SCOPE}
             ORDER BY row_number
            """,  # noqa: S608 - a constant condition
            {
                "scenario_uuid": scenario_uuid,
                "owner": scope.only_owner,
                "after": after,
                "limit": limit,
                "page_bytes": MAX_PAGE_BYTES,
            },
        )
        .fetchall()
    )
    return trim_page([(msgspec.convert(row, TransitionRow), row["page_bytes"]) for row in rows], limit)
