"""`python -m tests.explorer quick|full|worlds|breaks|world NAME`: explores, and prints a table; for what fails its shortest way."""
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
    """The exit code: 0 where all holds (and all breaks are caught)."""
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
    """Explores each world and prints a line of it."""
    failed, began_s = 0, time.monotonic()
    print(f"{'world':46} {'states':>9} {'transitions':>11} {'depth':>5} {'s':>6}  verdict")
    for world in worlds:
        seen = explore(world)
        verdict = seen.failure.text if seen.failure else ("holds" if seen.complete else "nothing found, NOT WHOLE")
        print(
            f"{world.name:46} {seen.states:9} {seen.transitions:11} {seen.depth:5} {seen.seconds:6.1f}  {verdict}",
            flush=True,
        )
        if seen.failure:
            print(*format_trace(seen.failure), sep="\n", flush=True)
        failed += not seen.complete or seen.failure is not None
    print(f"{failed} of the worlds failed, {time.monotonic() - began_s:.0f} s")
    return 1 if failed else 0


def run_mutations(word: str) -> int:
    """Makes each break whose rule has the word in it, and prints who noticed."""
    chosen = [one for one in (*DOMAIN_MUTATIONS, *STATEMENT_MUTATIONS) if word in one.rule]
    caught = explored = 0
    print(f"{'rule that is broken':62} {'steps':>5}  what fails (where)")
    for one in chosen:
        found = run_mutation(one)
        caught += found is not None
        explored += found is not None and found.steps is not None
        steps = "" if found is None or found.steps is None else str(found.steps)
        text = "NOTHING FAILS" if found is None else f"{found.failure} ({found.caught_by})"
        print(f"{one.rule:62} {steps:>5}  {text}", flush=True)
    print(f"{caught} of {len(chosen)} breaks are caught, {explored} of them by the explorer")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
