"""What PostgreSQL does for the statements of a function: each is explained as it is run, and what was run is undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import psycopg
from psycopg.sql import Composable

from vidflow.infra.postgres.connection import Connection

SMALL_TABLES = {"lease", "runners", "inbox_partitions", "results_removed", "schema_checksums"}
"""Tables that do not grow with what waits or is stored: reading all of them is fine."""


class QueryPlan(msgspec.Struct, frozen=True):
    """A statement: pages touched, the tables that were read from end to end, and the most rows that were sorted."""

    query: str
    pages: int
    scanned: frozenset[str]
    sorted_rows: int


class _ExplainingCursor(psycopg.Cursor[Any]):
    """Explains each statement, undoes it, and runs it."""

    plans: list[QueryPlan]

    def execute(self, query: Any, params: Any = None, **more: Any) -> Any:
        text = query.as_string(None) if isinstance(query, Composable) else query
        if isinstance(text, bytes):
            text = text.decode()
        if text.split()[0].upper() in {"SELECT", "WITH", "INSERT", "UPDATE", "DELETE"}:
            with psycopg.Cursor(self.connection) as cursor:
                cursor.execute("SAVEPOINT explained")
                [(plans,)] = cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}", params).fetchall()
                cursor.execute("ROLLBACK TO SAVEPOINT explained")
            type(self).plans.append(_parse_plan(text, plans[0]["Plan"]))
        return super().execute(query, params, **more)


def explain(tables: Connection, run: Callable[[Connection], object]) -> list[QueryPlan]:
    """What the function's statements cost; nothing of what they wrote stays."""

    class Cursor(_ExplainingCursor):
        seen: list[QueryPlan] = []  # noqa: RUF012 - one class a call

    before = tables.cursor_factory
    with tables.transaction(force_rollback=True):
        tables.cursor_factory = Cursor
        try:
            run(tables)
        finally:
            tables.cursor_factory = before
    return Cursor.plans


def _parse_plan(query: str, plan: dict[str, Any]) -> QueryPlan:
    nodes = list(_nodes(plan))
    scans = {str(node["Relation Name"]) for node in nodes if node["Node Type"] == "Seq Scan" and node["Actual Loops"]}
    sorts = [
        int(node["Actual Rows"] * node["Actual Loops"])
        for node in nodes
        if node["Node Type"] in {"Sort", "Incremental Sort"}
    ]
    fed = [
        int(child["Actual Rows"] * child["Actual Loops"])
        for node in nodes
        if node["Node Type"] == "Sort"
        for child in node["Plans"]
    ]
    pages = int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])
    return QueryPlan(
        query,
        pages,
        frozenset(one for one in scans - SMALL_TABLES if not one.startswith("pg_")),
        max([0, *sorts, *fed]),
    )


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)
