"""Move the wall clock of single programs of a running vidflow. clock.c is preloaded into all of them."""

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
"""The file shared with clock.c: the offset in nanoseconds, and how often a moved time was returned."""
NS_PER_S: Final = 1_000_000_000


class Clock:
    """The wall clock of one kind of program. Workers share the clock of their runner."""

    def __init__(self, file: Path) -> None:
        file.write_bytes(CLOCK_STRUCT.pack(0, 0))
        file.chmod(0o666)  # PostgreSQL runs as another user
        with file.open("r+b") as opened:
            self._memory = mmap.mmap(opened.fileno(), CLOCK_STRUCT.size)

    def move(self, by_s: float) -> None:
        """Set the clock to `by_s` seconds ahead of the machine's clock, or behind it if negative."""
        struct.pack_into("=q", self._memory, 0, int(by_s * NS_PER_S))

    @property
    def shifted_reads(self) -> int:
        """How often a program of this kind has read a moved time."""
        return int(struct.unpack_from("=q", self._memory, 8)[0])


class ClockedStack(Stack):
    """A Stack whose roles each have their own clock. The servers' clocks are found by their program names."""

    def _variables(self, kind: str) -> Mapping[str, str]:
        # Confined workers would not inherit the variables, and so not the clock of their runner.
        return {**super()._variables(kind), "VIDFLOW_CLOCK": kind, "VIDFLOW_SANDBOX": "off"}


@contextmanager
def movable_clocks(folder: Path) -> Iterator[dict[str, Clock]]:
    """Yield the clocks by name, for programs started in the block. Skip the test if the library cannot be built."""
    compiler = shutil.which("cc")
    if compiler is None or os.uname().sysname != "Linux":
        pytest.skip("moving clocks needs Linux with glibc and a C compiler (cc)")
    folder.mkdir()
    folder.chmod(0o755)
    library = folder / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-O2", "-Wall", "-shared", "-fPIC", "-o", library, source], check=True)
    clocks = {name: Clock(folder / name) for name in (*ROLES, POSTGRES, KAFKA)}
    with environment_variables(LD_PRELOAD=str(library), VIDFLOW_CLOCKS=str(folder)):
        yield clocks
