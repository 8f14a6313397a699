"""No character of hostile text drives a terminal, hides, or forges a line."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidflow.domain.escaping import escape_json, escape_unprintable, escape_unprintable_lines

any_text = st.text(st.characters(exclude_categories=()))


@given(any_text)
def test_printable_text_is_one_line_of_visible_characters(text: str) -> None:
    assert all(is_visible(one) for one in escape_unprintable(text))


def test_no_character_that_unicode_has_slips_through() -> None:
    assert escape_unprintable("".join(map(chr, range(sys.maxunicode + 1)))).isprintable()


def is_visible(character: str) -> bool:
    return character == " " or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Zs"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, größer, 人", "plain text, größer, 人"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\x1b[31mred\x9b0m", r"\x1b[31mred\x9b0m"),
        ("a\u202etxt.exe\u2066", r"a\u202etxt.exe\u2066"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("filler\u3164\u034f\ufe0f", r"filler\u3164\u034f\ufe0f"),
        ("half\ud800", r"half\ud800"),
        ("tag\U000e0041", r"tag\U000e0041"),
    ],
)
def test_what_is_shown_of_a_text(text: str, shown: str) -> None:
    assert escape_unprintable(text) == shown


def test_each_line_of_a_text_is_a_continuation() -> None:
    assert escape_unprintable_lines("one\ntwo\x1b\r", "  | ") == "  | one\n  | two\\x1b\\r"


@given(st.recursive(any_text, lambda inner: st.lists(inner) | st.dictionaries(any_text, inner), max_leaves=5))
def test_escaped_json_has_the_same_values_and_only_visible_characters(value: object) -> None:
    text = escape_json(json.dumps(value, ensure_ascii=False))
    assert all(map(is_visible, text))
    assert json.loads(text) == json.loads(json.dumps(value))
