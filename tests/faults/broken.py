"""How a check of the fault suite says that an invariant does not hold."""

from __future__ import annotations


class Broken(AssertionError):
    """An invariant does not hold."""


def broken(number: int, text: str) -> Broken:
    return Broken(f"invariant {number}: {text}")
