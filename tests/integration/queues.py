"""Queues of any length, written straight into the tables."""

from __future__ import annotations

from vidflow.infra.postgres.connection import Connection


def fill_queue(
    tables: Connection, count: int, *, priority: int = -100, parameters: str = "{}", pool: str = "default"
) -> None:
    """Scenarios that wait, each with its progress, as the api writes them but for their messages and history."""
    tables.execute(
        """
        WITH born AS (
            INSERT INTO scenarios (source, model, fps, priority, parameters, pool)
            SELECT 'http://a/b.mp4', 'motion', 'all', %(priority)s, %(parameters)s::jsonb, %(pool)s
              FROM generate_series(1, %(count)s)
         RETURNING scenario_uuid)
        INSERT INTO scenario_progress (scenario_uuid)
        SELECT scenario_uuid FROM born
        """,
        {"count": count, "priority": priority, "parameters": parameters, "pool": pool},
    )
