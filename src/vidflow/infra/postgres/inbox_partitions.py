"""State of each partition of the results topic: the next offset to store, the time up to which all is stored, and when an inbox held it.

A position moves by compare-and-set from the value that the inbox holds. If the table has a different position, because of another inbox
or a restored database, nothing moves and the inbox restarts from the table's position.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence

from psycopg import Cursor
from psycopg.rows import TupleRow

from vidflow.infra.postgres.connection import Connection


def read_positions(tx: Connection, topic: str, topic_id: str, partitions: Iterable[int]) -> dict[int, int]:
    """Return the offset of the next message to store of each partition. A partition without a row gets one with position 0."""
    numbers = list(partitions)
    tx.execute(
        """
        INSERT INTO inbox_partitions (topic, topic_id, partition)
        SELECT %(topic)s, %(topic_id)s, n FROM unnest(%(partitions)s::int[]) AS n
            ON CONFLICT (topic, topic_id, partition) DO NOTHING
        """,
        {"topic": topic, "topic_id": topic_id, "partitions": numbers},
    )
    rows = tx.execute(
        """
        SELECT partition, position
          FROM inbox_partitions
         WHERE topic = %(topic)s AND topic_id = %(topic_id)s AND partition = ANY (%(partitions)s::int[])
        """,
        {"topic": topic, "topic_id": topic_id, "partitions": numbers},
    ).fetchall()
    return dict(rows)


def move_positions(tx: Connection, topic: str, topic_id: str, moves: Mapping[int, tuple[int, int]]) -> set[int]:
    """Move each partition's position from an expected offset to a new one. Return the partitions that were at the expected offset.

    A negative number, which the client gives for an unknown offset, moves nothing.
    """
    rows = tx.execute(
        """
        UPDATE inbox_partitions p
           SET position = n.after
          FROM unnest(%b::int[], %b::bigint[], %b::bigint[]) AS n (partition, before, after)
         WHERE p.topic = %b AND p.topic_id = %b AND p.partition = n.partition AND p.position = n.before
           AND n.after >= 0
     RETURNING p.partition
        """,
        (
            list(moves),
            [before for before, _ in moves.values()],
            [after for _, after in moves.values()],
            topic,
            topic_id,
        ),
    ).fetchall()
    return {partition for (partition,) in rows}


def note_seen(tx: Connection, topic: str, topic_id: str, partitions: Iterable[int]) -> None:
    """Record that an inbox holds these partitions, at most once a second. Locked rows are skipped."""
    tx.execute(
        """
        WITH held AS (
            SELECT partition
              FROM inbox_partitions
             WHERE topic = %(topic)s AND topic_id = %(topic_id)s AND partition = ANY (%(partitions)s::int[])
               AND coalesce(greatest(seen_at, caught_up_at), '-infinity')
                   NOT BETWEEN clock_timestamp() - interval '1 s' AND clock_timestamp()
               FOR UPDATE SKIP LOCKED
        )
        UPDATE inbox_partitions p
           SET seen_at = clock_timestamp()
          FROM held
         WHERE p.topic = %(topic)s AND p.topic_id = %(topic_id)s AND p.partition = held.partition
        """,
        {"topic": topic, "topic_id": topic_id, "partitions": list(partitions)},
    )


def are_all_held(tx: Connection, topic: str, topic_id: str, within_s: float) -> bool:
    """Return whether an inbox held each partition in the last `within_s` seconds. False if none was ever held."""
    [(held,)] = tx.execute(
        """
        SELECT coalesce(bool_and(coalesce(greatest(seen_at, caught_up_at) > clock_timestamp() - make_interval(secs => %s), false)), false)
          FROM inbox_partitions
         WHERE topic = %s AND topic_id = %s
        """,
        (within_s, topic, topic_id),
    ).fetchall()
    return bool(held)


def read_database_time(tx: Connection) -> datetime.datetime:
    """Return the database's time. Read it before the end offsets that are passed to `note_caught_up`."""
    [(now,)] = tx.execute("SELECT clock_timestamp()").fetchall()
    assert isinstance(now, datetime.datetime)
    return now


def note_caught_up(
    tx: Connection, topic: str, topic_id: str, positions: Mapping[int, int], ends: Mapping[int, int], as_of: datetime.datetime
) -> dict[int, int]:  # fmt: skip
    """Record that all messages in the log at `as_of` are stored, for each partition whose position has reached its end offset.

    `ends` must have been read after `as_of`; negative offsets are ignored. `positions` are the positions at the time when the ends were
    read. A position past its end at that time means that the log was truncated, and nothing is recorded.

    The last call wins even if its `as_of` is earlier. It is still true, and the later time may have been written before the database
    clock stepped back. Return the positions of the partitions that have not reached their ends.
    """
    rows = tx.execute(
        """
        WITH ends AS (
            SELECT *
              FROM unnest(%(partitions)s::int[], %(began)s::bigint[], %(ends)s::bigint[]) AS e (partition, began, log_end)
        ), noted AS (
            UPDATE inbox_partitions p
               SET caught_up_at = %(at)s
              FROM ends
             WHERE p.topic = %(topic)s AND p.topic_id = %(topic_id)s AND p.partition = ends.partition
               AND p.position >= ends.log_end AND ends.began BETWEEN 0 AND ends.log_end
        )
        SELECT p.partition, p.position
          FROM inbox_partitions p
          JOIN ends ON p.topic = %(topic)s AND p.topic_id = %(topic_id)s AND p.partition = ends.partition
         WHERE p.position < ends.log_end OR ends.began > ends.log_end
        """,
        {
            "topic": topic,
            "topic_id": topic_id,
            "partitions": list(ends),
            "began": [positions[partition] for partition in ends],
            "ends": list(ends.values()),
            "at": as_of,
        },
    ).fetchall()
    return dict(rows)


def execute_caught_up_query(tx: Connection, topic: str, topic_id: str, partitions: Sequence[int]) -> Cursor[TupleRow]:
    """Query the time up to which all messages of the topic are stored. Rows of other topic ids are ignored.

    The result is fetched by `fetch_caught_up_s`, so that a pipeline can send further statements in between.
    """
    return tx.execute(
        """
        SELECT extract(epoch FROM min(caught_up_at))::float8
          FROM inbox_partitions
         WHERE topic = %(topic)s AND topic_id = %(topic_id)s AND partition = ANY (%(partitions)s::int[])
           AND caught_up_at <= clock_timestamp()
        HAVING count(caught_up_at) = cardinality(%(partitions)s::int[])
        """,
        {"topic": topic, "topic_id": topic_id, "partitions": list(partitions)},
    )


def fetch_caught_up_s(cursor: Cursor[TupleRow]) -> float | None:
    """Return the time up to which all messages are stored, by the database clock in seconds since 1970.

    None if a partition has not been caught up with yet, or if its time lies in the future because the database clock stepped back.
    """
    row = cursor.fetchone()
    return float(row[0]) if row and row[0] is not None else None
