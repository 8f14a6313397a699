"""Statements that create partitions of the results and remove old results and scenarios. domain/retention.py decides which ones.

A version 7 uuid begins with its time, so that a range of uuids is a range of time. Rows outside the ranges of all partitions are in the
DEFAULT partition. PostgreSQL scans it whenever a partition is added.

DDL waits for its locks only for LOCK_WAIT_MS, because statements queued after it wait as long. DETACH PARTITION … CONCURRENTLY is not
possible, since PostgreSQL rejects it if there is a DEFAULT partition. A plain DETACH takes milliseconds once it has its locks.
"""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Sequence
from typing import Final

import msgspec

from vidflow.domain.retention import TimeRange
from vidflow.infra.postgres.connection import Connection

LOCK_WAIT_MS: Final = 200
_DELETE_REST: Final = tuple(
    f"""
    DELETE FROM {table} t
     USING (SELECT {", ".join(key)} FROM {table}
             WHERE scenario_uuid = %(scenario_uuid)s ORDER BY {", ".join(key)} LIMIT %(limit)s) AS first
     WHERE t.scenario_uuid = %(scenario_uuid)s AND {" AND ".join(f"t.{name} = first.{name}" for name in key)}
    """  # noqa: S608 - constant names
    for table, key in (
        ("scenario_results", ["frame_number"]),
        ("scenario_gaps", ["after_frame", "from_s", "reason"]),
        ("scenario_history", ["number"]),
    )
)
MIN_UUID: Final = "00000000-0000-0000-0000-000000000000"
"""Less than every scenario_uuid."""
_BOUND: Final = re.compile(r"FROM \('(?P<first>[^)]*)'\) TO \('(?P<last>[^)]*)'\)")


class Partition(msgspec.Struct, frozen=True):
    """A partition of the results, and the creation times of the scenarios whose results it holds."""

    table: str
    time_range: TimeRange


def name_partition(time_range: TimeRange) -> Partition:
    """Return the partition to create for a range. It is named after the day on which the range begins."""
    day = datetime.datetime.fromtimestamp(time_range.from_ms / 1000, datetime.UTC)
    return Partition(f"scenario_results_{day:%Y%m%d}", time_range)


def lowest_uuid(at_ms: int) -> str:
    """Return a lower bound for the version 7 uuids created at a time in Unix milliseconds."""
    return str(uuid.UUID(int=at_ms << 80))


def time_ms(scenario_uuid: str) -> int:
    """Return the time of a version 7 uuid in Unix milliseconds."""
    return uuid.UUID(scenario_uuid).int >> 80


def read_database_ms(tx: Connection) -> int:
    """Return the database's time in Unix milliseconds. The uuids of scenarios are created from the same clock."""
    [(now_ms,)] = tx.execute("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint").fetchall()
    return int(now_ms)


def list_partitions(tx: Connection) -> list[Partition]:
    """Return the partitions of the results other than the DEFAULT partition, oldest first."""
    rows = tx.execute(
        """
        SELECT c.relname, pg_get_expr(c.relpartbound, c.oid)
          FROM pg_inherits i
          JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'scenario_results'::regclass AND c.oid <> 'scenario_results_default'::regclass
        """
    ).fetchall()
    partitions = [Partition(table, _parse_bound(bound)) for table, bound in rows]
    return sorted(partitions, key=lambda partition: partition.time_range.from_ms)


def _parse_bound(text: str) -> TimeRange:
    match = _BOUND.search(text)
    assert match is not None, text  # PostgreSQL's text of a range bound
    return TimeRange(time_ms(match["first"]), time_ms(match["last"]))


def default_span_ms(tx: Connection) -> tuple[int, int] | None:
    """Return the times of the oldest and newest scenario with rows in the DEFAULT partition, or None if it is empty."""
    [row] = tx.execute(
        """
        SELECT (SELECT d.scenario_uuid::text FROM scenario_results_default d ORDER BY d.scenario_uuid LIMIT 1),
               (SELECT d.scenario_uuid::text FROM scenario_results_default d ORDER BY d.scenario_uuid DESC LIMIT 1)
        """
    ).fetchall()
    return (time_ms(row[0]), time_ms(row[1])) if row[0] is not None else None


def make_partition(tx: Connection, partition: Partition) -> None:
    """Create a partition. Other partitions can be read and written meanwhile: ATTACH locks and scans only the DEFAULT partition.

    Raises psycopg.errors.LockNotAvailable, and CheckViolation if the DEFAULT partition holds a row of the range.
    """
    _set_lock_timeout(tx)
    tx.execute(
        "SELECT make_results_partition(%s, %s, %s)",
        (partition.table, lowest_uuid(partition.time_range.from_ms), lowest_uuid(partition.time_range.to_ms)),
    )


def find_ended_up_to(
    tx: Connection, created: TimeRange, ended_ms: int, after: str, limit: int
) -> tuple[str, bool | None]:
    """Check whether the scenarios created in a range ended before `ended_ms`: at most `limit` of them, after the uuid `after`.

    Return the uuid up to which all have ended, and True if these are all scenarios of the range, False if the next one has not ended, or
    None if the check has to continue after the returned uuid. An ended scenario never starts again, so none has to be checked twice.
    """
    rows = tx.execute(
        """
        SELECT s.scenario_uuid::text, s.state = 'inactive' AND s.state_changed_at < to_timestamp(%(ended_s)s)
          FROM scenarios s
         WHERE s.scenario_uuid > greatest(%(first)s::uuid, %(after)s::uuid) AND s.scenario_uuid < %(last)s::uuid
         ORDER BY s.scenario_uuid
         LIMIT %(limit)s
        """,
        {
            "first": lowest_uuid(created.from_ms),
            "last": lowest_uuid(created.to_ms),
            "after": after,
            "ended_s": ended_ms / 1000,
            "limit": limit,
        },
    ).fetchall()
    for scenario_uuid, ended in rows:
        if not ended:
            return after, False
        after = scenario_uuid
    return after, True if len(rows) < limit else None


def note_removed(tx: Connection, created: TimeRange) -> None:
    """Record that the results of scenarios created in a range are removed, to tell them from scenarios that had none."""
    tx.execute(
        """
        INSERT INTO results_removed (from_uuid, to_uuid)
        VALUES (%(first)s, %(last)s)
            ON CONFLICT (from_uuid) DO UPDATE SET to_uuid = greatest(results_removed.to_uuid, excluded.to_uuid)
        """,
        {"first": lowest_uuid(created.from_ms), "last": lowest_uuid(created.to_ms)},
    )


def detach_partition(tx: Connection, partition: Partition) -> None:
    """Detach a partition from the results and rename it. `drop_partition` drops it later, without locking the results.

    Raises psycopg.errors.LockNotAvailable.
    """
    _set_lock_timeout(tx)
    tx.execute("SELECT detach_results_partition(%s)", (partition.table,))


def list_detached_partitions(tx: Connection) -> list[str]:
    """Return the names of detached partitions that have not been dropped yet."""
    rows = tx.execute(
        """
        SELECT c.relname
          FROM pg_class c
          JOIN pg_class parent ON parent.oid = 'scenario_results'::regclass AND parent.relnamespace = c.relnamespace
         WHERE c.relkind = 'r' AND NOT c.relispartition AND c.relname ~ %s
        """,
        (r"^scenario_results_\w+_removed$",),
    ).fetchall()
    return [table for (table,) in rows]


def drop_partition(tx: Connection, table: str) -> None:
    """Drop a detached partition. Raises psycopg.errors.LockNotAvailable while a transaction still reads it."""
    _set_lock_timeout(tx)
    tx.execute("SELECT drop_results_partition(%s)", (table,))


def delete_from_default(tx: Connection, created: TimeRange, limit: int) -> int:
    """Delete at most `limit` results of scenarios created in a range from the DEFAULT partition. Return how many."""
    return tx.execute(
        """
        DELETE FROM scenario_results_default
         WHERE ctid = ANY (ARRAY (
               SELECT ctid
                 FROM scenario_results_default
                WHERE scenario_uuid >= %(first)s::uuid AND scenario_uuid < %(last)s::uuid
                ORDER BY scenario_uuid, frame_number
                LIMIT %(limit)s))
        """,
        {"first": lowest_uuid(created.from_ms), "last": lowest_uuid(created.to_ms), "limit": limit},
    ).rowcount


def find_expired_scenarios(tx: Connection, ended_ms: int, after: str, limit: int) -> tuple[list[str], str | None]:
    """Check the next `limit` scenarios after the uuid `after`. Return those that can be deleted, and the uuid to continue after.

    A scenario can be deleted if it has been inactive since before `ended_ms` and its results, if it had any, have been removed. Otherwise
    the results would belong to no scenario. The second value is None after the last scenario that is old enough.
    """
    rows = tx.execute(
        """
        SELECT s.scenario_uuid::text,
               s.state = 'inactive' AND s.state_changed_at < to_timestamp(%(ended_s)s)
               AND (coalesce((SELECT next_frame FROM scenario_progress p WHERE p.scenario_uuid = s.scenario_uuid), 0) = 0
                    OR EXISTS (SELECT FROM results_removed r WHERE s.scenario_uuid >= r.from_uuid AND s.scenario_uuid < r.to_uuid))
          FROM scenarios s
         WHERE s.scenario_uuid > %(after)s::uuid AND s.scenario_uuid < %(created_before)s::uuid
         ORDER BY s.scenario_uuid
         LIMIT %(limit)s
        """,
        {"created_before": lowest_uuid(ended_ms), "ended_s": ended_ms / 1000, "after": after, "limit": limit},
    ).fetchall()
    expired = [scenario_uuid for scenario_uuid, is_expired in rows if is_expired]
    return expired, rows[-1][0] if len(rows) == limit else None


def delete_scenarios(tx: Connection, scenario_uuids: Sequence[str]) -> int:
    """Delete those of the scenarios that are inactive, with their history, gaps and progress. Return how many."""
    return tx.execute(
        """
        WITH expired AS MATERIALIZED (
            SELECT scenario_uuid
              FROM scenarios
             WHERE scenario_uuid = ANY (%b::uuid[]) AND state = 'inactive'
        ), history AS (
            DELETE FROM scenario_history USING expired WHERE scenario_history.scenario_uuid = expired.scenario_uuid
        ), gaps AS (
            DELETE FROM scenario_gaps USING expired WHERE scenario_gaps.scenario_uuid = expired.scenario_uuid
        ), progress AS (
            DELETE FROM scenario_progress USING expired WHERE scenario_progress.scenario_uuid = expired.scenario_uuid
        )
        DELETE FROM scenarios USING expired WHERE scenarios.scenario_uuid = expired.scenario_uuid
        """,
        (list(scenario_uuids),),
    ).rowcount


def find_deleted_scenario(tx: Connection) -> str | None:
    """Return a scenario that a client has deleted and of which there may be rows left, None if there is none."""
    row = tx.execute(
        "SELECT d.scenario_uuid::text FROM deleted_scenarios d ORDER BY d.scenario_uuid LIMIT 1"
    ).fetchone()
    return row[0] if row is not None else None


def delete_rest(tx: Connection, scenario_uuid: str, limit: int) -> bool:
    """Delete at most `limit` results and as many gaps and transitions of a deleted scenario. Return whether there may be more."""
    values = {"scenario_uuid": scenario_uuid, "limit": limit}
    deleted = [tx.execute(statement, values).rowcount for statement in _DELETE_REST]
    if max(deleted) >= limit:
        return True
    tx.execute("DELETE FROM scenario_progress WHERE scenario_uuid = %(scenario_uuid)s", values)
    tx.execute("DELETE FROM deleted_scenarios WHERE scenario_uuid = %(scenario_uuid)s", values)
    return False


def _set_lock_timeout(tx: Connection) -> None:
    tx.execute(f"SET LOCAL lock_timeout = {LOCK_WAIT_MS}")
