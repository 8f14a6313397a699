"""Explain the statements that a function runs, and roll back what they wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import psycopg
from psycopg.sql import Composable

from vidflow.infra.postgres.connection import Connection

SMALL_TABLES = {"lease", "runners", "inbox_partitions", "results_removed", "schema_checksums"}
"""Tables that do not grow with the number of scenarios or messages and may be scanned."""


class QueryPlan(msgspec.Struct, frozen=True):
    """A statement with the pages it touched, the tables it scanned sequentially, and the rows of its largest sort."""

    query: str
    pages: int
    scanned: frozenset[str]
    sorted_rows: int


class _ExplainingCursor(psycopg.Cursor[Any]):
    """A cursor that runs each statement twice: explained and rolled back, then normally."""

    plans: list[QueryPlan]

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        text = query.as_string(None) if isinstance(query, Composable) else query
        if isinstance(text, bytes):
            text = text.decode()
        if text.split()[0].upper() in {"SELECT", "WITH", "INSERT", "UPDATE", "DELETE"}:
            with psycopg.Cursor(self.connection) as cursor:
                cursor.execute("SAVEPOINT explained")
                [(plans,)] = cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}", params).fetchall()
                cursor.execute("ROLLBACK TO SAVEPOINT explained")
            type(self).plans.append(_parse_plan(text, plans[0]["Plan"]))
        return super().execute(query, params, **options)


def explain(connection: Connection, run: Callable[[Connection], object]) -> list[QueryPlan]:
    """Return the plans of the statements that `run` executes. Its changes are rolled back."""

    class Cursor(_ExplainingCursor):
        plans: list[QueryPlan] = []  # noqa: RUF012 - one class per call

    cursor_factory = connection.cursor_factory
    with connection.transaction(force_rollback=True):
        connection.cursor_factory = Cursor
        try:
            run(connection)
        finally:
            connection.cursor_factory = cursor_factory
    return Cursor.plans


def _parse_plan(query: str, plan: dict[str, Any]) -> QueryPlan:
    nodes = list(_nodes(plan))
    scans = {str(node["Relation Name"]) for node in nodes if node["Node Type"] == "Seq Scan" and node["Actual Loops"]}
    sorts = [
        int(node["Actual Rows"] * node["Actual Loops"])
        for node in nodes
        if node["Node Type"] in {"Sort", "Incremental Sort"}
    ]
    sort_inputs = [
        int(child["Actual Rows"] * child["Actual Loops"])
        for node in nodes
        if node["Node Type"] == "Sort"
        for child in node["Plans"]
    ]
    pages = int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])
    return QueryPlan(
        query,
        pages,
        frozenset(table for table in scans - SMALL_TABLES if not table.startswith("pg_")),
        max([0, *sorts, *sort_inputs]),
    )


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)
