"""Deliberate breaks: for each rule that carries weight, what the code would be without it, and what then fails.

A break is a change of the product's own text, made in a copy of the package; the explorer and the tests run on the copy. A rule
whose text is not found any more is an error: the break then has to be made again by hand.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

ROOT = Path(__file__).parents[2]


class Mutation(NamedTuple):
    """A rule, the change that takes it away, and who is expected to notice: worlds of the explorer, or tests.

    `changes`: file below src/vidflow, what stands there once, what stands there instead.
    """

    rule: str
    changes: tuple[tuple[str, str, str], ...]
    worlds: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()


class CaughtMutation(NamedTuple):
    """What noticed a break: the explorer in a world, in how many steps; or a test. Empty: nothing did."""

    failure: str
    caught_by: str
    steps: int | None = None


class StaleMutation(Exception):
    """A break does not fit the code any more."""


@contextmanager
def mutated_package(one: Mutation) -> Iterator[Path]:
    """A folder with the package as it is without the rule."""
    check_applies(one)
    with tempfile.TemporaryDirectory(prefix="vidflow-break-") as folder:
        shutil.copytree(ROOT / "src", Path(folder, "src"))  # what is compiled, too: it is not made again for each break
        (Path(folder) / "sql").symlink_to(ROOT / "sql")
        for name, old, new in one.changes:
            path = Path(folder, "src", "vidflow", name)
            path.write_text(path.read_text().replace(old, new))
        yield Path(folder, "src")


def check_applies(one: Mutation) -> None:
    """Raises Stale where the break's text does not stand in the code exactly once."""
    for name, old, _ in one.changes:
        count = (ROOT / "src" / "vidflow" / name).read_text().count(old)
        if count != 1:
            raise StaleMutation(f"{one.rule}: this stands {count} times in {name}: {old!r}")


def run_mutation(one: Mutation, variables: Mapping[str, str] | None = None) -> CaughtMutation | None:
    """What notices the break first, of what is expected to: the worlds in their order, then the tests.

    `variables`: environment variables for the tests.
    """
    with mutated_package(one) as source:
        for world in one.worlds:
            failure = _explore_world(source, world)
            if failure is not None:
                return CaughtMutation(failure[0], world, failure[1])
        for test in one.tests:
            if not _test_passes(source, test, variables or {}):
                return CaughtMutation("a test fails", test)
    return None


def _explore_world(source: Path, world: str) -> tuple[str, int] | None:
    command = [sys.executable, "-m", "tests.explorer", "world", world, "--json"]
    done = subprocess.run(command, cwd=ROOT, env=_env(source), capture_output=True, text=True, check=False)
    if done.returncode not in {0, 1} or not done.stdout:
        raise StaleMutation(f"{world} cannot be explored: {done.stderr[-2000:]}")
    return msgspec.json.decode(done.stdout, type=tuple[str, int] | None)


def _test_passes(source: Path, test: str, given: Mapping[str, str]) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, cwd=ROOT, env={**_env(source), **given}, capture_output=True, text=True, check=False)
    if done.returncode not in {0, 1}:
        raise StaleMutation(f"{test} cannot be run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


def _env(source: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
