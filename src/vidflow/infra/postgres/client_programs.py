"""PostgreSQL's own programs for backups: which of the installed ones fits a server, and how one is run. Not what they are for.

pg_dump refuses a server that is newer than itself, so the first on PATH need not do. No password is ever on a command line.
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
    """The program of this name, of PostgreSQL `min_major` (its first number) or newer: on PATH, else from the wheel.

    Raises SetupError where there is none.
    """
    found = [(path, _version(path)) for path in _candidates(name)]
    for path, version in found:
        if version >= min_major:
            return path
    older = "".join(f"; {path} is of {version}" for path, version in found)
    raise SetupError(
        f"no {name} of PostgreSQL {min_major} or newer is here{older}: install PostgreSQL's client programs and put them on PATH, "
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
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    match = _VERSION.search(said)
    return int(match[1]) if match else 0


def read_table_of_contents(pg_restore: Path, dump: Path) -> list[str]:
    """The lines of a dump's table of contents. Raises VidflowError where it cannot be read."""
    done = subprocess.run(
        [pg_restore, "--list", dump], capture_output=True, text=True, check=False, env={"LC_ALL": "C"}
    )
    if done.returncode != 0:
        raise VidflowError(f"pg_restore cannot read {dump}: {' '.join(done.stderr.split())}")
    return done.stdout.splitlines()


def run_program(
    program: Path, arguments: Sequence[str | Path], url: str, on_line: Callable[[str], None], *, database: str | None = None
) -> None:  # fmt: skip
    """Runs a program against the URL's server (or another `database` of it) to its end; `on_line` gets each line that it says.

    It dies with this process. Raises VidflowError with its last lines where it fails.
    """
    connection, secrets = split_secrets(url, database)
    process = start_child(
        [program, f"--dbname={connection}", *arguments],
        output=subprocess.PIPE,
        death_signal=signal.SIGTERM,
        environment={**secrets, "LC_ALL": "C"},  # its lines are read
    )
    last: list[str] = []
    try:
        for line in _lines(process):
            last = [*last, line][-_LAST_LINES:]
            on_line(line)
        code = process.wait()
    finally:
        stop_child(process, signal.SIGTERM, _GRACE_S)
    if code != 0:
        raise VidflowError(f"{program.name} failed with exit code {code}: {' | '.join(last)}")


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    assert process.stdout is not None
    with process.stdout as said:
        for line in said:
            yield line.decode(errors="replace").strip()
