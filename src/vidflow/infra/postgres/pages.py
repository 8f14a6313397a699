"""Pages bounded by rows and by bytes, so that a request takes a bounded amount of memory however large the rows are.

A statement reads row by row in a recursive query, adds up the bytes of what goes into the answer, and stops once the page is
full. Each row carries that sum as `page_bytes`. One row beyond the page is read too, and tells that the page is not the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

MAX_PAGE_BYTES: Final = 1024**2
"""The largest page, unless its only item is larger."""

T = TypeVar("T")


def trim_page(rows: Sequence[tuple[T, int]], limit: int) -> tuple[list[T], bool]:
    """Return the items of a page, and whether more follow. `rows`: each item with its `page_bytes`, at most one beyond the page."""
    items = [
        item for number, (item, page_bytes) in enumerate(rows[:limit]) if number == 0 or page_bytes <= MAX_PAGE_BYTES
    ]
    return items, len(items) < len(rows)
