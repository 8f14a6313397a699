"""What the cases of the broken rules change in the code stands there: a case that changes nothing would show nothing."""

from __future__ import annotations

import pytest
from tests.explorer.breaks import Break, fits
from tests.faults import broken_cases
from tests.faults.broken_cases import Case
from tests.faults.broken_rules import NO_TORCH

CASES = [Case("without torch", broken_cases.undisturbed, (NO_TORCH,))] + [
    one for one in vars(broken_cases).values() if isinstance(one, Case) and one.changes
]


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
def test_what_a_case_changes_stands_in_the_code_once(case: Case) -> None:
    fits(Break(case.name, case.changes))
