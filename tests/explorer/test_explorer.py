"""Invariants 3 to 8 and liveness in every state of small worlds, and that somebody notices where a rule is broken."""

from __future__ import annotations

import pytest
from tests.conftest import LENT
from tests.explorer.breaks import Break, catch, fits
from tests.explorer.rules import RULES
from tests.explorer.search import explore
from tests.explorer.state import World
from tests.explorer.statements import QUICK as QUICK_STATEMENTS
from tests.explorer.statements import STATEMENTS
from tests.explorer.traces import lines
from tests.explorer.worlds import MIDDLE, QUICK


def name(one: World | Break) -> str:
    return one[0]


def holds(world: World) -> None:
    seen = explore(world)
    assert seen.failure is None, "\n".join(lines(seen.failure))
    assert seen.whole


@pytest.mark.timeout(600)
@pytest.mark.parametrize("world", QUICK, ids=name)
def test_all_invariants_hold_in_every_state_of_a_small_world(world: World) -> None:
    holds(world)


@pytest.mark.long
@pytest.mark.whole
@pytest.mark.timeout(900)
@pytest.mark.parametrize("world", MIDDLE, ids=name)
def test_all_invariants_hold_in_every_state_of_a_larger_world(world: World) -> None:
    holds(world)


@pytest.mark.parametrize("one", [*RULES, *STATEMENTS], ids=name)
def test_each_break_still_fits_the_code(one: Break) -> None:
    fits(one)


@pytest.mark.long
@pytest.mark.whole
@pytest.mark.timeout(900)
@pytest.mark.parametrize("one", RULES, ids=name)
def test_each_rule_of_the_domain_is_noticed_when_it_is_broken(one: Break) -> None:
    assert catch(one) is not None, one.rule


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("one", QUICK_STATEMENTS, ids=name)
def test_each_rule_of_a_statement_is_noticed_when_it_is_broken(one: Break, postgres_url: str) -> None:
    assert catch(one, {LENT: postgres_url}) is not None, one.rule
