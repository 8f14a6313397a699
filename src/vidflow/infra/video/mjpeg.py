"""Pictures that a camera sends over HTTP one after the other (multipart/x-mixed-replace). They have no times but those of arrival.

Cameras disagree about boundaries, lengths and types of the parts, and FFmpeg refuses what it does not know. So the pictures are found by
their own markers (JPEG, ITU-T T.81, annex B), and FFmpeg gets them as it expects them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from vidflow.domain.errors import SourceError
from vidflow.infra.video.http_stream import HttpStream
from vidflow.infra.video.source_file import SourceFile

FORMAT: Final = "mpjpeg"
"""FFmpeg's name of the container."""
MAX_PICTURE_BYTES: Final = 32 * 1024 * 1024
"""More than a picture of the largest size takes, unless it is noise."""
_START: Final = b"\xff\xd8\xff"
_FILL, _SOI, _EOI, _SCAN = 0xFF, 0xD8, 0xD9, 0xDA
_LONE: Final = frozenset({0x00, 0x01, *range(0xD0, 0xD8)})
"""Markers without contents."""
_END_OF_SCAN: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Any marker but those that occur in the data of a scan."""


def is_multipart(content_type: str) -> bool:
    """Return whether a response with this content type consists of pictures."""
    return content_type in {"multipart/x-mixed-replace", "multipart/mixed"}


class PictureFinder:
    """Finds the JPEG pictures in bytes that arrive in pieces. What is between the pictures does not matter."""

    def __init__(self) -> None:
        self._data = bytearray()  # from the beginning of a picture on, once one has begun
        self._at = 0  # a marker, or in a scan where to look for the next one
        self._has_begun = self._is_in_scan = False

    def add(self, data: bytes) -> Iterator[bytes]:
        """Yield the pictures that are complete with this piece, and those that another one cut short.

        Raises ValueError if a picture has more than MAX_PICTURE_BYTES.
        """
        self._data += data
        while (end := self._find_end()) is not None:
            picture = bytes(self._data[:end])
            del self._data[:end]
            self._at, self._has_begun, self._is_in_scan = 0, False, False
            yield picture
        if len(self._data) > MAX_PICTURE_BYTES:
            raise ValueError(f"a picture is larger than {MAX_PICTURE_BYTES} bytes")

    def _find_end(self) -> int | None:
        """Return where the picture ends, None if that has not arrived yet."""
        if not self._has_begun and not self._begin():
            return None
        while (at := self._find_marker()) is not None:
            kind = self._data[at + 1]
            if kind == _EOI:
                return at + 2
            if kind == _SOI:
                return at
            if kind == _FILL or kind in _LONE:
                self._at = at + (1 if kind == _FILL else 2)
                continue
            if at + 4 > len(self._data):
                self._at = at
                return None
            self._at = at + 2 + int.from_bytes(self._data[at + 2 : at + 4])
            self._is_in_scan = kind == _SCAN
        return None

    def _begin(self) -> bool:
        start = self._data.find(_START)
        del self._data[: start if start >= 0 else max(0, len(self._data) - len(_START) + 1)]
        self._has_begun, self._at = start >= 0, 2
        return self._has_begun

    def _find_marker(self) -> int | None:
        """Return the position of the next marker, if it has arrived with its kind. A picture that is not a JPEG has none."""
        if self._is_in_scan:
            found = _END_OF_SCAN.search(self._data, self._at)
            at = found.start() if found else -1
        else:
            at = self._data.find(_FILL, self._at)
        if 0 <= at <= len(self._data) - 2:
            self._is_in_scan = False
            return at
        self._at = max(self._at, len(self._data) - 1)
        return None


class PictureStream(SourceFile):
    """The pictures of a body, each in a part with its length."""

    def __init__(self, body: HttpStream) -> None:
        super().__init__("pictures", can_seek=False)
        self._body, self._finder = body, PictureFinder()
        self._pending = bytearray()

    def close(self) -> None:
        """Close the connection."""
        self._body.close()

    def _read(self, size: int) -> bytes:
        while not self._pending:
            data = self._body.read(size)
            if not data:
                self._body.raise_failure()
                return b""
            self._pending += b"".join(map(_as_part, self._find(data)))
        data = bytes(self._pending[:size])
        del self._pending[:size]
        self._position += len(data)
        return data

    def _find(self, data: bytes) -> list[bytes]:
        try:
            return list(self._finder.add(data))
        except ValueError as error:
            raise SourceError(
                f"{self._body.display_name} sends a picture of more than {MAX_PICTURE_BYTES} bytes. Lower the camera's quality or size.",
                code="source_too_large",
            ) from error

    def _find_size(self) -> int | None:
        return None


def _as_part(picture: bytes) -> bytes:
    return b"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n" % (len(picture), picture)
