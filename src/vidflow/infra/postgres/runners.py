"""Write the table of runners, which is for people and for /health. The leader decides from its own memory."""

from __future__ import annotations

from collections.abc import Mapping

from vidflow.domain.leader import RunnerView
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.postgres.parameters import columns


def write_runners(tx: Connection, views: Mapping[str, RunnerView], now_s: float) -> None:
    """Write the row of each runner that has reported, and delete runners that were silent for an hour."""
    rows = [
        (
            name, now_s - view.last_seen_s, report.capacity, sum(entry.is_running for entry in report.entries), report.taken,
            report.draining, view.mark is not None, report.pool, report.version,
        )
        for name, view in views.items()
        if (report := view.report) is not None
    ]  # fmt: skip
    if rows:
        tx.execute(
            """
            INSERT INTO runners AS r (runner, last_seen_at, capacity, used, taken, draining, marked, pool, version)
            SELECT n.runner, clock_timestamp() - make_interval(secs => n.silent_s), n.capacity, n.used, n.taken, n.draining, n.marked,
                   n.pool, n.version
              FROM unnest(%b::text[], %b::float8[], %b::int[], %b::int[], %b::bigint[], %b::bool[], %b::bool[], %b::text[], %b::text[])
                   AS n (runner, silent_s, capacity, used, taken, draining, marked, pool, version)
                ON CONFLICT (runner) DO UPDATE
               SET last_seen_at = EXCLUDED.last_seen_at, capacity = EXCLUDED.capacity, used = EXCLUDED.used, taken = EXCLUDED.taken,
                   draining = EXCLUDED.draining, marked = EXCLUDED.marked, pool = EXCLUDED.pool, version = EXCLUDED.version
            """,
            columns(rows),
        )
    tx.execute("DELETE FROM runners WHERE last_seen_at < clock_timestamp() - interval '1 hour'")
