"""Create the database group roles of vidflow's processes and grant their privileges (sql/roles.sql)."""

from __future__ import annotations

from psycopg import errors

from vidflow.domain.errors import SetupError
from vidflow.infra.postgres.connection import connected
from vidflow.infra.postgres.migrations import list_pending_migrations, sql_folder
from vidflow.infra.telemetry.outage import format_error


def create_roles(url: str) -> None:
    """Create missing group roles and grant each its privileges. No login roles are created. May be repeated.

    Raises SetupError if a migration is pending or the user lacks privileges, and Unavailable if the server is away.
    """
    with connected(url, name="vidflow db roles") as connection:
        if list_pending_migrations(connection):
            raise SetupError("The database lacks this version's schema. Run vidflow db migrate first.")
        try:
            connection.execute((sql_folder() / "roles.sql").read_bytes())
        except errors.InsufficientPrivilege as error:
            raise SetupError(
                "The user of VIDFLOW_DATABASE_URL (or --database-url) may not create the roles or grant their privileges "
                f"({format_error(error)}). Use the user that owns the tables and give it CREATEROLE, or have a superuser run "
                "sql/roles.sql once."
            ) from error
