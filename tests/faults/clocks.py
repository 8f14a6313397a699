"""A vidflow the wall clock of each of whose programs can be moved by itself, while it runs: clock.c, preloaded into all of them."""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from tests.faults.system_under_test import environment_variables

from vidflow.commands.dev import Stack

ROLES: Final = ("api", "inbox", "relay", "orchestrator", "runner")
POSTGRES: Final = "postgres"
KAFKA: Final = "java"
CLOCK_STRUCT: Final = struct.Struct("=qq")
"""What clock.c reads and writes: by how many nanoseconds the clock is moved, how often a moved time was given out."""
NS_PER_S: Final = 1_000_000_000


class Clock:
    """The wall clock of one kind of program. A runner's workers have their runner's."""

    def __init__(self, file: Path) -> None:
        file.write_bytes(CLOCK_STRUCT.pack(0, 0))
        file.chmod(0o666)  # PostgreSQL runs as another user
        with file.open("r+b") as opened:
            self._memory = mmap.mmap(opened.fileno(), CLOCK_STRUCT.size)

    def move(self, by_s: float) -> None:
        """From now on it is so much ahead of the machine's, or behind it."""
        struct.pack_into("=q", self._memory, 0, int(by_s * NS_PER_S))

    @property
    def shifted_reads(self) -> int:
        """How often such a program was told a moved time."""
        return int(struct.unpack_from("=q", self._memory, 8)[0])


class ClockedStack(Stack):
    """A Stack whose roles have a clock each; the servers' are found by their programs' names."""

    def _variables(self, kind: str) -> Mapping[str, str]:
        return {**super()._variables(kind), "VIDFLOW_CLOCK": kind}


@contextmanager
def movable_clocks(folder: Path) -> Iterator[dict[str, Clock]]:
    """The clocks by name; what is started in the block has them. The test is skipped where they cannot be built."""
    compiler = shutil.which("cc")
    if compiler is None or os.uname().sysname != "Linux":
        pytest.skip("there is no C compiler to build a clock that can be moved, or no glibc")
    folder.mkdir()
    folder.chmod(0o755)
    library = folder / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-O2", "-Wall", "-shared", "-fPIC", "-o", library, source], check=True)
    found = {name: Clock(folder / name) for name in (*ROLES, POSTGRES, KAFKA)}
    with environment_variables(LD_PRELOAD=str(library), VIDFLOW_CLOCKS=str(folder)):
        yield found
