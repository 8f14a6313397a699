"""How many rows of each table a dump of pg_dump holds (directory format), counted in its files. No server is asked."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import IO, Final, cast

from vidflow.domain.errors import VidflowError
from vidflow.infra.postgres import client_programs as pg_programs

_ENTRY: Final = re.compile(r"^(?P<id>\d+); \d+ \d+ TABLE DATA (?P<schema>\S+) (?P<table>.+) \S+$")
_END: Final = b"\\.\n\n\n"
"""What pg_dump writes after the last row. A line of COPY's text form is a row: a line break in a value is written as \\n."""
_CHUNK: Final = 1 << 20


def count(dump: Path, server_major: int) -> dict[str, int]:
    """Return the rows of each table by its name with the schema. Raises VidflowError where a file does not end as it should."""
    found = {}
    for line in pg_programs.read_table_of_contents(pg_programs.find_program("pg_restore", server_major), dump):
        if (entry := _ENTRY.match(line)) is not None:
            found[f"{entry['schema']}.{entry['table']}"] = _rows(dump, entry["id"])
    return found


def _rows(dump: Path, number: str) -> int:
    with _open_data_file(dump, number) as file:
        lines, tail = 0, b""
        while chunk := file.read(_CHUNK):
            lines += chunk.count(b"\n")
            tail = (tail + chunk)[-len(_END) :]
    if tail != _END:
        raise VidflowError(f"pg_dump wrote a file that does not end: {number}.dat in {dump}; take another backup")
    return lines - _END.count(b"\n")


def _open_data_file(dump: Path, number: str) -> IO[bytes]:
    """A server's programs may be built without zlib: then nothing is compressed."""
    plain = dump / f"{number}.dat"
    return plain.open("rb") if plain.exists() else cast("IO[bytes]", gzip.open(f"{plain}.gz", "rb"))
