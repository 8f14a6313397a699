"""What a file object for PyAV has in common, wherever its bytes come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from io import SEEK_CUR, SEEK_END, SEEK_SET

from vidflow.domain.errors import VidflowError
from vidflow.infra.video.source_connection import ReadingStopped


class SourceFile(ABC):
    """A source that PyAV reads as a file, for use by one thread. `name` is shown to FFmpeg, `can_seek`: any byte can be read.

    PyAV may hide what a file raises. So a read that fails returns no data, as does every later one, and the error is kept for
    `raise_failure`. `hint`: a sentence for errors, after a space, that says what this kind of file lacks.
    """

    hint = ""

    def __init__(self, name: str, *, can_seek: bool) -> None:
        self.name = name
        self.can_seek = can_seek
        self._position = 0
        self._failure: VidflowError | ReadingStopped | None = None

    def read(self, size: int) -> bytes:
        """Return the next bytes as soon as there are some, at most `size`; empty at the end and after a failure."""
        if self._failure is not None:
            return b""
        try:
            return self._read(size)
        except (VidflowError, ReadingStopped) as error:
            self._failure = error
            self.close()
            return b""

    def raise_failure(self) -> None:
        """Raise the error that ended the reading: SourceError, Unavailable or ReadingStopped. Return if there was none."""
        if self._failure is not None:
            raise self._failure

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        """Move to another position. Return -1 for a place that is unknown."""
        origin = {SEEK_SET: 0, SEEK_CUR: self._position, SEEK_END: self._find_size()}.get(whence)
        if origin is None or origin + offset < 0:
            return -1
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position

    def seekable(self) -> bool:
        """Return whether any byte can be read at any time."""
        return self.can_seek

    @abstractmethod
    def close(self) -> None:
        """Close the file or connection."""

    @abstractmethod
    def _read(self, size: int) -> bytes:
        """Return the next bytes and move on. Raises SourceError, Unavailable or ReadingStopped."""

    @abstractmethod
    def _find_size(self) -> int | None:
        """Return the size in bytes, None if it is unknown."""
