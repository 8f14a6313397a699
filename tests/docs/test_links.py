"""Links in the documentation lead to files and headings that exist; those to other sites are well-formed."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.docs.pages import PAGES, ROOT, anchors, links, page_name


def problem(page: Path, target: str) -> str | None:
    """Return what is wrong with a link, None if nothing is."""
    parts = urlsplit(target)
    if parts.scheme:
        return None if parts.scheme in {"http", "https"} and parts.hostname else "not an HTTP URL"
    file = page
    if parts.path:
        folder = ROOT / "docs" if parts.path.startswith("/") else page.parent
        file = (folder / parts.path.lstrip("/")).resolve()
    if not file.exists():
        return "no such file"
    return "no such heading" if parts.fragment and parts.fragment not in anchors(file) else None


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_the_links_of_a_page_have_targets(page: Path) -> None:
    problems = {target: problem(page, target) for target in links(page)}
    assert {target: text for target, text in problems.items() if text} == {}


def test_broken_links_are_noticed() -> None:
    page = ROOT / "docs" / "index.md"
    assert problem(page, "how-to/nothing.md") == "no such file"
    assert problem(page, "faults.md#nothing") == "no such heading"
    assert problem(page, "https:nothing") == "not an HTTP URL"
    assert problem(page, "how-to/runbook.md#lag-grows") is None


def test_every_page_is_reachable_from_the_first() -> None:
    """The tables of contents on index pages name every page."""
    listed = {
        page
        for index in (ROOT / "docs" / "index.md", ROOT / "docs" / "decisions" / "index.md")
        for page in contents(index)
    }
    pages = {page for page in (ROOT / "docs").rglob("*.md") if not page.name.startswith("_")}
    assert pages - listed == {ROOT / "docs" / "index.md"}


def contents(index: Path) -> set[Path]:
    lines = index.read_text().splitlines()
    named = {index.parent / f"{line}.md" for line in lines if (index.parent / f"{line}.md").is_file()}
    return named | ({*index.parent.glob("0*.md")} if "0*" in lines else set())
