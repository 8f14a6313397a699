"""docs/reference/history.md explains every reason code, and no others."""

from __future__ import annotations

import re
from pathlib import Path

from vidflow.domain.reason_codes import ReasonCode
from vidflow.domain.scenario import State

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "history.md"
ROW = re.compile(r"^\| `(\w+)` \| (.*?) \| \S.* \|$", re.MULTILINE)


def test_the_page_lists_each_code_once_in_order() -> None:
    assert [code for code, _ in ROW.findall(PAGE.read_text())] == list(ReasonCode)


def test_the_states_on_the_page_exist() -> None:
    for _, states in ROW.findall(PAGE.read_text()):
        assert set(re.findall(r"`(\w+)`", states)) <= set(State)
