"""Words and class names that the project's language excludes are in no file that people read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "sql", "tests", "docs", "bench", ".ci")
SUFFIXES = {".py", ".sql", ".md", ".css", ".html", ".js", ".sh", ""}
FILES = [
    *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES),
    *(
        ROOT / name
        for name in ("README.md", "CHANGELOG.md", "install.py", "pyproject.toml", "Dockerfile", "compose.yaml")
    ),
]
EXCLUDED = {
    "after": r"(?i)\bbehind\b",
    "again": r"(?i)(?<![a-z])anew(?![a-z])",
    "reports, returns or logs": r"(?i)\b(?:tells|told)\b",
    "permanent": r"(?i)\bno retry mends\b",
    "a noun": r"\bclass (?:Asked|Given|Heard|Kept|Known|Seen|Shown|Taken|Told|Wanted)\b",
}
"""Each pattern by what to write instead."""
ALLOWED = re.compile(
    r"""(?i)
    \bbehind\s(?:a\s(?:pooler|proxy)|PgBouncer|TLS\sproxies)\b  # a place in a network
    | \b(?:is|lags?|\d+\sh)\sbehind\b | \bbehind\sit\sif\snegative\b  # a distance
    | \b(?:leaves?|left)\s(?:nothing|results)\sbehind\b
    """,
    re.VERBOSE,
)


def found(text: str) -> Iterator[str]:
    """Yield each excluded word with its line number and what to write instead."""
    text = ALLOWED.sub(lambda phrase: re.sub(r"\S", "_", phrase[0]), text)
    for replacement, pattern in EXCLUDED.items():
        for word in re.finditer(pattern, text):
            yield f"line {text.count(chr(10), 0, word.start()) + 1}: write {replacement} for {word[0]!r}"


@pytest.mark.parametrize("text", ["goes on behind it", "begins Anew", "it tells", "No retry mends it", "class Known:"])
def test_each_excluded_word_is_found(text: str) -> None:
    assert len(list(found(f"first\n{text}"))) == 1


def test_an_allowed_phrase_is_not_found() -> None:
    assert list(found("It lags behind, and works behind a\npooler. It can tell: class Knowns")) == []


def test_no_file_contains_an_excluded_word() -> None:
    texts = {path: path.read_text() for path in FILES if path.is_file() and path != Path(__file__)}
    lines = [f"{path.relative_to(ROOT)}, {line}" for path, text in texts.items() for line in found(text)]
    assert lines == [], "\n".join(lines)
