"""The outbox: messages that were decided in a transaction and wait for the relay. Its statements, not the publishing.

What is pending is told by the row itself, never by a cursor over ids: ids become visible out of order. The rows of one key
are in order all the same, since each is inserted under its scenario's row lock.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final

import msgspec
from psycopg.rows import args_row, class_row

from vidflow.domain.shards import SHARDS
from vidflow.infra.postgres.connection import Connection

WINDOW: Final = 2000
"""How many of the last ids the usual look for pending rows covers: it does not wade through dead rows further down."""

MAX_COUNTED_MESSAGES: Final = 10_000
"""How many messages are counted at most: what merely waits must cost a look no more, the longer Kafka is away."""
BATCH_BYTES: Final = 8 * 1024 * 1024
"""How much payload is read at once; one message more where they do not end at it evenly."""


class OutboxMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message to be sent: its topic, key and bytes, and what its headers carry."""

    topic: str
    key: str
    kind: str
    epoch: int
    payload: bytes
    runner: str | None = None


class PendingMessage(msgspec.Struct, frozen=True, gc=False):
    """A message that waits, with what it got when it was written; in the order of the columns that `read_pending_messages` selects."""

    id: int
    message_id: str
    shard: int
    topic: str
    key: str
    kind: str
    epoch: int
    runner: str | None
    payload: bytes


class SetAsideMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that no broker took: what it is, how large, and what the broker said."""

    id: int
    created_at: datetime
    topic: str
    key: str
    kind: str
    epoch: int
    size_bytes: int
    error: str


class OutboxLag(msgspec.Struct, frozen=True):
    """How many messages wait, for how long the oldest has, and how many were set aside since no broker takes them.

    Both counts end at COUNTED: there are at least as many then.
    """

    waiting: int
    oldest_s: float
    set_aside: int


def add_messages(tx: Connection, rows: Sequence[OutboxMessage]) -> None:
    """Writes messages, to be published in this order."""
    if not rows:
        return
    tx.execute(
        """
        INSERT INTO outbox (topic, key, kind, epoch, runner, payload)
        SELECT n.topic, n.key, n.kind, n.epoch, n.runner, n.payload
          FROM unnest(%b::text[], %b::text[], %b::text[], %b::bigint[], %b::text[], %b::bytea[])
               WITH ORDINALITY AS n (topic, key, kind, epoch, runner, payload, number)
         ORDER BY n.number
        """,
        _columns(rows),
    )


def add_commands(tx: Connection, rows: Sequence[OutboxMessage]) -> int:
    """Writes commands, less those of which a copy waits unpublished already; returns how many it wrote."""
    if not rows:
        return 0
    return tx.execute(
        """
        INSERT INTO outbox (topic, key, kind, epoch, runner, payload)
        SELECT n.topic, n.key, n.kind, n.epoch, n.runner, n.payload
          FROM unnest(%b::text[], %b::text[], %b::text[], %b::bigint[], %b::text[], %b::bytea[])
               WITH ORDINALITY AS n (topic, key, kind, epoch, runner, payload, number)
         WHERE NOT EXISTS (
               SELECT FROM outbox o
                WHERE o.key = n.key AND o.kind = n.kind AND o.epoch = n.epoch AND o.runner IS NOT DISTINCT FROM n.runner
                  AND o.published_at IS NULL AND o.error IS NULL
               OFFSET 0)  -- an index look-up a row, whatever the planner believes about the rest of the table
         ORDER BY n.number
        """,
        _columns(rows),
    ).rowcount


def _columns(rows: Sequence[OutboxMessage]) -> tuple[list[object], ...]:
    """The rows as columns: sets go to PostgreSQL as one binary array a column."""
    return (
        [row.topic for row in rows],
        [row.key for row in rows],
        [row.kind for row in rows],
        [row.epoch for row in rows],
        [row.runner for row in rows],
        [row.payload for row in rows],
    )


def read_pending_messages(
    tx: Connection,
    limit: int,
    *,
    max_bytes: int = BATCH_BYTES,
    after_id: int = 0,
    window: int | None = None,
    shards: Collection[int] = range(SHARDS),
    excluded_topics: Collection[str] = (),
    in_flight_ids: Collection[int] = (),
) -> list[PendingMessage]:
    """Return the first `limit` messages of these shards that wait, in order of id.

    Without `in_flight_ids` and those of `excluded_topics`.

    Of these no more than reach `max_bytes` of payload: what is left out is not loaded, only its size is looked at.
    `after_id`: only ids above it, for who has sent what waits below. With a `window`, only those among the last so many ids;
    of these, a message whose key has another one waiting further down is left out: it would overtake that one.
    """
    return (
        tx.cursor(row_factory=args_row(PendingMessage), binary=True)
        .execute(
            """
            WITH start AS MATERIALIZED (
                SELECT CASE WHEN %(window)s::bigint IS NULL THEN 0 ELSE coalesce(max(id), 0) - %(window)s::bigint END AS id
                  FROM outbox
            ), head AS (
                SELECT o.id, o.message_id, o.shard, o.topic, o.key, o.kind, o.epoch, o.runner, o.payload
                  FROM outbox o
                 WHERE o.id > (SELECT id FROM start) AND o.id > %(after)s::bigint AND o.shard = ANY (%(shards)s::smallint[])
                   AND o.published_at IS NULL AND o.error IS NULL
                   AND o.topic <> ALL (%(without)s::text[])
                   AND o.id <> ALL (%(on_way)s::bigint[])
                   AND ((SELECT id FROM start) <= 0 OR NOT EXISTS (
                       SELECT FROM outbox b
                        WHERE b.key = o.key AND b.id <= (SELECT id FROM start)
                          AND b.published_at IS NULL AND b.error IS NULL
                       OFFSET 0))
                 ORDER BY o.id
                 LIMIT %(limit)s
            ), sized AS (
                SELECT *, sum(octet_length(payload)) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) - octet_length(payload)
                           AS bytes_before
                  FROM head
            )
            SELECT id, message_id::text, shard, topic, key, kind, epoch, runner, payload
              FROM sized
             WHERE bytes_before < %(max_bytes)s
             ORDER BY id
            """,
            {
                "shards": list(shards),
                "after": after_id,
                "window": window,
                "without": list(excluded_topics),
                "on_way": list(in_flight_ids),
                "limit": limit,
                "max_bytes": max_bytes,
            },
        )
        .fetchall()
    )


def count_pending_up_to(tx: Connection, row_id: int, shards: Collection[int]) -> int:
    """How many messages of these shards wait among the ids up to this one."""
    [(count,)] = tx.execute(
        """
        SELECT count(*)
          FROM outbox
         WHERE id <= %(id)s AND shard = ANY (%(shards)s::smallint[]) AND published_at IS NULL AND error IS NULL
        """,
        {"id": row_id, "shards": list(shards)},
    ).fetchall()
    return int(count)


def remove_published(tx: Connection, ids: Sequence[int]) -> int:
    """Deletes messages that the broker has acknowledged; returns how many, so that the caller sees a lost race."""
    if not ids:
        return 0
    return tx.execute(
        """
        DELETE FROM outbox
         WHERE id = ANY (%b::bigint[]) AND published_at IS NULL
        """,
        (list(ids),),
    ).rowcount


def set_aside(tx: Connection, message_id: int, error: str) -> None:
    """Keeps a message that no broker will ever take, with the reason, where it holds up nothing."""
    tx.execute(
        """
        UPDATE outbox
           SET error = %(error)s
         WHERE id = %(id)s AND published_at IS NULL
        """,
        {"id": message_id, "error": error},
    )


def list_set_aside(tx: Connection, limit: int) -> list[SetAsideMessage]:
    """The first `limit` messages that no broker took, oldest first."""
    return (
        tx.cursor(row_factory=class_row(SetAsideMessage))
        .execute(
            """
            SELECT id, created_at, topic, key, kind, epoch, octet_length(payload) AS size_bytes, error
              FROM outbox
             WHERE error IS NOT NULL
             ORDER BY id
             LIMIT %(limit)s
            """,
            {"limit": limit},
        )
        .fetchall()
    )


def retry_set_aside(tx: Connection, ids: Collection[int]) -> int:
    """Lets the relay try messages again that were set aside; returns how many there were."""
    return tx.execute(
        """
        UPDATE outbox
           SET error = NULL
         WHERE id = ANY (%(ids)s::bigint[]) AND error IS NOT NULL
        """,
        {"ids": list(ids)},
    ).rowcount


def drop_set_aside(tx: Connection, ids: Collection[int]) -> int:
    """Deletes messages that were set aside; returns how many there were."""
    return tx.execute(
        """
        DELETE FROM outbox
         WHERE id = ANY (%(ids)s::bigint[]) AND error IS NOT NULL
        """,
        {"ids": list(ids)},
    ).rowcount


def remove_legacy_published(tx: Connection, limit: int) -> int:
    """Deletes what relays of an earlier version have marked as published, of the `limit` oldest; returns how many."""
    return tx.execute(
        """
        WITH oldest AS (
            SELECT id, published_at
              FROM outbox
             ORDER BY id
             LIMIT %(limit)s)
        DELETE FROM outbox
         WHERE id = ANY (ARRAY(SELECT id FROM oldest WHERE published_at IS NOT NULL))
        """,
        {"limit": limit},
    ).rowcount


def read_lag(tx: Connection, shards: Collection[int] = range(SHARDS)) -> OutboxLag:
    """Return how far these shards are behind, as the first COUNTED messages that wait, and that are set aside, tell it."""
    [row] = tx.execute(
        """
        WITH waiting AS MATERIALIZED (
            SELECT id, shard
              FROM outbox
             WHERE published_at IS NULL AND error IS NULL
             ORDER BY id
             LIMIT %(most)s
        ), aside AS MATERIALIZED (
            SELECT shard
              FROM outbox
             WHERE error IS NOT NULL
             ORDER BY id
             LIMIT %(most)s
        )
        SELECT count(*),
               coalesce((SELECT extract(epoch FROM clock_timestamp() - o.created_at)
                           FROM outbox o
                          WHERE o.id = min(waiting.id)), 0)::float8,
               (SELECT count(*) FROM aside WHERE shard = ANY (%(shards)s::smallint[]))
          FROM waiting
         WHERE shard = ANY (%(shards)s::smallint[])
        """,
        {"shards": list(shards), "most": MAX_COUNTED_MESSAGES},
    ).fetchall()
    return OutboxLag(*row)
