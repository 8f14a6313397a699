"""The error codes: what each one means and what to do. The codes come from the source, the sentences from error_codes.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from docs.generator.error_scan import find_codes
from docs.generator.markdown import GENERATED, code, table

TEXTS: Final = Path(__file__).with_suffix(".toml")
_STATUS_OF_ERRORS: Final = {
    "parameter_invalid": 422,
    "scenario_unknown": 404,
    "results_removed": 410,
    "database_busy": 503,
}
"""Errors that are raised without a status and mapped by their class."""
_INTRODUCTION: Final = """# Error codes

A code is for programs and does not change. The sentence with it is for people: it names what is at fault and what to do. A client
finds the code of a refused request in the problem's `code`, that of a failed scenario in `error.code` of `GET /scenario/UUID`, and
the reason of each earlier loss in `GET /scenario/UUID/history`. Commands print the sentence, and their exit code says whose fault
the error is: [](cli.md).

## Refused requests

"""
_SCENARIOS: Final = """
## Scenarios

If the api notices such a fault before it creates the scenario, it refuses the request with the same code (422).

"""
_PROCESSES: Final = """
## Processes and commands

"""


def build_page() -> str:
    """Return the page of all codes. Raises ValueError if a code has no explanation, or an explanation no code."""
    codes, sections = find_codes(), _read_texts()
    explained = {name for section in sections.values() for name in section}
    if codes.keys() != explained:
        raise ValueError(
            f"{TEXTS.name} lacks {sorted(codes.keys() - explained)} and explains unknown {sorted(explained - codes.keys())}"
        )
    requests = [(code(name), _statuses(name, codes[name]), *texts) for name, texts in sections["requests"].items()]
    head = ("code", "meaning", "what to do")
    return "".join([
        GENERATED,
        _INTRODUCTION,
        table(("code", "status", "meaning", "what to do"), requests),
        _SCENARIOS,
        table(head, [(code(name), *texts) for name, texts in sections["scenarios"].items()]),
        _PROCESSES,
        table(head, [(code(name), *texts) for name, texts in sections["processes"].items()]),
    ])  # fmt: skip


def _read_texts() -> Mapping[str, Mapping[str, tuple[str, str]]]:
    """Return the meaning and the advice of each code, by section."""
    return tomllib.loads(TEXTS.read_text())


def _statuses(name: str, found: set[int]) -> str:
    statuses = {*found, _STATUS_OF_ERRORS.get(name)} - {None}
    return ", ".join(str(status) for status in sorted(filter(None, statuses)))
