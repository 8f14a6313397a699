"""Repeated statements are prepared on direct connections, and planned again after their tables have grown."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.pgbouncer import running_pgbouncer

from vidflow.infra.postgres.connection import Connection, connect, discard_plans, prepare_repeated_statements

REPEATS = 12
"""More than the executions after which psycopg prepares a statement (5) and PostgreSQL keeps its plan (5 more)."""


def test_a_kept_plan_is_made_again_after_its_table_has_grown(database_url: str) -> None:
    with connect(database_url, name="test") as connection:
        prepare_repeated_statements(connection)
        connection.execute("CREATE TEMPORARY TABLE numbers (number integer)")
        read_repeatedly(connection)
        connection.execute("INSERT INTO numbers SELECT generate_series(1, 100000)")
        kept = estimate_rows(connection)
        discard_plans(connection)
        assert kept < 10_000 < estimate_rows(connection)


def test_a_connection_that_does_not_ask_for_it_prepares_nothing(database_url: str) -> None:
    with connect(database_url, name="test") as connection:
        connection.execute("CREATE TEMPORARY TABLE numbers (number integer)")
        read_repeatedly(connection)
        discard_plans(connection)
        assert list_prepared(connection) == []


@pytest.mark.long
def test_nothing_is_prepared_through_a_pooler(database_url: str, tmp_path: Path) -> None:
    with running_pgbouncer(database_url, tmp_path) as url, connect(url, name="test") as connection:
        prepare_repeated_statements(connection)
        for _ in range(REPEATS):
            connection.execute("SELECT %s::integer", (1,))
        assert list_prepared(connection) == []


def read_repeatedly(connection: Connection) -> None:
    for _ in range(REPEATS):
        connection.execute("SELECT number FROM numbers WHERE number > %s", (0,))


def list_prepared(connection: Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM pg_prepared_statements").fetchall()]


def estimate_rows(connection: Connection) -> int:
    """Return the number of rows that the plan of the first prepared statement expects."""
    [name, *_] = list_prepared(connection)
    [([plan],)] = connection.execute(f"EXPLAIN (FORMAT JSON) EXECUTE {name} (0)".encode()).fetchall()
    return int(plan["Plan"]["Plan Rows"])
