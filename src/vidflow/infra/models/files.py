"""Read the files of a model. They are untrusted: only regular files in one folder are read, up to a maximum size."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection
from functools import lru_cache
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Final

from vidflow.domain.errors import ModelError
from vidflow.infra.confinement import OutsideFolder, open_folder_of, resolve_inside, resolve_linked_file

MAX_SPEC_BYTES: Final = 64 * 1024
MAX_LABELS_BYTES: Final = 1024 * 1024
MAX_WEIGHTS_BYTES: Final = 2 * 1024**3 - 1
"""Largest protobuf message, and therefore the largest single-file ONNX model."""
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""A named pipe must not block, and a terminal must not become the controlling one."""


def resolve_in_folder(folder: Path, name: str, link_owners: Collection[int] | None = None) -> Path:
    """Return the real path of the file `name` that a spec in `folder` names. `link_owners` is as for `require_inside`.

    Raises ModelError if the name is absolute, leaves the folder by `..` or a link, or does not exist.
    """
    relative = PurePosixPath(name)
    if not name or "\0" in name or relative.is_absolute() or ".." in relative.parts:
        raise ModelError(
            f"{name!r} is not a file in the spec's folder. Put the file there and name it without '..'.",
            code="model_spec_invalid",
        )
    return require_inside(folder, name, link_owners)


def require_inside(folder: Path, name: str, link_owners: Collection[int] | None = None) -> Path:
    """Return the real path of `name` in `folder`. Raises ModelError if it does not exist or a link leads out of the folder.

    With `link_owners`, the file itself may be a link that leads out, see `resolve_linked_file`.
    """
    try:
        if link_owners is None:
            return resolve_inside(folder, name)
        return resolve_linked_file(folder, name, link_owners)
    except OutsideFolder as error:
        raise ModelError(
            f"{folder / name} leads out of {folder} by a link. Put the file itself there.", code="model_refused"
        ) from error
    except OSError as error:
        raise ModelError(
            f"Cannot read {folder / name}. Check its name and permissions.", code="model_file_missing"
        ) from error


def open_regular_file(path: Path, limit_bytes: int) -> BufferedReader:
    """Open the file at a real path for reading. Links are not followed, since one may have replaced a part of the path.

    Raises ModelError if it is not a regular file, or is unreadable, too large or empty.
    """
    try:
        folder = open_folder_of(path)
        try:
            # Checked before it is opened, since opening a device can have side effects.
            _require_regular(os.stat(path.name, dir_fd=folder, follow_symlinks=False), path, limit_bytes)
            descriptor = os.open(path.name, _OPEN_FLAGS, dir_fd=folder)
        finally:
            os.close(folder)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"Cannot read {path} ({_reason(error)}). Check its name and permissions.", code="model_file_missing"
        ) from error
    file = os.fdopen(descriptor, "rb")
    try:
        _require_regular(os.fstat(descriptor), path, limit_bytes)  # it may have been replaced since
    except ModelError:
        file.close()
        raise
    return file


def read_file(path: Path, limit_bytes: int) -> bytes:
    """Return the file's content. Raises ModelError as `open_regular_file` does, and if the file grows beyond the limit meanwhile."""
    with open_regular_file(path, limit_bytes) as file:
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise ModelError(
            f"{path} grew beyond {limit_bytes} bytes while it was read. Wait until it is complete.",
            code="model_refused",
        )
    return content


def sha256_of_bytes(content: bytes) -> str:
    """Return the SHA-256 digest as 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(file: BufferedReader) -> str:
    """Return the SHA-256 digest of an open file, cached until its inode, size or times change.

    It identifies the model. Loading must hash the bytes that it loads.
    """
    status = os.fstat(file.fileno())
    known = _known_digests(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if not known:
        file.seek(0)
        known.append(hashlib.file_digest(file, "sha256").hexdigest())
    return known[0]


@lru_cache(maxsize=256)
def _known_digests(*_stamp: int) -> list[str]:
    """Return the list that holds the digest of one version of a file; it is empty at first."""
    return []


def _require_regular(status: os.stat_result, path: Path, limit_bytes: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        fault = "is not a regular file. Name the file itself."
    elif status.st_size > limit_bytes:
        fault = f"has {status.st_size} bytes; the limit is {limit_bytes}. Use a smaller file."
    elif not status.st_size:
        fault = "is empty. Copy it again."
    else:
        return
    raise ModelError(f"{path} {fault}", code="model_refused")


def _reason(error: OSError | ValueError) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
