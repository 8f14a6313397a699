"""docs/explorer.md and docs/faults.md list the mutations and worlds that exist."""

from __future__ import annotations

import re

from tests.docs.pages import ROOT
from tests.explorer.domain_mutations import DOMAIN_MUTATIONS
from tests.explorer.statement_mutations import STATEMENT_MUTATIONS
from tests.explorer.worlds import WORLDS

PAGE = (ROOT / "docs" / "explorer.md").read_text()
RULES = [mutation.rule for mutation in (*DOMAIN_MUTATIONS, *STATEMENT_MUTATIONS)]


def section(title: str) -> str:
    return PAGE.partition(f"### {title}\n")[2].partition("\n#")[0]


def test_every_mutation_is_listed_once_with_what_catches_it() -> None:
    rows = re.findall(r"^\| (.+?) \| \d", section("Caught by the explorer"), re.MULTILINE)
    tests = [
        rule for title in ("unit tests only", "integration and unit tests") for rule in listed(f"Caught by {title}")
    ]
    assert sorted([*rows, *tests]) == sorted(RULES)
    assert f"{len(RULES)} mutations, all caught: {len(rows)} by the explorer, {len(tests)} by the test" in PAGE


def listed(title: str) -> list[str]:
    return re.findall(r"^- (.+)$", section(title), re.MULTILINE)


def test_the_worlds_in_the_tables_exist() -> None:
    caught_in = re.findall(r"^\| .+ \| \d+ \| (.+?) \|$", section("Caught by the explorer"), re.MULTILINE)
    assert caught_in
    assert set(caught_in) <= WORLDS.keys()


def test_the_rules_in_the_table_of_the_fault_tests_exist() -> None:
    table = (ROOT / "docs" / "faults.md").read_text().partition("| rule removed |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (.+?) \|", table, re.MULTILINE)[1:]
    rules = {rule for row in rows for rule in row.split("; ")}
    assert rules <= set(RULES), rules - set(RULES)
