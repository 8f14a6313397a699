"""Escaping: hostile text cannot drive a terminal, hide itself or forge a line."""

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
def test_escaped_text_is_one_line_of_visible_characters(text: str) -> None:
    assert all(map(is_visible, escape_unprintable(text)))


def test_every_unicode_character_is_printable_after_escaping() -> None:
    assert escape_unprintable("".join(map(chr, range(sys.maxunicode + 1)))).isprintable()


def is_visible(character: str) -> bool:
    return character == " " or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Zs"}


@pytest.mark.parametrize(
    ("text", "escaped"),
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
def test_escaped_forms(text: str, escaped: str) -> None:
    assert escape_unprintable(text) == escaped


def test_each_line_is_escaped_and_indented() -> None:
    assert escape_unprintable_lines("one\ntwo\x1b\r", "  | ") == "  | one\n  | two\\x1b\\r"


@given(st.recursive(any_text, lambda inner: st.lists(inner) | st.dictionaries(any_text, inner), max_leaves=5))
def test_escaped_json_has_the_same_values_and_only_visible_characters(value: object) -> None:
    text = escape_json(json.dumps(value, ensure_ascii=False))
    assert all(map(is_visible, text))
    assert json.loads(text) == json.loads(json.dumps(value))
