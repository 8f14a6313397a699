"""Read the metadata of an ONNX file without an ONNX library, skipping the graph.

An ONNX file is one protobuf message. Its repeated field 14 contains metadata entries, each with a key (field 1) and a value
(field 2). A model may contain its own spec under the key `vidflow`, as TOML without `file` and `sha256`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from vidflow.domain.errors import ModelError
from vidflow.infra.models import files

SPEC_KEY: Final = "vidflow"
METADATA_FIELD: Final = 14
KEY_FIELD: Final = 1
VALUE_FIELD: Final = 2
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_VARINT_BYTES: Final = 10
MAX_FIELDS: Final = 20_000
"""Far more top-level fields than any model has. A 2 GB file can contain a billion tiny ones, which would take an hour to read."""


class _DamagedError(Exception):
    """The bytes are not a protobuf message."""


def read_metadata(file: BinaryIO, path: Path) -> dict[str, str]:
    """Return the entry `vidflow` of the metadata of an open ONNX file, if there is one and it is not too long for a spec.

    `path` names the file in errors. Raises ModelError (model_refused) if it is not an ONNX file.
    """
    try:
        entries = (_entry(content) for _, content in _fields(file, field_number=METADATA_FIELD))
        return {key: value for key, value in entries if key == SPEC_KEY}
    except (_DamagedError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not an ONNX model. Export or copy it again.", code="model_refused") from error


def _entry(content: bytes) -> tuple[str, str]:
    parts = dict(_fields(io.BytesIO(content), field_number=None))
    return parts.get(KEY_FIELD, b"").decode("utf-8"), parts.get(VALUE_FIELD, b"").decode("utf-8")


def _fields(file: BinaryIO, field_number: int | None) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of each field `field_number` (None: of any number) that holds bytes and fits a spec's size."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    for _ in range(MAX_FIELDS):
        if file.tell() >= end:
            return
        tag = _varint(file)
        field, wire = tag >> 3, tag & 7
        if field == 0:
            raise _DamagedError
        if wire == VARINT:
            _varint(file)
            continue
        length = {FIXED64: 8, FIXED32: 4}.get(wire, -1) if wire != BYTES else _varint(file)
        if length < 0 or file.tell() + length > end:
            raise _DamagedError
        if wire == BYTES and field_number in {None, field} and length <= files.MAX_SPEC_BYTES:
            yield field, file.read(length)
        else:
            file.seek(length, os.SEEK_CUR)
    raise _DamagedError


def _varint(file: BinaryIO) -> int:
    value = 0
    for index in range(MAX_VARINT_BYTES):
        byte = file.read(1)
        if not byte:
            raise _DamagedError
        value |= (byte[0] & 0x7F) << (7 * index)
        if byte[0] < 0x80:
            return value
    raise _DamagedError
