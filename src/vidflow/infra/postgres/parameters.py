"""Parameters of statements."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


def columns(rows: Iterable[tuple[object, ...]]) -> list[list[object]]:
    """Return the columns of rows of equal length, for `unnest`. There must be at least one row.

    Rows are sent to PostgreSQL as one binary array per column.
    """
    return [list(column) for column in zip(*rows, strict=True)]


def to_json(value: object) -> str:
    """Return a value as JSON text."""
    return msgspec.json.encode(value).decode()
