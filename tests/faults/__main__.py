"""Run the fault matrix, the soak or the mutations, and print a table.

The matrix and the soak print their seed. The same seed repeats the same faults in the same order.

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
from tests.integration.api_server import free_port
from tests.rtsp.camera import Camera

HIGHEST_SEED: Final = 10**6


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = arguments.add_subparsers(required=True)
    for name, run in {"matrix": run_matrix, "chaos": run_chaos}.items():
        command = commands.add_parser(name)
        command.add_argument("--seed", type=int, default=random.randrange(HIGHEST_SEED))  # noqa: S311
        command.add_argument(
            "--keep-log", type=Path, help="write the log lines of all roles and the stack to this file"
        )
        command.set_defaults(run=run)
        if name == "matrix":
            command.add_argument("--only", default="", help="cases to run, such as 'kill runner, kafka'")
            command.add_argument("--freeze-s", type=float, default=matrix.FREEZE_S)
        else:
            command.add_argument("--minutes", type=float, default=30.0)
    command = commands.add_parser("breaks")
    command.add_argument("--only", default="", help="mutations whose rule contains one of these words: 'fence, cursor'")
    command.add_argument("--sound", action="store_true", help="run the same cases without a mutation: all must hold")
    command.set_defaults(run=run_mutations, seed=None)
    options = arguments.parse_args()
    seed = "" if options.seed is None else f", seed {options.seed}"
    print_line(f"{platform.platform()}, {os.cpu_count()} cores{seed}")
    with tempfile.TemporaryDirectory(prefix="vidflow-faults-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # servers that run as another user must reach their own folders in it
        options.run(options, Path(folder))


def run_matrix(options: argparse.Namespace, folder: Path) -> None:
    cases = matrix.cases(options.only)
    works = [workloads.slow(folder, 240), workloads.sampled(folder, 60), workloads.shared(folder, 240)]
    with ExitStack() as exit_stack:
        if any(case.source is matrix.Source.CAMERA for case in cases):
            works.append(workloads.watched(exit_stack.enter_context(Camera(free_port(), workloads.CAMERA_RATE))))
        system = exit_stack.enter_context(run_system(folder / "data", works, log=options.keep_log, inference="shared"))
        print_line(matrix.HEADER)
        for row in matrix.run_cases(system, cases, works, options.seed, options.freeze_s):
            print_line(matrix.line(row))


def run_chaos(options: argparse.Namespace, folder: Path) -> None:
    works = [workloads.slow(folder, 60), workloads.slow(folder, 200), workloads.sampled(folder, 100)]
    works += [workloads.bottles(SHARED)] if SHARED.is_dir() else []
    with run_system(folder / "data", works, log=options.keep_log) as system:
        print_line(chaos.table(chaos.soak(system, works, options.minutes, options.seed)))


def run_mutations(options: argparse.Namespace, folder: Path) -> None:
    selected = mutation_testing.select_cases(options.only)
    selected = mutation_testing.without_mutations(selected) if options.sound else selected
    caught: set[str] = set()
    with ExitStack() as exit_stack:
        tester = mutation_testing.MutationTester(folder, exit_stack)
        print_line(f"{'rule removed':62} {'fault':44} {'s':>5}  what a check reports")
        for tested, case, failure, seconds in mutation_testing.run_mutation_cases(tester, selected):
            caught |= {tested.mutation.rule} if failure is not None else set()
            print_line(mutation_testing.line(tested, case, failure, seconds))
    print_line(f"{len(caught)} of {len({tested.mutation.rule for tested in selected})} are caught")


def print_line(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
