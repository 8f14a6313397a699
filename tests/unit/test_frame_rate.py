"""Frame rates: accepted forms, exact values and lossless formatting."""

from __future__ import annotations

import math
from fractions import Fraction

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vidflow.domain.errors import ParameterError
from vidflow.domain.frame_rate import (
    FASTEST_RATE,
    MAX_DENOMINATOR,
    MAX_FRAME_RATE_CHARACTERS,
    format_frame_rate,
    frame_rate_to_json,
    parse_frame_rate,
)

NTSC = Fraction(30_000, 1001)
RATES = st.fractions(Fraction(1, 10**9), FASTEST_RATE, max_denominator=10**20)


@pytest.mark.parametrize(
    ("written", "exact"),
    [
        (5, Fraction(5)), (0.5, Fraction(1, 2)), (29.97, Fraction(2997, 100)), ("29.97", Fraction(2997, 100)), ("0.1", Fraction(1, 10)),
        (29.97002997002997, Fraction(2997002997002997, 10**14)), ("30000/1001", NTSC), ("60/2", Fraction(30)), (".5", Fraction(1, 2)),
        ("1/86400", Fraction(1, 86400)), (1000, Fraction(1000)), ("1000.0", Fraction(1000)), (NTSC, NTSC), ("all", None), (None, None),
    ],
)  # fmt: skip
def test_a_frame_rate_is_parsed_exactly(written: str | float | Fraction | None, exact: Fraction | None) -> None:
    assert parse_frame_rate(written) == exact


@pytest.mark.parametrize(
    "nonsense",
    [
        0, -1, 1001, 0.0, -0.0, 5e-324, 1e-300, float("nan"), float("inf"), True, False, 10**400, "", "5 fps", "1e3", "1e-400", "-2", "+2",
        "0", "0.000", "0/5", "1/0", "0/0", "1/-2", "1.5/2", "1/2/3", "1 / 2", "1/", "/2", "5.", ".", "5\n", " 5", "\u0665", "0x10",
        "1_000", "1,5", "1001", "1000.0001", "3000/2", "9" * 400, "9" * 5000, "1/" + "9" * 31, "ALL", "None", "nan", "inf", "Infinity",
    ],
)  # fmt: skip
def test_an_invalid_frame_rate_is_refused_with_the_accepted_forms(nonsense: str | float) -> None:
    with pytest.raises(
        ParameterError, match=r"^Invalid frame rate .*\. Use a number above 0 and up to 1000"
    ) as refusal:
        parse_frame_rate(nonsense)
    assert len(refusal.value.message) < 250


@given(RATES)
def test_a_rate_survives_storage_and_json_unchanged(rate: Fraction) -> None:
    assume(rate.denominator <= MAX_DENOMINATOR)
    assert parse_frame_rate(format_frame_rate(rate)) == rate
    decoded = msgspec.json.decode(msgspec.json.encode(frame_rate_to_json(rate)), type=float | str)
    assert parse_frame_rate(decoded) == rate


@given(st.floats(1e-13, 1000))
def test_a_json_number_is_returned_as_the_same_number(number: float) -> None:
    rate = parse_frame_rate(number)
    assert rate == Fraction(repr(number))
    assert frame_rate_to_json(rate) == number
    assert len(format_frame_rate(rate)) <= MAX_FRAME_RATE_CHARACTERS


@given(st.integers(1, 10**12), st.integers(1, 10**12))
def test_a_fraction_equals_its_lowest_terms(numerator: int, denominator: int) -> None:
    assume(numerator <= 1000 * denominator)
    common = math.gcd(numerator, denominator)
    text = format_frame_rate(parse_frame_rate(f"{numerator}/{denominator}"))
    assert text == format_frame_rate(parse_frame_rate(f"{numerator // common}/{denominator // common}"))


@given(st.decimals(0, 1000, places=12).filter(bool))
def test_a_decimal_number_stored_by_an_older_version_keeps_its_value(number: object) -> None:
    stored = f"{number:f}"
    text = format_frame_rate(parse_frame_rate(stored))
    assert Fraction(text) == Fraction(stored)
    assert "/" not in text


@given(st.text(max_size=80))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        rate = parse_frame_rate(text)
    except ParameterError:
        return
    assert rate is None or 0 < rate <= FASTEST_RATE
