"""docs/reference/warnings.md explains every code and field of warnings, and no others."""

from __future__ import annotations

import re
from pathlib import Path

from vidflow.contract import ScenarioWarning
from vidflow.domain.warnings import WarningCode

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "warnings.md"
FIRST_CELL = re.compile(r"^\| ((?:`\w+`(?:, )?)+) \|", re.MULTILINE)


def test_the_page_lists_each_field_and_each_code_once_in_order() -> None:
    names = [name for cell in FIRST_CELL.findall(PAGE.read_text()) for name in re.findall(r"\w+", cell)]
    assert names == [*ScenarioWarning.__struct_fields__, *WarningCode]
