"""The statements by which old results and scenarios go, and partitions of the results are made. Not which, nor when.

DDL waits for its lock for a moment only: whoever waits behind a waiting DDL statement waits as long. DETACH … CONCURRENTLY is no
way here, since PostgreSQL refuses it beside a DEFAULT partition; a plain one is a matter of milliseconds once it has its locks.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Final

from vidflow.domain.retention import DEFAULT_PARTITION, FOREVER_MS, RESULTS_TABLE, PartitionRange
from vidflow.infra.postgres.connection import Connection

LOCK_WAIT_MS: Final = 200
MIN_UUID: Final = "00000000-0000-0000-0000-000000000000"
"""Below every scenario_uuid."""
_BOUND: Final = re.compile(r"FROM \((?P<first>[^)]*)\) TO \((?P<last>[^)]*)\)")


def lowest_uuid(at_ms: int) -> str:
    """The lowest uuid of a moment: of version 7 by its time, below all that were made then."""
    return str(uuid.UUID(int=at_ms << 80))


def time_ms(scenario_uuid: str) -> int:
    """The moment that a uuid of version 7 begins with."""
    return uuid.UUID(scenario_uuid).int >> 80


def read_database_ms(tx: Connection) -> int:
    """The database's clock: the one by which it makes uuids."""
    [(now_ms,)] = tx.execute("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint").fetchall()
    return int(now_ms)


def list_partitions(tx: Connection) -> list[PartitionRange]:
    """The partitions of the results that have a range, the oldest first."""
    rows = tx.execute(
        """
        SELECT c.relname, pg_get_expr(c.relpartbound, c.oid)
          FROM pg_inherits i
          JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'scenario_results'::regclass AND c.relname <> %s
        """,
        (DEFAULT_PARTITION,),
    ).fetchall()
    return sorted((_range(table, text) for table, text in rows), key=lambda one: one.from_ms)


def _range(table: str, text: str) -> PartitionRange:
    match = _BOUND.search(text)
    assert match is not None, text  # what PostgreSQL says of a range
    first, last = match["first"].strip("'"), match["last"].strip("'")
    return PartitionRange(
        table, 0 if first == "MINVALUE" else time_ms(first), FOREVER_MS if last == "MAXVALUE" else time_ms(last)
    )


def default_span_ms(tx: Connection) -> tuple[int, int] | None:
    """The times of the oldest and the newest scenario with a row in the DEFAULT partition; None where it is empty."""
    [row] = tx.execute(
        """
        SELECT (SELECT d.scenario_uuid::text FROM scenario_results_default d ORDER BY d.scenario_uuid LIMIT 1),
               (SELECT d.scenario_uuid::text FROM scenario_results_default d ORDER BY d.scenario_uuid DESC LIMIT 1)
        """
    ).fetchall()
    return (time_ms(row[0]), time_ms(row[1])) if row[0] is not None else None


def make_partition(tx: Connection, new: PartitionRange) -> None:
    """Makes a partition. Reads and writes of the others go on: attaching locks the DEFAULT partition alone, to look through it.

    Raises psycopg.errors.LockNotAvailable, and CheckViolation where the DEFAULT partition holds a row of the range.
    """
    _set_lock_timeout(tx)
    tx.execute(
        "SELECT make_results_partition(%s, %s, %s)", (new.table, lowest_uuid(new.from_ms), lowest_uuid(new.to_ms))
    )


def find_ended_up_to(
    tx: Connection, one: PartitionRange, ended_ms: int, after: str, limit: int
) -> tuple[str, bool | None]:
    """Look at the next `limit` scenarios of the range with a uuid above `after`, and return up to which all have ended before then.

    The second value: whether these are all of the range; None where a look from there on tells. A scenario that has ended does
    not come back, so nobody need look at those below again.
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
            "first": lowest_uuid(one.from_ms),
            "last": _last(one),
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


def note_removed(tx: Connection, one: PartitionRange) -> None:
    """Notes that the results of the range's scenarios are gone, so that nobody takes their absence for their being none."""
    tx.execute(
        """
        INSERT INTO results_removed (from_uuid, to_uuid)
        VALUES (%(first)s, %(last)s)
            ON CONFLICT (from_uuid) DO UPDATE SET to_uuid = greatest(results_removed.to_uuid, excluded.to_uuid)
        """,
        {"first": lowest_uuid(one.from_ms), "last": _last(one)},
    )


def detach_partition(tx: Connection, one: PartitionRange) -> None:
    """Takes a partition out of the results, under a name that says so; it is dropped later, when nobody waits.

    Raises psycopg.errors.LockNotAvailable.
    """
    _set_lock_timeout(tx)
    tx.execute("SELECT detach_results_partition(%s)", (one.table,))


def list_detached_partitions(tx: Connection) -> list[str]:
    """The tables that were partitions, and are still to be dropped."""
    rows = tx.execute(
        """
        SELECT c.relname
          FROM pg_class c
          JOIN pg_class parent ON parent.oid = 'scenario_results'::regclass AND parent.relnamespace = c.relnamespace
         WHERE c.relkind = 'r' AND NOT c.relispartition AND c.relname ~ %s
        """,
        (rf"^{RESULTS_TABLE}_\w+_removed$",),
    ).fetchall()
    return [table for (table,) in rows]


def drop_partition(tx: Connection, table: str) -> None:
    """Drops a detached partition with its rows. Raises psycopg.errors.LockNotAvailable while somebody still reads it."""
    _set_lock_timeout(tx)
    tx.execute("SELECT drop_results_partition(%s)", (table,))


def delete_from_default(tx: Connection, one: PartitionRange, limit: int) -> int:
    """Deletes at most `limit` rows of the range from the DEFAULT partition; returns how many."""
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
        {"first": lowest_uuid(one.from_ms), "last": _last(one), "limit": limit},
    ).rowcount


def find_expired_scenarios(tx: Connection, ended_ms: int, after: str, limit: int) -> tuple[list[str], str | None]:
    """Look at the next `limit` scenarios with a uuid above `after`, and return those whose time is over, and where to go on.

    A scenario goes once it has been inactive since before `ended_ms` and its results, if it had any, are gone: they would belong
    to nobody. The second value is None at the end of those that are old enough.
    """
    rows = tx.execute(
        """
        SELECT s.scenario_uuid::text,
               s.state = 'inactive' AND s.state_changed_at < to_timestamp(%(ended_s)s)
               AND (coalesce((SELECT next_frame FROM scenario_progress p WHERE p.scenario_uuid = s.scenario_uuid), 0) = 0
                    OR EXISTS (SELECT FROM results_removed r WHERE s.scenario_uuid >= r.from_uuid AND s.scenario_uuid < r.to_uuid))
          FROM scenarios s
         WHERE s.scenario_uuid > %(after)s::uuid AND s.scenario_uuid < %(born)s::uuid
         ORDER BY s.scenario_uuid
         LIMIT %(limit)s
        """,
        {"born": lowest_uuid(ended_ms), "ended_s": ended_ms / 1000, "after": after, "limit": limit},
    ).fetchall()
    return [scenario_uuid for scenario_uuid, over in rows if over], rows[-1][0] if len(rows) == limit else None


def delete_scenarios(tx: Connection, scenario_uuids: Sequence[str]) -> int:
    """Delete these scenarios with all that is theirs, except those that are not inactive any more. Return how many went."""
    return tx.execute(
        """
        WITH outlived AS MATERIALIZED (
            SELECT scenario_uuid
              FROM scenarios
             WHERE scenario_uuid = ANY (%b::uuid[]) AND state = 'inactive'
        ), history AS (
            DELETE FROM scenario_history USING outlived WHERE scenario_history.scenario_uuid = outlived.scenario_uuid
        ), gaps AS (
            DELETE FROM scenario_gaps USING outlived WHERE scenario_gaps.scenario_uuid = outlived.scenario_uuid
        ), progress AS (
            DELETE FROM scenario_progress USING outlived WHERE scenario_progress.scenario_uuid = outlived.scenario_uuid
        )
        DELETE FROM scenarios USING outlived WHERE scenarios.scenario_uuid = outlived.scenario_uuid
        """,
        (list(scenario_uuids),),
    ).rowcount


def _last(one: PartitionRange) -> str:
    return str(uuid.UUID(int=min(one.to_ms << 80, (1 << 128) - 1)))


def _set_lock_timeout(tx: Connection) -> None:
    tx.execute(f"SET LOCAL lock_timeout = {LOCK_WAIT_MS}")
