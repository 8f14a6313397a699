"""End sessions whose client has stopped in the middle of a transaction and which therefore still hold their locks.

The server's timeouts end sessions that are idle between two statements. They do not apply during COPY, because PostgreSQL checks no
timeout while it reads data from the client.
"""

from __future__ import annotations

from typing import Final

from vidflow.infra.postgres.connection import Connection

STALLED_S: Final = 1.5
"""Age of a transaction from which its client counts as frozen or cut off. A client that is merely slow repeats its work.

Shorter than the time after which Kafka assigns the partitions of a silent inbox to another one, which then ends the silent one's session.
"""


def end_stalled_sessions(connection: Connection, except_pid: int | None = None) -> list[int]:
    """End sessions that wait for their client in a transaction older than STALLED_S. Return their process ids.

    Only sessions with the user and application name of `connection` are ended, except the one with the process id `except_pid`. A client
    that continues finds its connection lost and its transaction rolled back.
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
