"""Fill the queue by writing to the tables directly."""

from __future__ import annotations

from vidflow.infra.postgres.connection import Connection


def fill_queue(
    connection: Connection, count: int, *, priority: int = -100, parameters: str = "{}", pool: str = "default"
) -> None:
    """Insert waiting scenarios with their progress, as the api does, but without messages and history."""
    connection.execute(
        """
        WITH inserted AS (
            INSERT INTO scenarios (source, model, fps, priority, parameters, pool)
            SELECT 'http://a/b.mp4', 'motion', 'all', %(priority)s, %(parameters)s::jsonb, %(pool)s
              FROM generate_series(1, %(count)s)
         RETURNING scenario_uuid)
        INSERT INTO scenario_progress (scenario_uuid)
        SELECT scenario_uuid FROM inserted
        """,
        {"count": count, "priority": priority, "parameters": parameters, "pool": pool},
    )
