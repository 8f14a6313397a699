"""Explore the worlds or run the mutations, and print a table. A failure is printed with its shortest trace.

python -m tests.explorer quick | worlds | full | breaks [WORD] | world NAME
"""
# ruff: noqa: T201 - it prints a table

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

import msgspec
from tests.explorer.domain_mutations import DOMAIN_MUTATIONS
from tests.explorer.mutations import run_mutation
from tests.explorer.search import explore
from tests.explorer.state import WorldConfig
from tests.explorer.statement_mutations import STATEMENT_MUTATIONS
from tests.explorer.traces import format_trace
from tests.explorer.worlds import FULL, MIDDLE, QUICK, WORLDS

USAGE = "usage: python -m tests.explorer quick | worlds | full | breaks [WORD] | world NAME"


def main(arguments: list[str]) -> int:
    """Return the exit code: 0 if every world holds, or if every mutation is caught."""
    match arguments:
        case ["quick"]:
            return explore_worlds(QUICK)
        case ["worlds"]:
            return explore_worlds((*QUICK, *MIDDLE))
        case ["full"]:
            return explore_worlds((*QUICK, *MIDDLE, *FULL))
        case ["breaks", *words]:
            return run_mutations(" ".join(words))
        case ["world", name] if name in WORLDS:
            return explore_worlds([WORLDS[name]])
        case ["world", name, "--json"]:
            failure = explore(WORLDS[name]).failure
            print(msgspec.json.encode((failure.text, len(failure.trace) - 1) if failure else None).decode())
            return 1 if failure else 0
        case _:
            print(USAGE, *(f"  {name}" for name in WORLDS), sep="\n")
            return 2


def explore_worlds(worlds: Iterable[WorldConfig]) -> int:
    """Explore each world and print one line for it. Return the exit code."""
    failures, started_s = 0, time.monotonic()
    print(f"{'world':46} {'states':>9} {'transitions':>11} {'depth':>5} {'s':>6}  verdict")
    for world in worlds:
        result = explore(world)
        verdict = result.failure.text if result.failure else ("holds" if result.complete else "INCOMPLETE, no failure")
        print(
            f"{world.name:46} {result.states:9} {result.transitions:11} {result.depth:5} {result.seconds:6.1f}  {verdict}",
            flush=True,
        )
        if result.failure:
            print(*format_trace(result.failure), sep="\n", flush=True)
        failures += not result.complete or result.failure is not None
    print(f"worlds failed: {failures}, {time.monotonic() - started_s:.0f} s")
    return 1 if failures else 0


def run_mutations(word: str) -> int:
    """Run each mutation whose rule contains the word and print what caught it. Return the exit code."""
    mutations = [mutation for mutation in (*DOMAIN_MUTATIONS, *STATEMENT_MUTATIONS) if word in mutation.rule]
    caught = explored = 0
    print(f"{'rule removed':62} {'steps':>5}  what fails (where)")
    for mutation in mutations:
        found = run_mutation(mutation)
        caught += found is not None
        explored += found is not None and found.steps is not None
        steps = "" if found is None or found.steps is None else str(found.steps)
        text = "NOTHING FAILS" if found is None else f"{found.failure} ({found.caught_by})"
        print(f"{mutation.rule:62} {steps:>5}  {text}", flush=True)
    print(f"{caught} of {len(mutations)} mutations are caught, {explored} of them by the explorer")
    return 0 if caught == len(mutations) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
