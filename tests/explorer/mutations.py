"""Mutations: each removes one important rule from a copy of the package. The explorer or a test must then fail.

A mutation replaces lines of the source. If it no longer finds its lines, it must be updated by hand.
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
    """A rule, the change that removes it, and the worlds and tests that are expected to notice.

    Each of `changes` is a file below src/vidflow, a text that occurs in it exactly once, and its replacement.
    """

    rule: str
    changes: tuple[tuple[str, str, str], ...]
    worlds: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()


class CaughtMutation(NamedTuple):
    """What caught a mutation: a world, with the number of steps to the failure, or a test."""

    failure: str
    caught_by: str
    steps: int | None = None


class StaleMutation(Exception):
    """A mutation no longer fits the code."""


@contextmanager
def mutated_package(mutation: Mutation) -> Iterator[Path]:
    """Yield a source folder that contains the package without the rule."""
    check_applies(mutation)
    with tempfile.TemporaryDirectory(prefix="vidflow-mutation-") as folder:
        shutil.copytree(ROOT / "src", Path(folder, "src"))  # with __pycache__, so that nothing is compiled again
        (Path(folder) / "sql").symlink_to(ROOT / "sql")
        for name, old, new in mutation.changes:
            path = Path(folder, "src", "vidflow", name)
            path.write_text(path.read_text().replace(old, new))
        yield Path(folder, "src")


def check_applies(mutation: Mutation) -> None:
    """Raise StaleMutation unless each text to be replaced occurs exactly once in its file."""
    for name, old, _ in mutation.changes:
        count = (ROOT / "src" / "vidflow" / name).read_text().count(old)
        if count != 1:
            raise StaleMutation(
                f"{mutation.rule}: expected once in {name}, found {count} times: {old!r}. Update the mutation."
            )


def run_mutation(mutation: Mutation, variables: Mapping[str, str] | None = None) -> CaughtMutation | None:
    """Explore the mutation's worlds, then run its tests. Return the first failure, or None if nothing fails.

    `variables` are additional environment variables for the tests.
    """
    with mutated_package(mutation) as source:
        for world in mutation.worlds:
            failure = _explore_world(source, world)
            if failure is not None:
                return CaughtMutation(failure[0], world, failure[1])
        for test in mutation.tests:
            if not _test_passes(source, test, variables or {}):
                return CaughtMutation("a test fails", test)
    return None


def _explore_world(source: Path, world: str) -> tuple[str, int] | None:
    command = [sys.executable, "-m", "tests.explorer", "world", world, "--json"]
    process = subprocess.run(command, cwd=ROOT, env=_environment(source), capture_output=True, text=True, check=False)
    if process.returncode not in {0, 1} or not process.stdout:
        raise StaleMutation(f"World {world!r} cannot be explored: {process.stderr[-2000:]}")
    return msgspec.json.decode(process.stdout, type=tuple[str, int] | None)


def _test_passes(source: Path, test: str, variables: Mapping[str, str]) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", test]
    process = subprocess.run(
        command, cwd=ROOT, env={**_environment(source), **variables}, capture_output=True, text=True, check=False
    )
    if process.returncode not in {0, 1}:
        raise StaleMutation(f"Test {test} cannot be run: {process.stdout[-2000:]}{process.stderr[-2000:]}")
    return process.returncode == 0


def _environment(source: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
