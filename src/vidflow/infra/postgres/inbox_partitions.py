"""How far the results' partitions are stored, up to which moment all that was in them is, and when an inbox last held them.

A position moves by compare-and-set from the value that the inbox holds: where the table has another (another inbox, a
restored database) nothing moves, and the inbox begins again at the table's.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence

from psycopg import Cursor
from psycopg.rows import TupleRow

from vidflow.infra.postgres.connection import Connection


def read_positions(tx: Connection, topic: str, topic_id: str, partitions: Iterable[int]) -> dict[int, int]:
    """The offset of the next message to store, of each partition; one that has no row yet gets one, at 0.

    A row below 0 (an earlier version stored -1001 for a partition without a leader) is set to 0 too: what the log still holds
    is read again, and what is stored already is not stored twice.
    """
    numbers = list(partitions)
    tx.execute(
        """
        INSERT INTO inbox_partitions (topic, topic_id, partition)
        SELECT %(topic)s, %(topic_id)s, n FROM unnest(%(partitions)s::int[]) AS n
            ON CONFLICT (topic, topic_id, partition) DO UPDATE
           SET position = 0, caught_up_at = NULL
         WHERE inbox_partitions.position < 0
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
    """Moves each partition's position from one offset to another; returns those that were still at the first."""
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
    """Note that an inbox holds these partitions, unless that was noted within the last second. Waits for no lock."""
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


def read_database_time(tx: Connection) -> datetime.datetime:
    """The database's time, to be noted before a partition's end is asked for."""
    [(now,)] = tx.execute("SELECT clock_timestamp()").fetchall()
    assert isinstance(now, datetime.datetime)
    return now


def note_caught_up(
    tx: Connection, topic: str, topic_id: str, positions: Mapping[int, int], ends: Mapping[int, int], at: datetime.datetime
) -> dict[int, int]:  # fmt: skip
    """Notes that all that was in the log at `at` is stored, for each partition whose position has reached the log's end.

    `positions` are the positions when the ends were asked for: one that was past its end then is of a log that was cut.
    `ends` must have been asked for after `at`; one below 0 is no end, and marks nothing.
    The last note counts, be it of an earlier moment: true all the same, and a later
    one may be of a time before the database's clock went back. Returns the positions of the partitions that are not at their ends.
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
            "began": [positions[one] for one in ends],
            "ends": list(ends.values()),
            "at": at,
        },
    ).fetchall()
    return dict(rows)


def execute_caught_up_query(tx: Connection, topic: str, topic_id: str, partitions: Sequence[int]) -> Cursor[TupleRow]:
    """Ask up to which moment all that was in the topic's partitions is stored; between this and `fetch_caught_up_s` a pipeline may
    send more.

    Rows of other topic ids do not count.
    """
    return tx.execute(
        """
        SELECT extract(epoch FROM min(caught_up_at))::float8
          FROM inbox_partitions
         WHERE topic = %(topic)s AND topic_id = %(topic_id)s AND partition = ANY (%(partitions)s::int[])
           AND caught_up_at <= clock_timestamp()
           AND position >= 0
        HAVING count(caught_up_at) = cardinality(%(partitions)s::int[])
        """,
        {"topic": topic, "topic_id": topic_id, "partitions": list(partitions)},
    )


def fetch_caught_up_s(cursor: Cursor[TupleRow]) -> float | None:
    """Return that moment, by the database's clock in seconds since 1970.

    None where one of the partitions has not been caught up with yet, or was before the database's clock went back: its mark is of
    the future.
    """
    row = cursor.fetchone()
    return float(row[0]) if row and row[0] is not None else None
