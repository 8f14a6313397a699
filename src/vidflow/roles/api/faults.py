"""The faults of a request, reported together: a client corrects all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

from litestar.plugins.problem_details import ProblemDetailsException

from vidflow.contract import FieldProblem
from vidflow.domain.redaction import redact
from vidflow.roles.api.problems import problem

MAX_FAULTS: Final = 100
"""The largest number of faults in one response. A request may have tens of thousands."""
_MAX_FAULTS_IN_DETAIL: Final = 10
_MAX_FIELD_CHARACTERS: Final = 200
_MAX_MESSAGE_CHARACTERS: Final = 1000
_MAX_MASKED_CHARACTERS: Final = 8000
"""Far more than are shown, so that no secret among those is recognized only by what is cut off."""


def fault(field: str, message: str, code: str | None = None) -> FieldProblem:
    """Return a fault of a field, with secrets masked and what the client sent shortened.

    `code`: the code if it is more specific than the problem's. The message then names the field itself.
    """
    return FieldProblem(_shorten(field, _MAX_FIELD_CHARACTERS), _shorten(message, _MAX_MESSAGE_CHARACTERS), code)


def faults_problem(
    status: int, code: str, faults: Sequence[FieldProblem], models: Sequence[str] = ()
) -> ProblemDetailsException:
    """Return the problem that lists these faults. Its code is `code`, or that of all faults if they have one.

    `faults`: at least one. `models`: the registered models, if an unknown one is named.
    """
    shown = faults[:MAX_FAULTS]
    sentences = [one.message if one.code else f"{one.field}: {one.message}" for one in shown[:_MAX_FAULTS_IN_DETAIL]]
    if len(faults) > len(sentences):
        sentences.append(f"And {len(faults) - len(sentences)} more.")
    codes = {one.code for one in faults}
    members = {"models": list(models)} if models else {}
    return problem(
        status, (len(codes) == 1 and codes.pop()) or code, " ".join(sentences), errors=list(shown), **members
    )


class Expected(NamedTuple):
    """What a field or parameter takes: its type, whether it must be given, and its allowed values in words."""

    annotation: Any
    is_required: bool
    allowed: str


def describe_enum(types: Iterable[Any]) -> str:
    """Return the values of the enumeration among the types, or an empty text."""
    return ", ".join(
        str(member.value) for kind in types if isinstance(kind, type) and issubclass(kind, Enum) for member in kind
    )


def list_names(names: Iterable[str]) -> str:
    """Return names for a sentence, or "none"."""
    return ", ".join(names) or "none"


def _shorten(text: str, length: int) -> str:
    """Return the beginning of the text with secrets masked. Its rest is cut off first, because it may be large."""
    masked = redact(text[:_MAX_MASKED_CHARACTERS])
    return masked if len(masked) <= length else f"{masked[: length - 1]}…"
