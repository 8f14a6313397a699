"""Create, list, revoke and check tokens. Only their hashes are stored."""

from __future__ import annotations

import datetime
import hmac
from typing import Final

import msgspec
from psycopg.rows import dict_row

from vidflow.domain.access import Rights, parse_token_id
from vidflow.infra.postgres import audit
from vidflow.infra.postgres.connection import Connection, transaction

USE_INTERVAL_S: Final = 60
"""How exact `last_used_at` is. A token in use is not written more often."""


class TokenRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `tokens` without the hash."""

    token_id: str
    owner: str
    rights: Rights
    note: str
    created_at: datetime.datetime
    expires_at: datetime.datetime | None
    revoked_at: datetime.datetime | None
    last_used_at: datetime.datetime | None
    is_expired: bool


_COLUMNS: Final = """
    token_id, owner, rights, note, created_at, expires_at, revoked_at, last_used_at,
    coalesce(expires_at <= clock_timestamp(), false) AS is_expired"""


def add_token(
    connection: Connection,
    *,
    token_id: str,
    token_sha256: bytes,
    owner: str,
    rights: Rights,
    note: str,
    lifetime: datetime.timedelta | None,
) -> TokenRow:
    """Store a new token and record it in the audit. `lifetime`: None for a token that does not expire."""
    with transaction(connection) as tx:
        row = (
            tx.cursor(row_factory=dict_row)
            .execute(
                f"""
                INSERT INTO tokens (token_id, token_sha256, owner, rights, note, expires_at)
                VALUES (%(token_id)s, %(token_sha256)s, %(owner)s, %(rights)s, %(note)s,
                        clock_timestamp() + %(lifetime)s::interval)
                RETURNING {_COLUMNS}
                """,  # noqa: S608 - constant columns
                {
                    "token_id": token_id,
                    "token_sha256": token_sha256,
                    "owner": owner,
                    "rights": rights.value,
                    "note": note,
                    "lifetime": lifetime,
                },
            )
            .fetchone()
        )
        audit.add_operator_entry(tx, "token_created", f"{token_id}: {rights.value} for {owner}")
    return msgspec.convert(row, TokenRow)


def list_tokens(tx: Connection, owner: str | None = None) -> list[TokenRow]:
    """Return all tokens, or those of an owner, the oldest first."""
    query = f"SELECT {_COLUMNS} FROM tokens WHERE %(owner)s::text IS NULL OR owner = %(owner)s ORDER BY created_at, token_id"  # noqa: S608
    return msgspec.convert(tx.cursor(row_factory=dict_row).execute(query, {"owner": owner}).fetchall(), list[TokenRow])


def revoke_token(connection: Connection, token_id: str) -> bool:
    """Revoke a token and record it in the audit. Return False if there is none with this id, or if it is revoked already."""
    with transaction(connection) as tx:
        changed = tx.execute(
            "UPDATE tokens SET revoked_at = clock_timestamp() WHERE token_id = %s AND revoked_at IS NULL", (token_id,)
        ).rowcount
        if changed:
            audit.add_operator_entry(tx, "token_revoked", token_id)
    return bool(changed)


def has_tokens(tx: Connection) -> bool:
    """Return whether a token was ever created, so that requests need one."""
    [(count,)] = tx.execute("SELECT count(*) FROM (SELECT FROM tokens ORDER BY token_id LIMIT 1) AS first").fetchall()
    return bool(count)


def find_token(tx: Connection, token: str, token_sha256: bytes) -> TokenRow | None:
    """Return the row of a token that a client sent, revoked and expired ones too, and note its use. None if it is not known."""
    query = f"""
        SELECT {_COLUMNS}, token_sha256,
               coalesce(last_used_at < clock_timestamp() - make_interval(secs => {USE_INTERVAL_S}), true) AS is_use_due
          FROM tokens
         WHERE token_id = %s
    """  # noqa: S608 - constants
    found = tx.cursor(row_factory=dict_row).execute(query, (parse_token_id(token),)).fetchone()
    row = msgspec.convert(found, _StoredToken | None)
    if row is None or not hmac.compare_digest(row.token_sha256, token_sha256):
        return None
    if row.is_use_due and row.revoked_at is None and not row.is_expired:
        tx.execute("UPDATE tokens SET last_used_at = clock_timestamp() WHERE token_id = %s", (row.token_id,))
    return row


class _StoredToken(TokenRow, frozen=True, kw_only=True):
    token_sha256: bytes
    is_use_due: bool
