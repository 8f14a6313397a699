"""docs/api.md holds the HTTP contract: a change of the API that it does not show fails here."""

from __future__ import annotations

from pathlib import Path

from tests.docs.api_reference import build_reference, read_openapi_document

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


def test_the_reference_shows_the_present_api() -> None:
    current = build_reference(read_openapi_document())
    assert PAGE.read_text().splitlines() == current.splitlines(), (
        "If the change of the API is intended, run: python -m tests.docs.api_reference > docs/api.md"
    )
