"""The tables of the database, as sql/schema.sql creates them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from docs.generator.markdown import GENERATED

SCHEMA: Final = Path(__file__).parents[2] / "sql" / "schema.sql"
_TABLE: Final = re.compile(r"^CREATE TABLE (\w+) \($", re.MULTILINE)
_INTRODUCTION: Final = """# Tables

The current schema, table by table, with its comments. A test checks that the migrations in `sql/` produce it. Times are UTC; sizes
are in bytes. Whoever only reads may read all tables; write to them by the API and the commands alone, since the guarantees depend on
the order of writes.
"""


def build_page() -> str:
    """Return the page of all tables: a section each, from the comment before it to the next table."""
    text = SCHEMA.read_text()
    starts = [_start_of_comment(text, found.start()) for found in _TABLE.finditer(text)]
    parts = [GENERATED, _INTRODUCTION]
    for name, start, end in zip(_TABLE.findall(text), starts, [*starts[1:], len(text)], strict=True):
        parts.append(f"\n## {name}\n\n```postgresql\n{text[start:end].strip()}\n```\n")
    return "".join(parts)


def _start_of_comment(text: str, position: int) -> int:
    """Return where the comment lines directly before a statement begin."""
    while True:
        previous = text.rfind("\n", 0, position - 1) + 1
        if position == 0 or not text[previous:position].startswith("--"):
            return position
        position = previous
