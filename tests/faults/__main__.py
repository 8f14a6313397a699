"""The fault matrix, the soak and the deliberate breaks as commands that print a table.

The first two print their seed, which plays the same blows again.

python -m tests.faults matrix [--seed S] [--only "kill runner, kafka"] [--freeze-s 30]
python -m tests.faults chaos  [--seed S] [--minutes N]
python -m tests.faults breaks [--only "fence, cursor"] [--sound]
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.conftest import SHARED
from tests.faults import chaos, matrix, mutation_testing, workloads
from tests.faults.system_under_test import run_system

HIGHEST_SEED: Final = 10**6


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = arguments.add_subparsers(required=True)
    for name, run in {"matrix": run_matrix, "chaos": run_chaos}.items():
        command = commands.add_parser(name)
        command.add_argument("--seed", type=int, default=random.randrange(HIGHEST_SEED))  # noqa: S311
        command.add_argument("--keep-log", type=Path, help="a file for what the roles and the stack said")
        command.set_defaults(run=run)
        if name == "matrix":
            command.add_argument("--only", default="", help="which cases: 'kill runner, kafka'")
            command.add_argument("--freeze-s", type=float, default=matrix.FREEZE_S)
        else:
            command.add_argument("--minutes", type=float, default=30.0)
    command = commands.add_parser("breaks")
    command.add_argument("--only", default="", help="rules that have one of these words: 'fence, cursor'")
    command.add_argument("--sound", action="store_true", help="the same cases with no rule broken: all must hold")
    command.set_defaults(run=run_mutations, seed=None)
    given = arguments.parse_args()
    print_line(
        f"{platform.platform()}, {os.cpu_count()} cores" + ("" if given.seed is None else f", seed {given.seed}")
    )
    with tempfile.TemporaryDirectory(prefix="vidflow-faults-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # a server that runs as another user must find its own folder in it
        given.run(given, Path(folder))


def run_matrix(given: argparse.Namespace, folder: Path) -> None:
    done = [workloads.slow(folder, 240), workloads.sampled(folder, 60)]
    with run_system(folder / "data", done, log=given.keep_log) as now:
        print_line(matrix.HEADER)
        for row in matrix.run_cases(now, matrix.cases(given.only), done, given.seed, given.freeze_s):
            print_line(matrix.line(row))


def run_chaos(given: argparse.Namespace, folder: Path) -> None:
    done = [workloads.slow(folder, 60), workloads.slow(folder, 200), workloads.sampled(folder, 100)]
    done += [workloads.bottles(SHARED)] if SHARED.is_dir() else []
    with run_system(folder / "data", done, log=given.keep_log) as now:
        print_line(chaos.table(chaos.soak(now, done, given.minutes, given.seed)))


def run_mutations(given: argparse.Namespace, folder: Path) -> None:
    these = mutation_testing.select_cases(given.only)
    these = mutation_testing.without_mutations(these) if given.sound else these
    felt: set[str] = set()
    with ExitStack() as end:
        bench = mutation_testing.MutationTester(folder, end)
        print_line(f"{'without the rule':62} {'what befalls':44} {'s':>5}  what a check says")
        for one, case, said, seconds in mutation_testing.run_mutation_cases(bench, these):
            felt |= {one.mutation.rule} if said is not None else set()
            print_line(mutation_testing.line(one, case, said, seconds))
    print_line(f"{len(felt)} of {len({one.mutation.rule for one in these})} are felt")


def print_line(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
