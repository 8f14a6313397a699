"""`vidflow token` and `vidflow audit`: the tokens of the API, and what was changed."""

from __future__ import annotations

import datetime
import secrets

import typer

from vidflow.domain.access import (
    ID_BYTES,
    MAX_NOTE_CHARACTERS,
    SECRET_BYTES,
    Rights,
    check_owner,
    format_token,
    hash_token,
)
from vidflow.domain.errors import ParameterError, UserError
from vidflow.infra.postgres import audit, tokens
from vidflow.infra.postgres.connection import connected
from vidflow.infra.telemetry.logs import safe_line


def create_token(database_url: str, owner: str, rights: Rights, expires_days: int | None, note: str) -> None:
    """Create a token and print it to standard output, alone. Raises ParameterError for an owner or a note that is not allowed."""
    check_owner(owner)
    if len(note) > MAX_NOTE_CHARACTERS or not note.isprintable():
        raise ParameterError(f"Invalid --note. Use up to {MAX_NOTE_CHARACTERS} characters in one line.")
    id_bytes = secrets.token_bytes(ID_BYTES)
    text = format_token(id_bytes, secrets.token_bytes(SECRET_BYTES))
    with connected(database_url, name="vidflow token create") as connection:
        row = tokens.add_token(
            connection,
            token_id=id_bytes.hex(),
            token_sha256=hash_token(text),
            owner=owner,
            rights=rights,
            note=note,
            lifetime=datetime.timedelta(days=expires_days) if expires_days is not None else None,
        )
    expires = f"expires on {_format_time(row.expires_at)}" if row.expires_at else "does not expire"
    typer.echo(
        f"Token {row.token_id} of {owner} ({rights.value}) {expires}. Keep it: it cannot be shown again.", err=True
    )
    typer.echo(text)


def list_tokens(database_url: str, owner: str | None) -> None:
    """Print all tokens, or those of an owner, one a line."""
    with connected(database_url, name="vidflow token list") as connection:
        rows = tokens.list_tokens(connection, owner)
    for row in rows:
        state = "revoked" if row.revoked_at else "expired" if row.is_expired else "valid"
        times = [f"created {_format_time(row.created_at)}"]
        times += [f"expires {_format_time(row.expires_at)}"] if row.expires_at else []
        times += [f"last used {_format_time(row.last_used_at)}" if row.last_used_at else "never used"]
        typer.echo(
            safe_line(
                f"{row.token_id}  {state:7}  {row.rights:5}  {row.owner}  {', '.join(times)}  {row.note}".rstrip()
            )
        )
    if not rows:
        typer.echo("there is no token")


def revoke_token(database_url: str, token_id: str) -> None:
    """Revoke a token. Raises UserError if there is no valid one with this id."""
    with connected(database_url, name="vidflow token revoke") as connection:
        if not tokens.revoke_token(connection, token_id):
            raise UserError(
                f"There is no token {token_id[:80]!r} that is not revoked already. List them with: vidflow token list"
            )
    typer.echo(f"revoked {token_id}")


def list_audit(database_url: str, owner: str | None, limit: int) -> None:
    """Print the newest entries of the audit, the newest first."""
    with connected(database_url, name="vidflow audit") as connection:
        rows = audit.list_entries(connection, owner, limit)
    for row in rows:
        by = f"{row.owner}, token {row.token_id}" if row.token_id else row.owner
        origin = f"from {row.address}" if row.address else "by command"
        typer.echo(
            safe_line(f"{_format_time(row.at)}  {row.action}  {row.scenario_uuid or row.detail}  {by}  {origin}")
        )
    if not rows:
        typer.echo("nothing was changed yet")


def _format_time(time: datetime.datetime) -> str:
    return f"{time.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
