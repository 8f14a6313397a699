"""Sessions whose client stands still in the midst of a transaction: they hold their locks until somebody ends them.

The server's own limits end those that wait between two statements, but not one in the midst of a COPY
(PostgreSQL looks at no timeout while it reads a client's data).
"""

from __future__ import annotations

from typing import Final

from vidflow.infra.postgres.connection import Connection

STALLED_S: Final = 1.5
"""A client whose transaction is so old, and waits for it, is most likely frozen or cut off; a slow one does its work again.

Shorter than the time after which Kafka gives a silent inbox's partitions to another one, which comes here then.
"""


def end_stalled_sessions(connection: Connection, except_pid: int | None = None) -> list[int]:
    """End the sessions with this one's user and application name that wait for their clients in an old transaction.

    Returns their process ids. `except_pid`: one that stays, by its process id. A client that goes on after all finds its connection
    lost, and nothing of its transaction stored.
    """
    rows = connection.execute(
        """
        WITH stalled AS MATERIALIZED (
            SELECT pid
              FROM pg_stat_activity
             WHERE datname = current_database() AND usename = current_user
               AND application_name = current_setting('application_name')
               AND pid NOT IN (pg_backend_pid(), coalesce(%b, 0)) AND wait_event = 'ClientRead'
               AND xact_start < clock_timestamp() - make_interval(secs => %b)
        )
        SELECT pid FROM stalled WHERE pg_terminate_backend(pid, 1000)
        """,
        (except_pid, STALLED_S),
    ).fetchall()
    return [pid for (pid,) in rows]
