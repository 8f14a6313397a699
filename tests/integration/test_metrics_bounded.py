"""The cost of a scrape is bounded with 1,000,000 finished and 100,000 waiting scenarios."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from tests.conftest import _replace_database

from vidflow.infra.postgres import outbox, scenarios
from vidflow.roles.api.metrics import set_database_metrics

pytestmark = pytest.mark.long

FINISHED = 1_000_000
WAITING = 100_000


class ExplainingCursor(psycopg.Cursor[Any]):
    """A cursor that explains each statement and keeps the plan, then runs the statement."""

    plans: list[dict[str, Any]] = []  # noqa: RUF012 - reset by the test

    def execute(self, query: Any, params: Any = None, **options: Any) -> ExplainingCursor:
        super().execute(f"EXPLAIN (ANALYZE, BUFFERS, TIMING off, FORMAT json) {query}", params, **options)
        assert self.pgresult is not None
        self.plans += json.loads(self.pgresult.get_value(0, 0) or b"[]")
        return super().execute(query, params, **options)


@pytest.fixture(scope="module")
def large(postgres_url: str, _template_database: str) -> Iterator[psycopg.Connection[Any]]:
    name = "many_scenarios"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name} TEMPLATE {_template_database}")
        try:
            with psycopg.connect(_replace_database(postgres_url, name), autocommit=True) as connection:
                fill(connection)
                yield connection
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def fill(connection: psycopg.Connection[Any]) -> None:
    insert = """
        INSERT INTO scenarios (source, model, fps, state, outcome, epoch, runner, state_changed_at)
        SELECT 'http://camera/' || n, 'motion', 'all', %s, %s, %s, %s, now() - interval '1 hour' FROM generate_series(1, %s) AS n
    """
    indexes = connection.execute(  # dropped while the table is filled, since building them afterwards is faster
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'scenarios' AND indexname <> 'scenarios_pkey'"
    ).fetchall()
    for name, _ in indexes:
        connection.execute(f"DROP INDEX {name}")
    connection.execute(insert, ("inactive", "completed", 1, "r", FINISHED))
    connection.execute(insert, ("init_startup", None, 0, None, WAITING))
    connection.execute(insert, ("active", None, 1, "r", 100))
    connection.execute(
        """
        INSERT INTO outbox (topic, key, kind, epoch, payload, error)
        SELECT 'to_deploy.default', n::text, 'stop', 1, '', CASE WHEN n %% 2 = 0 THEN 'too large' END
          FROM generate_series(1, %s) AS n
        """,
        (WAITING,),
    )
    for _, definition in indexes:
        connection.execute(definition)
    connection.execute("ANALYZE")


def test_a_scrape_counts_at_most_max_counted_rows_of_each_kind(large: psycopg.Connection[Any]) -> None:
    counts = scenarios.count_scenarios_by_state(large)
    assert counts == {
        "init_startup": scenarios.MAX_COUNTED_SCENARIOS, "in_startup_processing": 0, "active": 100, "init_shutdown": 0,
        "in_shutdown_processing": 0,
    }  # fmt: skip
    assert outbox.count_set_aside(large) == outbox.MAX_COUNTED_MESSAGES
    assert 3600 <= scenarios.read_queue_oldest_s(large) < 7200


def test_no_statement_of_a_scrape_reads_more_rows_than_it_counts(large: psycopg.Connection[Any]) -> None:
    ExplainingCursor.plans = []
    with psycopg.connect(
        large.info.dsn, password=large.info.password, autocommit=True, cursor_factory=ExplainingCursor
    ) as connection:
        set_database_metrics(connection)
    assert len(ExplainingCursor.plans) == 5
    for explained in ExplainingCursor.plans:
        plan = explained["Plan"]
        # Twice the limit, since every second message of the outbox is filtered out.
        assert max(rows_read(plan)) <= 2 * scenarios.MAX_COUNTED_SCENARIOS, explained
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] <= 2 * scenarios.MAX_COUNTED_SCENARIOS, explained


def rows_read(plan: dict[str, Any]) -> Iterator[float]:
    """Yield the number of rows that each node of the plan has read, including rows removed by a filter."""
    yield (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * min(plan["Actual Loops"], 1)
    for child in plan.get("Plans", []):
        yield from rows_read(child)
