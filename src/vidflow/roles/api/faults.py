"""The faults of a request, reported together: a client corrects all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from litestar.plugins.problem_details import ProblemDetailsException

from vidflow.contract import FieldProblem
from vidflow.domain.redaction import redact
from vidflow.roles.api.problems import problem

MAX_FAULTS: Final = 100
"""The largest number of faults in one response. A request may have tens of thousands."""
_MAX_FAULTS_IN_DETAIL: Final = 10
_MAX_FIELD_CHARACTERS: Final = 200
_MAX_MESSAGE_CHARACTERS: Final = 1000


def fault(field: str, message: str) -> FieldProblem:
    """Return a fault of a field, with secrets masked and what the client sent shortened."""
    return FieldProblem(
        _shorten(redact(field), _MAX_FIELD_CHARACTERS), _shorten(redact(message), _MAX_MESSAGE_CHARACTERS)
    )


def faults_problem(status: int, code: str, faults: Sequence[FieldProblem]) -> ProblemDetailsException:
    """Return the problem that lists these faults. `faults`: at least one."""
    shown = faults[:MAX_FAULTS]
    sentences = [f"{one.field}: {one.message.removesuffix('.')}" for one in shown[:_MAX_FAULTS_IN_DETAIL]]
    if len(faults) > len(sentences):
        sentences.append(f"and {len(faults) - len(sentences)} more")
    return problem(status, code, "; ".join(sentences) + ".", errors=list(shown))


def list_names(names: Iterable[str]) -> str:
    """Return names for a sentence, or "none"."""
    return ", ".join(names) or "none"


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
