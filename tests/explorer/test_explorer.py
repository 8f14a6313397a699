"""Invariants 3 to 8 and liveness hold in every state of small worlds, and every mutation of a rule is caught."""

from __future__ import annotations

import pytest
from tests.conftest import POSTGRES_URL_VARIABLE
from tests.explorer.domain_mutations import DOMAIN_MUTATIONS
from tests.explorer.mutations import Mutation, check_applies, run_mutation
from tests.explorer.search import explore
from tests.explorer.state import WorldConfig
from tests.explorer.statement_mutations import QUICK_STATEMENT_MUTATIONS, STATEMENT_MUTATIONS
from tests.explorer.traces import format_trace
from tests.explorer.worlds import MIDDLE, QUICK, SLOWEST_QUICK


def name(parameter: WorldConfig | Mutation) -> str:
    return parameter[0]


def check_world(world: WorldConfig) -> None:
    result = explore(world)
    assert result.failure is None, "\n".join(format_trace(result.failure))
    assert result.complete


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "world",
    [pytest.param(world, marks=[pytest.mark.long] if name(world) in SLOWEST_QUICK else []) for world in QUICK],
    ids=name,
)
def test_all_invariants_hold_in_every_state_of_a_small_world(world: WorldConfig) -> None:
    check_world(world)


@pytest.mark.long
@pytest.mark.whole
@pytest.mark.timeout(900)
@pytest.mark.parametrize("world", MIDDLE, ids=name)
def test_all_invariants_hold_in_every_state_of_a_larger_world(world: WorldConfig) -> None:
    check_world(world)


@pytest.mark.parametrize("mutation", [*DOMAIN_MUTATIONS, *STATEMENT_MUTATIONS], ids=name)
def test_each_mutation_still_fits_the_code(mutation: Mutation) -> None:
    check_applies(mutation)


@pytest.mark.long
@pytest.mark.whole
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutation", DOMAIN_MUTATIONS, ids=name)
def test_each_mutation_of_the_domain_is_caught(mutation: Mutation) -> None:
    assert run_mutation(mutation) is not None, mutation.rule


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutation", QUICK_STATEMENT_MUTATIONS, ids=name)
def test_each_mutation_of_a_statement_is_caught(mutation: Mutation, postgres_url: str) -> None:
    assert run_mutation(mutation, {POSTGRES_URL_VARIABLE: postgres_url}) is not None, mutation.rule
