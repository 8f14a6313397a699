"""How far the results of each scenario are stored. The inbox and the leader synchronize on the lock of this row.

domain/progress.py decides what is stored. The caller applies it while it holds the locks of `lock_progress`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from psycopg.rows import dict_row

from vidflow.domain.messages import EndReason, SourceLost, SourceOpened
from vidflow.domain.progress import Progress
from vidflow.domain.warnings import Warnings
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.postgres.parameters import columns, to_json


def decode_end_reason(text: str | None) -> EndReason | None:
    """Return the reason of a stored end marker."""
    return EndReason(text) if text else None


def lock_progress(tx: Connection, scenario_uuids: Sequence[str]) -> dict[str, Progress]:
    """Return the progress of scenarios and lock it until the end of the transaction. Scenarios without progress are left out.

    Rows are locked in order of uuid, so that two transactions cannot deadlock.
    """
    if not scenario_uuids:
        return {}
    query = """
        SELECT scenario_uuid::text AS uuid, epoch, closed, next_frame, origin_pts, time_base, last_pts, last_time_s, end_epoch,
               end_last_frame, end_reason, hole_epoch, repeats, opened, warnings, lost
          FROM scenario_progress
         WHERE scenario_uuid = ANY (%b::uuid[])
         ORDER BY scenario_uuid
           FOR NO KEY UPDATE
        """
    rows = tx.cursor(row_factory=dict_row).execute(query, (list(scenario_uuids),)).fetchall()
    return {row["uuid"]: _decode_progress(row) for row in rows}


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


def _decode_progress(row: dict[str, Any]) -> Progress:
    values = {name: row[name] for name in Progress.__struct_fields__}
    values["end_reason"] = decode_end_reason(values["end_reason"])
    values["opened"] = msgspec.convert(values["opened"], SourceOpened | None)
    values["lost"] = msgspec.convert(values["lost"], SourceLost | None)
    values["warnings"] = msgspec.convert(values["warnings"], Warnings)
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
               end_reason = n.end_reason, hole_epoch = n.hole_epoch, repeats = n.repeats, opened = n.opened::jsonb,
               warnings = n.warnings::jsonb, lost = n.lost::jsonb
          FROM unnest(%b::uuid[], %b::bigint[], %b::bigint[], %b::text[], %b::bigint[], %b::float8[],
                      %b::bigint[], %b::bigint[], %b::text[], %b::bigint[], %b::bigint[], %b::text[], %b::text[], %b::text[])
               AS n (scenario_uuid, next_frame, origin_pts, time_base, last_pts, last_time_s,
                     end_epoch, end_last_frame, end_reason, hole_epoch, repeats, opened, warnings, lost)
         WHERE p.scenario_uuid = n.scenario_uuid
        """,
        columns(
            (
                scenario_uuid, p.next_frame, p.origin_pts, p.time_base, p.last_pts, p.last_time_s, p.end_epoch, p.end_last_frame,
                p.end_reason.value if p.end_reason else None, p.hole_epoch, p.repeats, to_json(p.opened) if p.opened else None,
                to_json(p.warnings), to_json(p.lost) if p.lost else None,
            )
            for scenario_uuid, p in progress.items()
        ),
    )  # fmt: skip


def close_progress(tx: Connection, scenario_uuids: Sequence[str]) -> None:
    """Store nothing more for these scenarios, whose progress the caller has locked."""
    tx.execute(
        """
        UPDATE scenario_progress
           SET closed = true
         WHERE scenario_uuid = ANY (%b::uuid[])
        """,
        (list(scenario_uuids),),
    )
