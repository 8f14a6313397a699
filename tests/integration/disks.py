"""A small disk of its own, to be filled by a test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vidflow.infra.postgres.connection import Connection


class SmallDisk:
    """A disk of a few megabytes at a path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        """Takes all that is left of it."""
        with self._filler.open("ab") as file:
            for size in (65536, 4096, 1):
                _write_all(file.fileno(), b"x" * size)

    def release(self) -> None:
        """Gives back what `fill` took."""
        self._filler.unlink()


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[SmallDisk]:
    """A disk mounted at `path` until the block ends; the test is skipped where this user may mount none."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    if os.uname().sysname != "Linux" or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a disk of its own cannot be mounted here")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def _write_all(file: int, block: bytes) -> None:
    while True:
        try:
            os.write(file, block)
        except OSError:
            return


@contextmanager
def simulated_full_disk(tables: Connection, table: str, operation: str) -> Iterator[None]:
    """PostgreSQL's own refusal where it has no room (`operation`: INSERT, UPDATE or DELETE), without a disk that has none."""
    tables.execute(
        f"""
        CREATE OR REPLACE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
        CREATE TRIGGER no_room BEFORE {operation} ON {table} EXECUTE FUNCTION no_room()
        """
    )
    try:
        yield
    finally:
        tables.execute(f"DROP TRIGGER no_room ON {table}")


def logged_outages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of servers that are away, or full, and of their return."""
    return [record.getMessage() for record in caplog.records if record.getMessage() in {"away", "disk_full", "back"}]
