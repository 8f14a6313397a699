"""Small disks that a test can fill."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vidflow.infra.postgres.connection import Connection


class SmallDisk:
    """A mounted disk of a few megabytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        """Use up all free space."""
        with self._filler.open("ab") as file:
            for size in (65536, 4096, 1):
                _write_all(file.fileno(), b"x" * size)

    def release(self) -> None:
        """Free the space that `fill` used."""
        self._filler.unlink()


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[SmallDisk]:
    """Mount a disk at `path` until the block ends. Skip the test if this user may not mount one."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    if os.uname().sysname != "Linux" or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("cannot mount a tmpfs")
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
def simulated_full_disk(connection: Connection, table: str, operation: str) -> Iterator[None]:
    """Make `operation` (INSERT, UPDATE or DELETE) on a table fail with the error of a full disk."""
    connection.execute(
        f"""
        CREATE OR REPLACE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
        CREATE TRIGGER no_room BEFORE {operation} ON {table} EXECUTE FUNCTION no_room()
        """
    )
    try:
        yield
    finally:
        connection.execute(f"DROP TRIGGER no_room ON {table}")


def logged_outages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the logged events of outages, full disks and recoveries."""
    return [record.getMessage() for record in caplog.records if record.getMessage() in {"away", "disk_full", "back"}]
