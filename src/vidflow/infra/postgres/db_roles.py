"""The group roles of the database, one for each process of vidflow, and their rights: sql/roles.sql, applied. It makes no login."""

from __future__ import annotations

from psycopg import errors

from vidflow.domain.errors import SetupError
from vidflow.infra.postgres.connection import connected
from vidflow.infra.postgres.migrations import list_pending_migrations, sql_folder
from vidflow.infra.telemetry.outage import format_error


def create_roles(url: str) -> None:
    """Make the roles that are missing and grant each what it needs; can be given again. Raises SetupError, Unavailable."""
    with connected(url, name="vidflow db roles") as tables:
        if list_pending_migrations(tables):
            raise SetupError("the database lacks this version's schema: run vidflow db migrate first")
        try:
            tables.execute((sql_folder() / "roles.sql").read_bytes())
        except errors.InsufficientPrivilege as error:
            raise SetupError(
                "the user of VIDFLOW_DATABASE_URL (or --database-url) may not make the roles or grant their rights "
                f"({format_error(error)}): take the user that owns the tables, and give it CREATEROLE, or have a superuser run "
                "sql/roles.sql once"
            ) from error
