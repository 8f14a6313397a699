"""Commands for access: the tokens of the API, and the audit of what was changed."""

from __future__ import annotations

import typer

from vidflow.cli.options import (
    DatabaseUrl,
    ExpiresDays,
    Limit,
    OnlyOwner,
    Owner,
    TokenId,
    TokenNote,
    TokenRights,
)
from vidflow.domain.access import Rights

token_app = typer.Typer(help="Manage the tokens of the API.")


@token_app.command("create")
def create_token(
    owner: Owner, rights: TokenRights = Rights.WRITE, expires_days: ExpiresDays = None, note: TokenNote = "",
    database_url: DatabaseUrl = "",
) -> None:  # fmt: skip
    """Create a token and print it. It cannot be shown again.

    Once a token was created, each request needs one.
    """
    from vidflow.commands.tokens import create_token  # noqa: PLC0415

    create_token(database_url, owner, rights, expires_days, note)


@token_app.command("list")
def list_tokens(owner: OnlyOwner = None, database_url: DatabaseUrl = "") -> None:
    """List the tokens, without their secrets."""
    from vidflow.commands.tokens import list_tokens  # noqa: PLC0415

    list_tokens(database_url, owner)


@token_app.command("revoke")
def revoke_token(token_id: TokenId, database_url: DatabaseUrl = "") -> None:
    """Revoke a token. Requests with it are refused within three seconds."""
    from vidflow.commands.tokens import revoke_token  # noqa: PLC0415

    revoke_token(database_url, token_id)


def print_audit(owner: OnlyOwner = None, limit: Limit = 100, database_url: DatabaseUrl = "") -> None:
    """List who changed what: the newest entries of the audit."""
    from vidflow.commands.tokens import list_audit  # noqa: PLC0415

    list_audit(database_url, owner, limit)
