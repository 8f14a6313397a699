"""The audit: who changed what, when and from where. Each row is written in the transaction of the change."""

from __future__ import annotations

import datetime
from typing import Final, Literal

import msgspec
from psycopg.rows import class_row

from vidflow.domain.access import WriteScope
from vidflow.infra.postgres.connection import Connection

Action = Literal[
    "scenario_created", "shutdown_requested", "scenario_changed", "scenario_deleted", "token_created", "token_revoked"
]
EXPIRED_BATCH_ROWS: Final = 2000


class AuditRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `audit`. `address` is that of the client, None for an operator's command, whose `owner` is their database user."""

    id: int
    at: datetime.datetime
    action: str
    owner: str
    token_id: str | None
    address: str | None
    scenario_uuid: str | None
    detail: str | None


def author_of(scope: WriteScope) -> dict[str, str | None]:
    """Return the parameters of a statement that adds an entry: `by`, `token_id` and `address` of who changes something."""
    return {"by": scope.owner, "token_id": scope.token_id, "address": scope.address}


def add_entry(tx: Connection, scope: WriteScope, action: Action, scenario_uuid: str) -> None:
    """Record what a client changed."""
    tx.execute(
        """
        INSERT INTO audit (action, owner, token_id, address, scenario_uuid)
        VALUES (%(action)s, %(by)s, %(token_id)s, %(address)s, %(scenario_uuid)s)
        """,
        {"action": action, "scenario_uuid": scenario_uuid, **author_of(scope)},
    )


def add_operator_entry(tx: Connection, action: Action, detail: str) -> None:
    """Record what an operator changed by a command."""
    tx.execute("INSERT INTO audit (action, owner, detail) VALUES (%s, session_user, %s)", (action, detail))


def list_entries(tx: Connection, owner: str | None, limit: int) -> list[AuditRow]:
    """Return the newest `limit` entries, or those of an owner, the newest first."""
    query = """
        SELECT id, at, action, owner, token_id, address, scenario_uuid::text, detail
          FROM audit
         WHERE %(owner)s::text IS NULL OR owner = %(owner)s
         ORDER BY id DESC
         LIMIT %(limit)s
    """
    return tx.cursor(row_factory=class_row(AuditRow)).execute(query, {"owner": owner, "limit": limit}).fetchall()


def delete_expired(tx: Connection, keep_days: int) -> int:
    """Delete expired entries among the EXPIRED_BATCH_ROWS oldest, and return how many. Ids are almost in the order of time."""
    return tx.execute(
        """
        DELETE FROM audit
         USING (SELECT id, at FROM audit ORDER BY id LIMIT %(rows)s) AS oldest
         WHERE audit.id = oldest.id AND oldest.at < clock_timestamp() - make_interval(days => %(days)s)
        """,
        {"rows": EXPIRED_BATCH_ROWS, "days": keep_days},
    ).rowcount
