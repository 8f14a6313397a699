"""Read a few fields of a protobuf message in an untrusted file, without a protobuf library and without reading the rest.

Time and memory are bounded for the whole file, however deep its messages are nested and whatever lengths they claim.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO, Final

import msgspec

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FIXED_LENGTHS: Final = {FIXED64: 8, FIXED32: 4}
MAX_VARINT_BYTES: Final = 10
MAX_FIELDS: Final = 200_000
"""Several times as many as the largest model in use has. A 2 GB file can contain a billion tiny fields, which would take an hour."""
MAX_CONTENT_BYTES: Final = 16 * 1024**2
"""Sum of the contents that are kept in memory."""


class DamagedError(Exception):
    """The bytes are not a protobuf message, or one beyond the bounds of this module."""


class Field(msgspec.Struct, frozen=True):
    """A field of a message: a number, which `value` is, or bytes, whose content lies from `start` to `end` in the file."""

    number: int
    value: int
    start: int
    end: int


class MessageReader:
    """Reads fields of one file, of messages in messages too, until their number or their content exceeds the bounds."""

    def __init__(self, file: BinaryIO, max_fields: int = MAX_FIELDS) -> None:
        self._file = file
        self._fields_left = max_fields
        self._bytes_left = MAX_CONTENT_BYTES
        self.size_bytes = file.seek(0, os.SEEK_END)

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """Yield the fields between two places of the file that hold a varint or bytes. Raises DamagedError."""
        place = start
        while place < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise DamagedError
            self._file.seek(place)
            tag, place = self._varint(place)
            number, wire = tag >> 3, tag & 7
            if number == 0:
                raise DamagedError
            if wire == VARINT:
                value, place = self._varint(place)
                yield Field(number, value, place, place)
                continue
            length, place = self._varint(place) if wire == BYTES else (FIXED_LENGTHS.get(wire, -1), place)
            if length < 0 or place + length > end:
                raise DamagedError
            if wire == BYTES:
                yield Field(number, 0, place, place + length)
            place += length
        if place != end:
            raise DamagedError

    def text(self, field: Field) -> str:
        """Return the content of a field. Raises DamagedError if it is not text, or all contents together are too long."""
        length = field.end - field.start
        self._bytes_left -= length
        if self._bytes_left < 0:
            raise DamagedError
        self._file.seek(field.start)
        try:
            return self._file.read(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise DamagedError from error

    def _varint(self, place: int) -> tuple[int, int]:
        """Return the number at the file's position, and the place after it."""
        value = 0
        for index in range(MAX_VARINT_BYTES):
            byte = self._file.read(1)
            if not byte:
                raise DamagedError
            value |= (byte[0] & 0x7F) << (7 * index)
            if byte[0] < 0x80:
                return value, place + index + 1
        raise DamagedError
