"""Escapes for text that goes to a terminal or into a line of a log: no character of it can move the cursor, hide or forge a line."""

from __future__ import annotations

import re
from typing import Final

_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""What `str.isprintable` takes for printable though it leaves no mark: fillers, joiners, variation selectors."""


def escape_unprintable(text: str) -> str:
    r"""Return the text in one line, each unprintable or invisible character as an escape: `\n`, `\x1b`, `\u202e`."""
    if _is_printable(text):
        return text
    return "".join(one if _is_printable(one) else _escape_character(one) for one in text)


def escape_unprintable_lines(text: str, indent: str = "") -> str:
    """Return the lines of the text, each escaped and behind `indent`: a continuation that no line of its own can be taken for."""
    return "\n".join(indent + escape_unprintable(line) for line in text.split("\n"))


def escape_json(text: str) -> str:
    r"""Return a JSON text with each unprintable character as `\uXXXX`: the same values, safe for a terminal.

    In valid JSON such characters stand in strings only; line breaks between tokens become spaces.
    """
    if _is_printable(text):
        return text
    return "".join(one if _is_printable(one) else _escape_json_character(one) for one in text)


def _is_printable(text: str) -> bool:
    return text.isprintable() and (text.isascii() or not _INVISIBLE.search(text))


def _escape_character(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode()


def _escape_json_character(character: str) -> str:
    if character in "\n\r\t":
        return " "
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place]:02x}{units[place + 1]:02x}" for place in range(0, len(units), 2))
