"""Parsing and formatting of frame rates, exact in both directions.

Requests, VIDEO_FPS, `vidflow run --fps`, table rows and messages all use it.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Final

from vidflow.domain.errors import ParameterError

ALL_FRAMES: Final = "all"
FASTEST_RATE: Final = Fraction(1_000)
"""Frames per second. A higher rate is taken for a mistake."""
MAX_FRAME_RATE_CHARACTERS: Final = 64
"""Enough for a fraction of two numbers with 30 digits each."""
MAX_DENOMINATOR: Final = 10**30
"""Bounds the numbers that are stored and calculated with. The shortest decimal form of a double needs 17 digits."""
FRAME_RATE_TEXT: Final = r"[0-9]+/[0-9]+|[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
"""The pattern of a rate as text, apart from ALL_FRAMES."""
FRAME_RATE_FORMS: Final = "a number above 0 and up to 1000, a fraction such as 30000/1001, or all"
"""The accepted forms, for error messages."""

_DECIMAL_PLACES: Final = 12
"""Rates with at most this many decimal places are stored as decimal numbers, the only form that older versions read."""
_SHOWN_CHARACTERS: Final = 80
_FRAME_RATE_PATTERN: Final = re.compile(FRAME_RATE_TEXT, re.ASCII)


def parse_frame_rate(fps: str | float | Fraction | None) -> Fraction | None:
    """Return the exact rate in frames per second, or None for all frames (`fps` is None or "all").

    A float stands for its shortest decimal form: 29.97 is 2997/100. Raises ParameterError unless the rate is above 0 and at
    most FASTEST_RATE.
    """
    if fps is None or fps == ALL_FRAMES:
        return None
    rate = _to_fraction(fps)
    if rate is None or not 0 < rate <= FASTEST_RATE or rate.denominator > MAX_DENOMINATOR:
        raise ParameterError(f"Invalid frame rate {_describe_value(fps)}. Use {FRAME_RATE_FORMS}.")
    return rate


def format_frame_rate(rate: Fraction | None) -> str:
    """Return the exact rate as it is stored and sent: "all", a decimal number, or a fraction in lowest terms."""
    if rate is None:
        return ALL_FRAMES
    if 10**_DECIMAL_PLACES % rate.denominator:
        return f"{rate.numerator}/{rate.denominator}"
    whole, fraction = divmod(rate.numerator * (10**_DECIMAL_PLACES // rate.denominator), 10**_DECIMAL_PLACES)
    return f"{whole}.{fraction:0{_DECIMAL_PLACES}d}".rstrip("0").rstrip(".")


def frame_rate_to_json(rate: Fraction | None) -> int | float | str:
    """Return the rate for JSON: a number if `parse_frame_rate` reads it back exactly, otherwise the text of `format_frame_rate`."""
    if rate is None:
        return ALL_FRAMES
    if rate.denominator == 1:
        return rate.numerator
    number = float(rate)
    return number if Fraction(repr(number)) == rate else format_frame_rate(rate)


def _to_fraction(fps: str | float | Fraction) -> Fraction | None:
    if isinstance(fps, bool):
        return None
    if isinstance(fps, str):
        return _parse_text(fps)
    if isinstance(fps, float):
        return Fraction(repr(fps)) if math.isfinite(fps) else None
    return Fraction(fps)


def _parse_text(text: str) -> Fraction | None:
    if len(text) > MAX_FRAME_RATE_CHARACTERS or not _FRAME_RATE_PATTERN.fullmatch(text):
        return None
    try:
        return Fraction(text)
    except ZeroDivisionError:
        return None


def _describe_value(fps: str | float | Fraction) -> str:
    """Return the value for an error message, shortened if it is long."""
    if isinstance(fps, int) and abs(fps) > FASTEST_RATE**5:
        return "(too many digits)"
    text = repr(fps)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
