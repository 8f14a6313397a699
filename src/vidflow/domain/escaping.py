"""Escaping of untrusted text for terminals and log lines, so that it cannot move the cursor, hide itself or forge a line."""

from __future__ import annotations

import re
from typing import Final

_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Invisible characters that `str.isprintable` accepts: fillers, joiners, variation selectors."""


def escape_unprintable(text: str) -> str:
    r"""Return the text as one line, with each unprintable or invisible character escaped: `\n`, `\x1b`, `\u202e`."""
    if _is_printable(text):
        return text
    return "".join(char if _is_printable(char) else _escape_character(char) for char in text)


def escape_unprintable_lines(text: str, indent: str = "") -> str:
    """Return the lines of the text, escaped and prefixed with `indent`, so that none can pass for a separate entry."""
    return "\n".join(indent + escape_unprintable(line) for line in text.split("\n"))


def escape_json(text: str) -> str:
    r"""Return a JSON text with the same values and each unprintable character escaped as `\uXXXX`, safe for a terminal.

    In valid JSON such characters occur in strings only. Line breaks between tokens become spaces.
    """
    if _is_printable(text):
        return text
    return "".join(char if _is_printable(char) else _escape_json_character(char) for char in text)


def _is_printable(text: str) -> bool:
    return text.isprintable() and (text.isascii() or not _INVISIBLE.search(text))


def _escape_character(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode()


def _escape_json_character(character: str) -> str:
    if character in "\n\r\t":
        return " "
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[index]:02x}{units[index + 1]:02x}" for index in range(0, len(units), 2))
