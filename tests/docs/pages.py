"""The pages of the documentation, and the code, headings and links on them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FILE_ROLE = re.compile(r"\{(?:download|doc)\}`([^`]+)`")


class Block(NamedTuple):
    """A fenced block: the page, the language of its fence, and its text."""

    page: Path
    language: str
    text: str

    @property
    def name(self) -> str:
        """A name for the test's id."""
        first = self.text.strip().partition("\n")[0]
        return f"{page_name(self.page)}: {self.language}: {first[:50]}"


def page_name(page: Path) -> str:
    """Return the page's path in the repository."""
    return str(page.relative_to(ROOT))


def blocks(*languages: str) -> list[Block]:
    """Return all fenced blocks in these languages."""
    found = [Block(page, *block) for page in PAGES for block in all_blocks(page)]
    return [block for block in found if block.language in languages]


def all_blocks(page: Path) -> list[tuple[str, str]]:
    """Return the language and the text of each fenced block on a page."""
    return _BLOCK.findall(page.read_text())


def code_snippets(text: str) -> Iterator[str]:
    """Yield the code on a page: blocks unchanged, spans as one line."""
    yield from (block for _, block in _BLOCK.findall(text))
    yield from (" ".join(span.split()) for span in _SPAN.findall(_BLOCK.sub("", text)))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as MyST and GitHub build them."""
    found: set[str] = set()
    for heading in _HEADING.findall(_BLOCK.sub("", page.read_text())):
        slug = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")
        number, unique = 0, slug
        while unique in found:
            number += 1
            unique = f"{slug}-{number}"
        found.add(unique)
    return found


def links(page: Path) -> list[str]:
    """Return the targets of all links on a page, and the files that it lets readers download or shows as pictures."""
    text = page.read_text()
    pictures = re.findall(r"^```\{(?:image|include|figure)\} (\S+)", text, re.MULTILINE)
    prose = _BLOCK.sub("", text)
    return [*_LINK.findall(_SPAN.sub("``", prose)), *_FILE_ROLE.findall(prose), *pictures]
