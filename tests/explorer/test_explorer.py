"""Invariants 3 to 8 and liveness in every state of small worlds, and that somebody notices where a rule is broken."""

from __future__ import annotations

import pytest
from tests.conftest import POSTGRES_URL_VARIABLE
from tests.explorer.domain_mutations import DOMAIN_MUTATIONS
from tests.explorer.mutations import Mutation, check_applies, run_mutation
from tests.explorer.search import explore
from tests.explorer.state import WorldConfig
from tests.explorer.statement_mutations import QUICK_STATEMENT_MUTATIONS as QUICK_STATEMENTS
from tests.explorer.statement_mutations import STATEMENT_MUTATIONS
from tests.explorer.traces import format_trace
from tests.explorer.worlds import MIDDLE, QUICK


def name(one: WorldConfig | Mutation) -> str:
    return one[0]


def check_world(world: WorldConfig) -> None:
    seen = explore(world)
    assert seen.failure is None, "\n".join(format_trace(seen.failure))
    assert seen.complete


@pytest.mark.timeout(600)
@pytest.mark.parametrize("world", QUICK, ids=name)
def test_all_invariants_hold_in_every_state_of_a_small_world(world: WorldConfig) -> None:
    check_world(world)


@pytest.mark.long
@pytest.mark.whole
@pytest.mark.timeout(900)
@pytest.mark.parametrize("world", MIDDLE, ids=name)
def test_all_invariants_hold_in_every_state_of_a_larger_world(world: WorldConfig) -> None:
    check_world(world)


@pytest.mark.parametrize("one", [*DOMAIN_MUTATIONS, *STATEMENT_MUTATIONS], ids=name)
def test_each_break_still_fits_the_code(one: Mutation) -> None:
    check_applies(one)


@pytest.mark.long
@pytest.mark.whole
@pytest.mark.timeout(900)
@pytest.mark.parametrize("one", DOMAIN_MUTATIONS, ids=name)
def test_each_rule_of_the_domain_is_noticed_when_it_is_broken(one: Mutation) -> None:
    assert run_mutation(one) is not None, one.rule


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("one", QUICK_STATEMENTS, ids=name)
def test_each_rule_of_a_statement_is_noticed_when_it_is_broken(one: Mutation, postgres_url: str) -> None:
    assert run_mutation(one, {POSTGRES_URL_VARIABLE: postgres_url}) is not None, one.rule
