"""Count the rows of each table in the files of a pg_dump directory-format dump, without a server."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import IO, Final, cast

from vidflow.domain.errors import VidflowError
from vidflow.infra.postgres import client_programs as pg_programs

_ENTRY: Final = re.compile(r"^(?P<id>\d+); \d+ \d+ TABLE DATA (?P<schema>\S+) (?P<table>.+) \S+$")
_END: Final = b"\\.\n\n\n"
"""Written by pg_dump after the last row. In COPY's text format each line is one row: a line break in a value is written as \\n."""
_CHUNK: Final = 1 << 20


def count(dump: Path, server_major: int) -> dict[str, int]:
    """Return the number of rows of each table, by schema-qualified name. Raises VidflowError if a file is truncated."""
    counts = {}
    for line in pg_programs.read_table_of_contents(pg_programs.find_program("pg_restore", server_major), dump):
        if (entry := _ENTRY.match(line)) is not None:
            counts[f"{entry['schema']}.{entry['table']}"] = _count_rows(dump, entry["id"])
    return counts


def _count_rows(dump: Path, number: str) -> int:
    with _open_data_file(dump, number) as file:
        lines, tail = 0, b""
        while chunk := file.read(_CHUNK):
            lines += chunk.count(b"\n")
            tail = (tail + chunk)[-len(_END) :]
    if tail != _END:
        raise VidflowError(f"pg_dump wrote a truncated file: {number}.dat in {dump}. Take another backup.")
    return lines - _END.count(b"\n")


def _open_data_file(dump: Path, number: str) -> IO[bytes]:
    """Open a table's data file, which is not compressed if pg_dump was built without zlib."""
    plain = dump / f"{number}.dat"
    return plain.open("rb") if plain.exists() else cast("IO[bytes]", gzip.open(f"{plain}.gz", "rb"))
