"""Pages bounded by rows and by bytes, so that a request needs a bounded amount of memory.

A recursive query reads row by row, adds up the bytes of the answer as `page_bytes` and stops once the page is full. It reads one row
beyond the page to find out whether the page is the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

MAX_PAGE_BYTES: Final = 1024**2
"""Largest page, unless its only item is larger."""

T = TypeVar("T")


def trim_page(rows: Sequence[tuple[T, int]], limit: int) -> tuple[list[T], bool]:
    """Return the items of a page, and whether more follow. `rows` are the items with their `page_bytes`."""
    items = [
        item for number, (item, page_bytes) in enumerate(rows[:limit]) if number == 0 or page_bytes <= MAX_PAGE_BYTES
    ]
    return items, len(items) < len(rows)
