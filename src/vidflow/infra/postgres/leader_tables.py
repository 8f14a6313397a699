"""The rows that the leader reads in a tick: what runners may have, and the head of the queue.

No statement here costs more when more scenarios wait or are finished. Each finds its rows through a partial index and then looks up
each row by its key, whatever the planner believes about the rest of the table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec
from psycopg import Cursor
from psycopg.rows import dict_row

from vidflow.domain.leader import ScenarioView
from vidflow.domain.progress import Progress
from vidflow.domain.scenario import RetryPolicy, is_due
from vidflow.infra.postgres import inbox_partitions, results
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.postgres.lifecycle import decode_scenario
from vidflow.infra.postgres.pipelining import pipelined_transaction

SHUTDOWNS: Final = 1000
"""How many scenarios in their shutdown a tick reads, those that have been in it for longest. More wait for the next tick."""
BACKOFFS: Final = 500
"""How many backoffs one statement ends."""


class TablesSnapshot(msgspec.Struct, frozen=True):
    """What a tick reads in one snapshot, with the database's time of that snapshot in seconds since 1970.

    `caught_up_db_s`: see `inbox_partitions.fetch_caught_up_s`. `backoff_over`: the backoff of at least one scenario is over.
    """

    now_db_s: float
    scenarios: Sequence[ScenarioView]
    caught_up_db_s: float | None
    backoff_over: bool


# Most scenarios never read `parameters`, which may hold 250 kB of labels: whether a poisonous frame is skipped is asked for only
# where the next loss would be the last.
_ROWS: Final = """
     CROSS JOIN LATERAL (
           SELECT s.scenario_uuid::text, s.state, s.outcome, s.error::text AS error, s.epoch, s.attempt, s.returns, s.runner,
                  s.resume_frame, nullif(s.skips, '[]')::text AS skips, s.pool, s.priority,
                  CASE WHEN s.attempt >= %(last_attempt)s
                       THEN coalesce(s.parameters ->> 'on_poison' = 'skip', false)
                       ELSE false END AS skips_poison,
                  extract(epoch FROM s.created_at)::float8 AS since_s,
                  extract(epoch FROM s.due_at - clock_timestamp())::float8 AS due_in_s
             FROM scenarios s
            WHERE s.scenario_uuid = first.scenario_uuid
           OFFSET 0) AS s
     CROSS JOIN LATERAL (
           SELECT p.epoch AS progress_epoch, p.closed, p.next_frame, p.last_pts, p.end_epoch, p.end_last_frame, p.end_reason, p.hole_epoch
             FROM scenario_progress p
            WHERE p.scenario_uuid = first.scenario_uuid
           OFFSET 0) AS p
"""
_NEWEST_REFUSED: Final = 100
"""Of the messages that Kafka refused: a deploy among them is noticed in the tick after."""
SCENARIOS_ON_RUNNERS: Final = f"""
    WITH first AS MATERIALIZED (
        SELECT scenario_uuid
          FROM scenarios
         WHERE state IN ('in_startup_processing', 'active')
         UNION ALL
        SELECT scenario_uuid
          FROM (SELECT scenario_uuid
                  FROM scenarios
                 WHERE state IN ('init_shutdown', 'in_shutdown_processing')
                 ORDER BY state_changed_at
                 LIMIT %(shutdowns)s) AS oldest
         UNION
        SELECT s.scenario_uuid
          FROM unnest(%(ended)s::uuid[]) AS ended (scenario_uuid)
         CROSS JOIN LATERAL (
               SELECT s.scenario_uuid, s.state FROM scenarios s WHERE s.scenario_uuid = ended.scenario_uuid OFFSET 0) AS s
         WHERE s.state IN ('init_shutdown', 'in_shutdown_processing')),
    refused AS MATERIALIZED (
        SELECT key, epoch, error
          FROM (SELECT key, kind, epoch, error
                  FROM outbox
                 WHERE error IS NOT NULL
                 ORDER BY id DESC
                 LIMIT {_NEWEST_REFUSED}) AS newest
         WHERE kind = 'deploy')
    SELECT s.*, p.*,
           s.state = 'in_startup_processing' AND EXISTS (
               SELECT FROM outbox o
                WHERE o.key = first.scenario_uuid::text AND o.kind = 'deploy' AND o.epoch = s.epoch
                  AND o.published_at IS NULL AND o.error IS NULL
               OFFSET 0) AS deploy_waits,
           CASE WHEN s.state = 'in_startup_processing' THEN (
               SELECT min(refused.error)
                 FROM refused
                WHERE refused.key = first.scenario_uuid::text AND refused.epoch = s.epoch) END AS deploy_refused
      FROM first
    {_ROWS}
"""  # noqa: S608 - fragments of our own

HEAD_OF_QUEUE: Final = f"""
    SELECT s.*, p.*, false AS deploy_waits, NULL AS deploy_refused
      FROM unnest(%(pools)s::text[], %(counts)s::int[]) AS room (pool, slots)
     CROSS JOIN LATERAL (
           SELECT q.scenario_uuid
             FROM scenarios q
            WHERE q.state = 'init_startup' AND q.due_at <= q.state_changed_at AND q.pool = room.pool
            ORDER BY q.priority DESC, q.created_at, q.scenario_uuid
            LIMIT room.slots) AS first
    {_ROWS}
"""  # noqa: S608 - fragments of our own

# No pause is longer than the longest backoff: what is due later than that was written before the database's clock went back.
_ENDED_BACKOFFS: Final = f"""
    SELECT scenario_uuid
      FROM (SELECT scenario_uuid
              FROM scenarios
             WHERE state = 'init_startup' AND due_at > state_changed_at AND due_at <= now()
             ORDER BY due_at
             LIMIT %(backoffs)s) AS past
     UNION
    SELECT scenario_uuid
      FROM (SELECT scenario_uuid
              FROM scenarios
             WHERE state = 'init_startup' AND due_at > state_changed_at
               AND due_at > now() + make_interval(secs => {RetryPolicy().max_backoff_s})
             ORDER BY due_at DESC
             LIMIT %(backoffs)s) AS future
"""  # noqa: S608 - a number of our own

END_BACKOFFS: Final = f"""
    WITH over AS MATERIALIZED (
        SELECT s.scenario_uuid
          FROM ({_ENDED_BACKOFFS}) AS candidate
          JOIN scenarios s USING (scenario_uuid)
         WHERE s.state = 'init_startup'
           FOR NO KEY UPDATE OF s SKIP LOCKED)
    UPDATE scenarios s
       SET due_at = s.state_changed_at
      FROM over
     WHERE s.scenario_uuid = over.scenario_uuid
"""  # noqa: S608 - fragments of our own


def read_tables_snapshot(
    tables: Connection,
    ended: Collection[str],
    results_topic: tuple[str, str, Sequence[int]] | None,
    limits: RetryPolicy,
) -> TablesSnapshot:
    """Return what runners may have, in one snapshot and one round trip.

    `ended`: scenarios that reports list as ended. Those in their shutdown are read however many others are, or their entry, which
    tells that they are drained, would be taken for one that nobody wants. `results_topic`: name, id and partitions.
    """
    with pipelined_transaction(tables, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"):
        clock = tables.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        over = tables.execute(f"SELECT EXISTS ({_ENDED_BACKOFFS})", {"backoffs": 1})
        rows = _select(
            tables,
            SCENARIOS_ON_RUNNERS,
            {"shutdowns": SHUTDOWNS, "ended": list(ended), "last_attempt": limits.max_attempts - 1},
        )
        caught_up = inbox_partitions.execute_caught_up_query(tables, *results_topic) if results_topic else None
    [(now_db_s,)], [(backoff_over,)] = clock.fetchall(), over.fetchall()
    caught_up_db_s = inbox_partitions.fetch_caught_up_s(caught_up) if caught_up else None
    return TablesSnapshot(now_db_s, [_decode_row(row) for row in rows.fetchall()], caught_up_db_s, backoff_over)


def end_backoffs(tx: Connection) -> None:
    """Put scenarios whose backoff is over back into the queue, at most `BACKOFFS` a call.

    While it is in backoff a scenario is not in the queue's index, so that those at its head need not be looked through for one
    that is due.
    """
    tx.execute(END_BACKOFFS, {"backoffs": BACKOFFS})


def read_queue_head(tables: Connection, slots_by_pool: Mapping[str, int], limits: RetryPolicy) -> list[ScenarioView]:
    """Return the first scenarios of each pool's queue, by priority, then age: as many of each as `slots_by_pool` says."""
    if not slots_by_pool:
        return []
    given = {
        "pools": list(slots_by_pool),
        "counts": list(slots_by_pool.values()),
        "last_attempt": limits.max_attempts - 1,
    }
    return [_decode_row(row) for row in _select(tables, HEAD_OF_QUEUE, given).fetchall()]


def _select(tables: Connection, query: str, parameters: Mapping[str, object]) -> Cursor[dict[str, Any]]:
    return tables.cursor(row_factory=dict_row).execute(query, parameters)


def _decode_row(row: dict[str, Any]) -> ScenarioView:
    progress = Progress(
        epoch=row["progress_epoch"],
        closed=row["closed"],
        next_frame=row["next_frame"],
        last_pts=row["last_pts"],
        end_epoch=row["end_epoch"],
        end_last_frame=row["end_last_frame"],
        end_reason=results.decode_end_reason(row["end_reason"]),
        hole_epoch=row["hole_epoch"],
    )
    return ScenarioView(
        decode_scenario(row), progress, row["priority"], row["since_s"], is_due(row["due_in_s"]), row["deploy_waits"],
        row["deploy_refused"],
    )  # fmt: skip
