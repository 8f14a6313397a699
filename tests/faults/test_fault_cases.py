"""The code changes of the fault cases fit the code. A change that does not apply would test nothing."""

from __future__ import annotations

import pytest
from tests.explorer.mutations import Mutation, check_applies
from tests.faults import fault_cases
from tests.faults.fault_cases import FaultCase
from tests.faults.mutation_testing import NO_TORCH

CASES = [FaultCase("without torch", fault_cases.run_without_faults, (NO_TORCH,))] + [
    value for value in vars(fault_cases).values() if isinstance(value, FaultCase) and value.changes
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_changes_of_each_case_fit_the_code(case: FaultCase) -> None:
    check_applies(Mutation(case.name, case.changes))
