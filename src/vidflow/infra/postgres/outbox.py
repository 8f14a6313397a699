"""Statements on the outbox: messages that are written in the transaction that decides them, and published by the relay.

A row is pending until the relay deletes it or sets it aside. A cursor over ids would miss rows, because ids become visible out of order.
The rows of one key are in order, because each is inserted under its scenario's row lock.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final

import msgspec
from psycopg.rows import args_row, class_row

from vidflow.domain.shards import SHARDS
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.postgres.parameters import columns

WINDOW: Final = 2000
"""Number of newest ids that a usual read of pending rows covers, so that it does not scan dead rows below them."""
MAX_COUNTED_MESSAGES: Final = 10_000
"""Maximum number of messages that are counted, so that counting does not become more expensive while Kafka is away."""
BATCH_BYTES: Final = 8 * 1024 * 1024
"""Payload bytes after which a read of pending messages stops. The message that crosses the limit is included."""


class OutboxMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message to publish. `kind`, `epoch` and `runner` become headers."""

    topic: str
    key: str
    kind: str
    epoch: int
    payload: bytes
    runner: str | None = None


class PendingMessage(msgspec.Struct, frozen=True, gc=False):
    """A pending message with its generated columns, in the order of the columns that `read_pending_messages` selects."""

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
    """A message that the broker rejected, with the size of its payload and the broker's error."""

    id: int
    created_at: datetime
    topic: str
    key: str
    kind: str
    epoch: int
    size_bytes: int
    error: str


class OutboxLag(msgspec.Struct, frozen=True):
    """The number of waiting messages, the age of the oldest in seconds, and the number of messages set aside as undeliverable.

    A count of MAX_COUNTED_MESSAGES means that many or more.
    """

    waiting: int
    oldest_s: float
    set_aside: int


def add_messages(tx: Connection, messages: Sequence[OutboxMessage]) -> None:
    """Insert messages, which are published in this order."""
    if not messages:
        return
    tx.execute(
        """
        INSERT INTO outbox (topic, key, kind, epoch, runner, payload)
        SELECT n.topic, n.key, n.kind, n.epoch, n.runner, n.payload
          FROM unnest(%b::text[], %b::text[], %b::text[], %b::bigint[], %b::text[], %b::bytea[])
               WITH ORDINALITY AS n (topic, key, kind, epoch, runner, payload, number)
         ORDER BY n.number
        """,
        columns(_row(message) for message in messages),
    )


def add_commands(tx: Connection, messages: Sequence[OutboxMessage]) -> int:
    """Insert commands except those of which a copy is pending. Return the number of inserted rows."""
    if not messages:
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
                  AND o.error IS NULL
               OFFSET 0)  -- an index lookup per row, whatever the table's statistics are
         ORDER BY n.number
        """,
        columns(_row(message) for message in messages),
    ).rowcount


def _row(message: OutboxMessage) -> tuple[object, ...]:
    return message.topic, message.key, message.kind, message.epoch, message.runner, message.payload


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
    """Return at most `limit` pending messages of these shards in order of id.

    `max_bytes`: stop once the payloads reach this size. The payloads of further rows are not loaded.
    `after_id`: return only ids greater than this, when everything below has already been sent.
    `window`: consider only this many of the newest ids. A message is left out if an older one of its key is pending below the window,
    because it would overtake that one.
    `excluded_topics`, `in_flight_ids`: leave out these messages.
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
                   AND o.error IS NULL
                   AND o.topic <> ALL (%(excluded_topics)s::text[])
                   AND o.id <> ALL (%(in_flight_ids)s::bigint[])
                   AND ((SELECT id FROM start) <= 0 OR NOT EXISTS (
                       SELECT FROM outbox b
                        WHERE b.key = o.key AND b.id <= (SELECT id FROM start) AND b.error IS NULL
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
                "excluded_topics": list(excluded_topics),
                "in_flight_ids": list(in_flight_ids),
                "limit": limit,
                "max_bytes": max_bytes,
            },
        )
        .fetchall()
    )


def has_pending_messages(tx: Connection) -> bool:
    """Return whether any message is pending, in any shard. This costs a fifth of a `read_pending_messages` that returns nothing."""
    return bool(tx.execute("SELECT FROM outbox WHERE error IS NULL ORDER BY id DESC LIMIT 1").rowcount)


def count_pending_up_to(tx: Connection, row_id: int, shards: Collection[int]) -> int:
    """Return the number of pending messages of these shards with ids up to `row_id`."""
    [(count,)] = tx.execute(
        """
        SELECT count(*)
          FROM outbox
         WHERE id <= %(id)s AND shard = ANY (%(shards)s::smallint[]) AND error IS NULL
        """,
        {"id": row_id, "shards": list(shards)},
    ).fetchall()
    return int(count)


def remove_published(tx: Connection, ids: Sequence[int]) -> int:
    """Delete messages that the broker has acknowledged. Return how many, so that the caller notices a lost race."""
    if not ids:
        return 0
    return tx.execute(
        """
        DELETE FROM outbox
         WHERE id = ANY (%b::bigint[])
        """,
        (list(ids),),
    ).rowcount


def set_aside(tx: Connection, message_id: int, error: str) -> None:
    """Mark a message as undeliverable, with the broker's error, so that it does not block others."""
    tx.execute(
        """
        UPDATE outbox
           SET error = %(error)s
         WHERE id = %(id)s
        """,
        {"id": message_id, "error": error},
    )


def list_set_aside(tx: Connection, limit: int) -> list[SetAsideMessage]:
    """Return at most `limit` messages that were set aside, oldest first."""
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
    """Make messages that were set aside pending again. Return how many."""
    return tx.execute(
        """
        UPDATE outbox
           SET error = NULL
         WHERE id = ANY (%(ids)s::bigint[]) AND error IS NOT NULL
        """,
        {"ids": list(ids)},
    ).rowcount


def drop_set_aside(tx: Connection, ids: Collection[int]) -> int:
    """Delete messages that were set aside. Return how many."""
    return tx.execute(
        """
        DELETE FROM outbox
         WHERE id = ANY (%(ids)s::bigint[]) AND error IS NOT NULL
        """,
        {"ids": list(ids)},
    ).rowcount


def read_lag(tx: Connection, shards: Collection[int] = range(SHARDS)) -> OutboxLag:
    """Return the lag of these shards among the first MAX_COUNTED_MESSAGES messages that wait or are set aside."""
    [row] = tx.execute(
        """
        WITH waiting AS MATERIALIZED (
            SELECT id, shard
              FROM outbox
             WHERE error IS NULL
             ORDER BY id
             LIMIT %(limit)s
        ), aside AS MATERIALIZED (
            SELECT shard
              FROM outbox
             WHERE error IS NOT NULL
             ORDER BY id
             LIMIT %(limit)s
        )
        SELECT count(*),
               coalesce((SELECT extract(epoch FROM clock_timestamp() - o.created_at)
                           FROM outbox o
                          WHERE o.id = min(waiting.id)), 0)::float8,
               (SELECT count(*) FROM aside WHERE shard = ANY (%(shards)s::smallint[]))
          FROM waiting
         WHERE shard = ANY (%(shards)s::smallint[])
        """,
        {"shards": list(shards), "limit": MAX_COUNTED_MESSAGES},
    ).fetchall()
    return OutboxLag(*row)


def count_set_aside(tx: Connection) -> int:
    """Return how many messages in the outbox were set aside as undeliverable, counting at most MAX_COUNTED_MESSAGES."""
    [(count,)] = tx.execute(
        "SELECT count(*) FROM (SELECT FROM outbox WHERE error IS NOT NULL ORDER BY id LIMIT %(limit)s) AS set_aside",
        {"limit": MAX_COUNTED_MESSAGES},
    ).fetchall()
    return int(count)
