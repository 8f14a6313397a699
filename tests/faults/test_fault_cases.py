"""What the cases of the broken rules change in the code stands there: a case that changes nothing would show nothing."""

from __future__ import annotations

import pytest
from tests.explorer.mutations import Mutation, check_applies
from tests.faults import fault_cases
from tests.faults.fault_cases import FaultCase
from tests.faults.mutation_testing import NO_TORCH

CASES = [FaultCase("without torch", fault_cases.run_without_faults, (NO_TORCH,))] + [
    one for one in vars(fault_cases).values() if isinstance(one, FaultCase) and one.changes
]


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
def test_what_a_case_changes_stands_in_the_code_once(case: FaultCase) -> None:
    check_applies(Mutation(case.name, case.changes))
