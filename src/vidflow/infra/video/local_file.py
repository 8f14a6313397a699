"""Local files: how a change is noticed while they are read and between two attempts, and how a growing one is followed."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from pathlib import Path
from typing import Final

from vidflow.domain.errors import SourceError, Unavailable
from vidflow.domain.messages import FileIdentity
from vidflow.infra.video.source_connection import Interruption, ReadingStopped
from vidflow.infra.video.source_file import SourceFile

SAMPLE_BYTES: Final = 4096
SAMPLE_PLACES: Final = (1, 2, 3)
"""Quarters of the file where a sample of its contents is taken. Its beginning and end may be rewritten when a recording ends."""
SETTLE_S: Final = 2.0
"""A file of a kind that can be appended to has ended only if it has been still for so long."""
POLL_S: Final = 0.2
_TEMPORARY_ERRORS: Final = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE})


class LocalFile:
    """A file as it was when it was opened. It stays the same file if its name is given to another one."""

    def __init__(self, path: Path, expected: FileIdentity | None = None) -> None:
        """Open the file. `expected`: the identity that an earlier attempt recorded; the file may have grown since.

        Raises SourceError if the file cannot be read or is another one, Unavailable if a retry may help.
        """
        self.path = path
        try:
            # Opening a pipe would block. FFmpeg's errors do not distinguish a missing permission from invalid contents.
            if not stat.S_ISREG(path.stat().st_mode):
                raise SourceError(
                    f"{path} is a directory or a device. Give the path of a video file.", code="source_missing"
                )
            self._file = path.open("rb", buffering=0)
        except (OSError, ValueError) as error:
            raise _build_open_error(path, error) from error
        try:
            self.identity = self._read_identity()
            if expected is not None:
                self._require_continuation(expected)
        except OSError as error:
            raise _build_open_error(path, error) from error
        except BaseException:
            self.close()
            raise

    def require_same_path(self) -> None:
        """Raise SourceError if the path now names another file. Call it after opening the file by its path."""
        try:
            is_same = os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except OSError as error:
            raise _build_open_error(self.path, error) from error
        if not is_same:
            raise self._build_changed_error()

    def require_not_rewritten(self) -> None:
        """Raise SourceError if the file was certainly changed in any way other than growing. This is cheap."""
        status = os.fstat(self._file.fileno())
        if not self._can_have_grown(status):
            raise self._build_changed_error()

    def require_complete(self, interruption: Interruption, *, can_be_appended_to: bool) -> None:
        """Raise an error unless the file is as it was when it was opened.

        A file that can be appended to and was just written is watched until it has been still for `SETTLE_S`. Raises SourceError
        if it was changed, Unavailable if it only grew, and ReadingStopped.
        """
        age_s = time.time() - os.fstat(self._file.fileno()).st_mtime
        if can_be_appended_to and age_s < SETTLE_S and interruption.wait(min(SETTLE_S - age_s, SETTLE_S)):
            raise ReadingStopped
        status = os.fstat(self._file.fileno())
        if (status.st_size, status.st_mtime_ns) == (self.identity.size_bytes, self.identity.mtime_ns):
            return
        if not self._can_have_grown(status) or self._sample(self.identity.size_bytes or 0) != self.identity.sample:
            raise self._build_changed_error()
        raise Unavailable(
            f"{self.path} grew while it was read, so it is still being written. A later attempt continues after the last stored frame."
            ' With the parameter "follow": true, a scenario reads on until the file has been still.',
            code="source_growing",
        )

    def accept_growth(self) -> None:
        """Take the file's present state for the one to compare with. Raises SourceError if it did not only grow."""
        before = self.identity
        self.identity = self._read_identity()
        self._require_continuation(before)

    def read_at(self, position: int, size: int) -> bytes:
        """Return bytes from a position on, empty at the end. Raises Unavailable."""
        try:
            return os.pread(self._file.fileno(), size, position)
        except OSError as error:
            raise Unavailable(
                f"Reading {self.path} failed midway ({error.strerror}). Check its disk; a retry continues from here.",
                code="source_unreadable",
            ) from error

    def read_state(self) -> tuple[int, int]:
        """Return the present size in bytes and modification time in nanoseconds."""
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _can_have_grown(self, status: os.stat_result) -> bool:
        size_bytes = self.identity.size_bytes or 0
        return status.st_size > size_bytes or (
            status.st_size == size_bytes and status.st_mtime_ns == self.identity.mtime_ns
        )

    def _read_identity(self) -> FileIdentity:
        size_bytes, mtime_ns = self.read_state()
        return FileIdentity(size_bytes, mtime_ns, sample=self._sample(size_bytes))

    def _require_continuation(self, earlier: FileIdentity) -> None:
        if not self._continues(earlier):
            raise self._build_changed_error()

    def _continues(self, earlier: FileIdentity) -> bool:
        """Return whether this is the same file as before, unchanged or with more at its end."""
        if earlier.size_bytes is None or not earlier.sample:
            return earlier.matches(self.identity)
        if self.identity.size_bytes == earlier.size_bytes:
            return self.identity == earlier
        return (self.identity.size_bytes or 0) > earlier.size_bytes and self._sample(
            earlier.size_bytes
        ) == earlier.sample

    def _sample(self, size_bytes: int) -> str:
        """Return a digest of some of the first `size_bytes` bytes."""
        digest = hashlib.sha256()
        for place in SAMPLE_PLACES:
            position = size_bytes * place // (len(SAMPLE_PLACES) + 1)
            digest.update(os.pread(self._file.fileno(), min(SAMPLE_BYTES, size_bytes - position), position))
        return digest.hexdigest()[:32]

    def _build_changed_error(self) -> SourceError:
        return SourceError(
            f"{self.path} has changed since the scenario started (its size, modification time or contents differ), so frame numbers"
            " would refer to other frames. Start a new scenario for the new file.",
            code="source_changed",
        )


class FollowedFile(SourceFile):
    """A local file that may be growing, to be read once and in order until it has been still for `still_s` seconds."""

    hint = " A file whose index is written at its end, such as most MP4 files, cannot be followed."

    def __init__(self, file: LocalFile, still_s: float, interruption: Interruption) -> None:
        # FFmpeg would look at the end of a file that can be sought in, and wait there.
        super().__init__(file.path.name, can_seek=False)
        self._file, self._still_s, self._interruption = file, still_s, interruption
        self._final_state: tuple[int, int] | None = None

    def close(self) -> None:
        """Do nothing: the file belongs to its owner."""

    def _read(self, size: int) -> bytes:
        changed_s, state = time.monotonic(), self._file.read_state()
        while not (data := self._file.read_at(self._position, size)):
            if state == self._final_state or self._has_ended(changed_s):
                return b""
            if self._interruption.wait(POLL_S):
                raise ReadingStopped
            self._file.require_not_rewritten()
            if self._file.read_state() != state:
                changed_s, state = time.monotonic(), self._file.read_state()
        self._position += len(data)
        return data

    def _has_ended(self, changed_s: float) -> bool:
        """Return whether the file has been still for long enough. Its growth so far is then part of it."""
        age_s = time.time() - self._file.read_state()[1] / 1e9
        still_s = self._still_s if age_s < self._still_s else min(self._still_s, SETTLE_S / 2)
        if time.monotonic() - changed_s < still_s:
            return False
        self._file.accept_growth()
        self._final_state = self._file.read_state()
        return True

    def _find_size(self) -> int | None:
        return self._file.read_state()[0]


def _build_open_error(path: Path, error: OSError | ValueError) -> SourceError | Unavailable:
    if isinstance(error, OSError) and error.errno in _TEMPORARY_ERRORS:
        return Unavailable(
            f"Cannot read {path} at the moment ({error.strerror}). A later attempt may succeed.",
            code="source_unreadable",
        )
    reason = error.strerror if isinstance(error, OSError) else "invalid characters in the path"
    return SourceError(
        f"Cannot read {path} ({reason}). Check that the file exists on the runner's machine and that its user may read it.",
        code="source_missing",
    )
