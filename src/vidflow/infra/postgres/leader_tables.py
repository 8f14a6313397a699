"""Rows that the leader reads in each tick: scenarios that may be on runners, and the head of the queue.

The cost of a statement does not depend on the number of waiting or finished scenarios. Each statement finds its rows through a partial
index and looks up each one by its key, whatever the planner's statistics say about the rest of the table.
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
from vidflow.infra.postgres import inbox_partitions
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.postgres.lifecycle import decode_scenario
from vidflow.infra.postgres.pipelining import pipelined_transaction
from vidflow.infra.postgres.progress import decode_end_reason

SHUTDOWNS: Final = 1000
"""Maximum number of scenarios in shutdown that a tick reads, oldest first. The others wait for the next tick."""
BACKOFFS: Final = 500
"""Maximum number of backoffs that one statement ends."""


class TablesSnapshot(msgspec.Struct, frozen=True):
    """Rows that a tick reads in one snapshot.

    `now_db_s` is the snapshot's time by the database clock, in seconds since 1970. `caught_up_db_s` is the result of
    `inbox_partitions.fetch_caught_up_s`. `backoff_over` is True if the backoff of at least one scenario is over.
    """

    now_db_s: float
    scenarios: Sequence[ScenarioView]
    caught_up_db_s: float | None
    backoff_over: bool


# `parameters` may hold 250 kB of labels, so they are read only where the next loss would be the last attempt.
_ROWS: Final = """
     CROSS JOIN LATERAL (
           SELECT s.scenario_uuid::text, s.state, s.outcome, s.error::text AS error, s.epoch, s.attempt, s.requeues, s.runner,
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
"""Maximum number of messages rejected by Kafka that a tick reads, newest first, to notice rejected deploys."""
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
                WHERE o.key = first.scenario_uuid::text AND o.kind = 'deploy' AND o.epoch = s.epoch AND o.error IS NULL
               OFFSET 0) AS deploy_waits,
           CASE WHEN s.state = 'in_startup_processing' THEN (
               SELECT min(refused.error)
                 FROM refused
                WHERE refused.key = first.scenario_uuid::text AND refused.epoch = s.epoch) END AS deploy_refused
      FROM first
    {_ROWS}
"""  # noqa: S608 - constant fragments

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
"""  # noqa: S608 - constant fragments

# A due time further away than the longest backoff was written before the database clock stepped back.
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
"""  # noqa: S608 - a constant number

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
"""  # noqa: S608 - constant fragments


def read_tables_snapshot(
    connection: Connection,
    ended: Collection[str],
    results_topic: tuple[str, str, Sequence[int]] | None,
    limits: RetryPolicy,
) -> TablesSnapshot:
    """Return the scenarios that may be on runners, in one snapshot and one round trip.

    `ended` are the scenarios that reports list as ended. Those in shutdown are always read, in addition to the SHUTDOWNS oldest ones.
    Otherwise their report entries, which say that they are drained, would look like entries of unknown scenarios. `results_topic` is the
    topic's name, id and partitions.
    """
    with pipelined_transaction(connection, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"):
        clock = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        over = connection.execute(f"SELECT EXISTS ({_ENDED_BACKOFFS})", {"backoffs": 1})
        rows = _select(
            connection,
            SCENARIOS_ON_RUNNERS,
            {"shutdowns": SHUTDOWNS, "ended": list(ended), "last_attempt": limits.max_attempts - 1},
        )
        caught_up = inbox_partitions.execute_caught_up_query(connection, *results_topic) if results_topic else None
    [(now_db_s,)], [(backoff_over,)] = clock.fetchall(), over.fetchall()
    caught_up_db_s = inbox_partitions.fetch_caught_up_s(caught_up) if caught_up else None
    return TablesSnapshot(now_db_s, [_decode_row(row) for row in rows.fetchall()], caught_up_db_s, backoff_over)


def end_backoffs(tx: Connection) -> None:
    """Put scenarios whose backoff is over back into the queue, at most `BACKOFFS` per call.

    A scenario in backoff is not in the queue's index, so that reading the head of the queue does not have to skip it.
    """
    tx.execute(END_BACKOFFS, {"backoffs": BACKOFFS})


def read_queue_head(
    connection: Connection, slots_by_pool: Mapping[str, int], limits: RetryPolicy
) -> list[ScenarioView]:
    """Return the first `slots_by_pool` scenarios of each pool's queue, ordered by priority, then age."""
    if not slots_by_pool:
        return []
    values = {
        "pools": list(slots_by_pool),
        "counts": list(slots_by_pool.values()),
        "last_attempt": limits.max_attempts - 1,
    }
    return [_decode_row(row) for row in _select(connection, HEAD_OF_QUEUE, values).fetchall()]


def _select(connection: Connection, query: str, parameters: Mapping[str, object]) -> Cursor[dict[str, Any]]:
    return connection.cursor(row_factory=dict_row).execute(query, parameters)


def _decode_row(row: dict[str, Any]) -> ScenarioView:
    progress = Progress(
        epoch=row["progress_epoch"],
        closed=row["closed"],
        next_frame=row["next_frame"],
        last_pts=row["last_pts"],
        end_epoch=row["end_epoch"],
        end_last_frame=row["end_last_frame"],
        end_reason=decode_end_reason(row["end_reason"]),
        hole_epoch=row["hole_epoch"],
    )
    return ScenarioView(
        decode_scenario(row), progress, row["priority"], row["since_s"], is_due(row["due_in_s"]), row["deploy_waits"],
        row["deploy_refused"],
    )  # fmt: skip
