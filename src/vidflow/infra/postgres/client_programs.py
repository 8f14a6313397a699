"""Find and run PostgreSQL's client programs for backups.

pg_dump refuses a server that is newer than itself, so the version is checked. Passwords are never passed on a command line.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from vidflow.domain.errors import MissingExtra, SetupError, VidflowError, format_install_hint
from vidflow.infra.embedded import postgres as embedded
from vidflow.infra.embedded.child_process import start_child, stop_child
from vidflow.infra.postgres.connection import split_secrets

_VERSION: Final = re.compile(r"\(PostgreSQL\) (\d+)")
_LAST_LINES: Final = 3
_GRACE_S: Final = 5.0


def find_program(name: str, min_major: int) -> Path:
    """Return a program of PostgreSQL `min_major` (the major version) or newer, from PATH or from the embedded server's package.

    Raises SetupError if there is none.
    """
    found = [(path, _version(path)) for path in _candidates(name)]
    for path, version in found:
        if version >= min_major:
            return path
    older = "".join(f" {path} has version {version}." for path, version in found)
    raise SetupError(
        f"No {name} of PostgreSQL {min_major} or newer found.{older} Install PostgreSQL's client programs and put them on PATH, "
        f"or {format_install_hint('embedded')}"
    )


def _candidates(name: str) -> Iterator[Path]:
    if (on_path := shutil.which(name)) is not None:
        yield Path(on_path)
    try:
        packed = embedded.programs_folder() / name
    except MissingExtra:
        return
    if packed.exists():
        yield packed


def _version(program: Path) -> int:
    output = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    match = _VERSION.search(output)
    return int(match[1]) if match else 0


def read_table_of_contents(pg_restore: Path, dump: Path) -> list[str]:
    """Return the lines of a dump's table of contents. Raises VidflowError if it cannot be read."""
    result = subprocess.run(
        [pg_restore, "--list", dump], capture_output=True, text=True, check=False, env={"LC_ALL": "C"}
    )
    if result.returncode != 0:
        raise VidflowError(f"pg_restore cannot read {dump}: {' '.join(result.stderr.split())}")
    return result.stdout.splitlines()


def run_program(
    program: Path, arguments: Sequence[str | Path], url: str, on_line: Callable[[str], None], *, database: str | None = None
) -> None:  # fmt: skip
    """Run a program against the URL's database, or another `database` of the same server. Call `on_line` with each line of output.

    The program ends with this process. Raises VidflowError with the last lines of output if it fails.
    """
    connection, secrets = split_secrets(url, database)
    process = start_child(
        [program, f"--dbname={connection}", *arguments],
        output=subprocess.PIPE,
        death_signal=signal.SIGTERM,
        environment={**secrets, "LC_ALL": "C"},  # the output is parsed
    )
    last_lines: list[str] = []
    try:
        for line in _read_lines(process):
            last_lines = [*last_lines, line][-_LAST_LINES:]
            on_line(line)
        code = process.wait()
    finally:
        stop_child(process, signal.SIGTERM, _GRACE_S)
    if code != 0:
        raise VidflowError(f"{program.name} failed with exit code {code}: {' | '.join(last_lines)}")


def _read_lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            yield line.decode(errors="replace").strip()
