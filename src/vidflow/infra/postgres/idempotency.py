"""Answers to requests with an Idempotency-Key, kept so that a repeated request gets the same answer and changes nothing."""

from __future__ import annotations

from typing import Final

import msgspec

from vidflow.domain.access import WriteScope
from vidflow.infra.postgres.connection import Connection

KEPT_HOURS: Final = 24
EXPIRED_BATCH_ROWS: Final = 2000
_LOCK_CLASS: Final = 0x69_64_65_6D  # "idem": the first key of the advisory locks of this module


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a request: its status, the header Location, and its body as it is sent."""

    status: int
    location: str | None
    body: bytes


def find_answer(tx: Connection, scope: WriteScope, key: str) -> tuple[bytes, Answer] | None:
    """Return the hash of the owner's request with this key, and its answer. None if there was none in the last KEPT_HOURS."""
    row = tx.execute(
        """
        SELECT request_sha256, status, location, body
          FROM idempotency_keys
         WHERE owner = %s AND key = %s AND created_at > clock_timestamp() - make_interval(hours => %s)
        """,
        (scope.owner, key, KEPT_HOURS),
    ).fetchone()
    if row is None:
        return None
    request_sha256, status, location, body = row
    return request_sha256, Answer(status=status, location=location, body=body)


def try_lock_key(tx: Connection, scope: WriteScope, key: str) -> bool:
    """Take the key until the transaction ends. Return False if another transaction has it.

    Two keys whose hashes are equal exclude each other, too, which is rare and delays one of them.
    """
    [(is_locked,)] = tx.execute(
        "SELECT pg_try_advisory_xact_lock(%s, hashtext(%s))", (_LOCK_CLASS, f"{scope.owner}\n{key}")
    ).fetchall()
    return bool(is_locked)


def add_answer(tx: Connection, scope: WriteScope, key: str, request_sha256: bytes, answer: Answer) -> None:
    """Keep the answer to a request, in the transaction of what the request changed. An expired one with the same key is replaced."""
    tx.execute(
        """
        INSERT INTO idempotency_keys (owner, key, request_sha256, status, location, body)
        VALUES (%(owner)s, %(key)s, %(request_sha256)s, %(status)s, %(location)s, %(body)s)
            ON CONFLICT (owner, key) DO UPDATE
           SET created_at = clock_timestamp(), request_sha256 = EXCLUDED.request_sha256, status = EXCLUDED.status,
               location = EXCLUDED.location, body = EXCLUDED.body
        """,
        {"owner": scope.owner, "key": key, "request_sha256": request_sha256, **msgspec.structs.asdict(answer)},
    )


def delete_expired(tx: Connection) -> int:
    """Delete at most EXPIRED_BATCH_ROWS expired answers, the oldest first, and return how many."""
    return tx.execute(
        """
        DELETE FROM idempotency_keys
         WHERE ctid = ANY (ARRAY(SELECT ctid
                                   FROM idempotency_keys
                                  WHERE created_at < now() - make_interval(hours => %(hours)s)
                                  ORDER BY created_at
                                  LIMIT %(rows)s))
           AND created_at < now() - make_interval(hours => %(hours)s)  -- a key that was used again meanwhile stays
        """,
        {"hours": KEPT_HOURS, "rows": EXPIRED_BATCH_ROWS},
    ).rowcount
