"""The error that a check of the fault suite raises if an invariant does not hold."""

from __future__ import annotations


class InvariantViolation(AssertionError):
    """An invariant does not hold."""


def violation(number: int, text: str) -> InvariantViolation:
    return InvariantViolation(f"invariant {number}: {text}")
