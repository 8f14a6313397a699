"""Which entity tags an If-None-Match names, by the grammar of RFC 9110."""

from __future__ import annotations

import pytest

from vidflow.roles.api.etags import names_tag


@pytest.mark.parametrize(
    "value",
    [
        '"a"', 'W/"a"', '"b", "a"', '"b","a"', 'W/"b" , W/"a"', '"a", "b"', "*",
        " * ", '\t"a"\t', ',, "a" ,,', ', "b",,\t"a"', '"x,y", "a"',
        '"", "a"', '"\xfc", "a"', '"b" ,"a",',
    ],
)  # fmt: skip
def test_the_tag_is_named(value: str) -> None:
    assert names_tag(value, '"a"')


@pytest.mark.parametrize(
    "value",
    [
        "", "a", '"b"', '"A"', 'w/"a"', 'W/ "a"', '"b, "a"', "**", '*, "a"', '"a", *', '"a" "b"', '"a"b', '"b" W/"a"', '"a', 'a"', "'a'",
        '"b,"a"', '"x\x00y", "a"', '"x y", "a"', '"\\"a\\""', "W/", ",", '"a"; q=1',
    ],
)  # fmt: skip
def test_another_or_a_malformed_value_names_nothing(value: str) -> None:
    assert not names_tag(value, '"a"')


def test_a_comma_in_a_tag_does_not_end_it() -> None:
    assert names_tag('"b,a"', '"b,a"')
    assert not names_tag('"b,a"', '"a"')
    assert not names_tag('"a"', '"b,a"')


@pytest.mark.parametrize(
    "value",
    ['"b",' * 8000, "," * 32_000, " " * 32_000 + "x", '"' * 32_000, "W/" * 16_000, '"b" ' * 8000, ' ,"b"' * 6000 + "x"],
)
def test_a_value_as_long_as_a_head_names_nothing_else(value: str) -> None:
    """Forms that invite backtracking, which would not end within the test's time limit."""
    assert not names_tag(value, '"a"')
