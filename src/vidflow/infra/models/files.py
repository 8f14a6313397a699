"""Reads the files of a model, which are hostile: confined to a folder, plain files only, up to a size, hashed as read.

What is loaded is always the very bytes that were checked, so nothing can be swapped in between.
"""

from __future__ import annotations

import hashlib
import os
import stat
from functools import lru_cache
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Final

from vidflow.domain.errors import ModelError

MAX_SPEC_BYTES: Final = 64 * 1024
MAX_LABELS_BYTES: Final = 1024 * 1024
MAX_WEIGHTS_BYTES: Final = 2 * 1024**3 - 1
"""The largest message that protobuf, and with it ONNX in one file, can hold."""


def resolve_in_folder(folder: Path, name: str) -> Path:
    """The file `name` inside `folder`, links followed.

    Raises ModelError where the name is absolute, climbs out by `..` or by a link, or names nothing.
    """
    relative = PurePosixPath(name)
    if not name or "\0" in name or relative.is_absolute() or ".." in relative.parts:
        raise ModelError(
            f"{name!r} is not the name of a file beside the spec; put it into the spec's folder and name it without '..'",
            code="model_spec_invalid",
        )
    return require_inside(folder, folder / relative)


def require_inside(folder: Path, path: Path) -> Path:
    """`path` with its links followed, if that is still inside `folder`. Raises ModelError otherwise."""
    try:
        real = path.resolve(strict=True)
        home = folder.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"there is no readable file {path}; check its name and its rights", code="model_file_missing"
        ) from error
    if not real.is_relative_to(home):
        raise ModelError(f"{path} leads out of {folder} by a link; put the file itself there", code="model_refused")
    return real


def open_regular_file(path: Path, limit_bytes: int) -> BufferedReader:
    """The file, open for reading. Raises ModelError where it is no plain file, unreadable, too large or empty."""
    try:
        fault = _fault(path.stat(), limit_bytes)  # before it is opened: opening a device can have an effect
        if fault is not None:
            raise ModelError(f"{path} {fault}", code="model_refused")
        # It may have been swapped since: a named pipe must not block us, nor a terminal become ours.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read ({_reason(error)}); check its name and its rights", code="model_file_missing"
        ) from error
    fault = _fault(os.fstat(descriptor), limit_bytes)
    if fault is not None:
        os.close(descriptor)
        raise ModelError(f"{path} {fault}", code="model_refused")
    return os.fdopen(descriptor, "rb")


def read_file(path: Path, limit_bytes: int) -> bytes:
    """The whole file. Raises ModelError as open_plain does, and where it grew past the limit while it was read."""
    with open_regular_file(path, limit_bytes) as file:
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise ModelError(
            f"{path} grew past {limit_bytes} bytes while it was read; wait until it is written", code="model_refused"
        )
    return content


def sha256_of_bytes(content: bytes) -> str:
    """64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: Path) -> str:
    """The digest of a weights file, remembered while the file's inode, size and times stay as they are.

    Good enough to name a model; whoever loads it hashes the bytes that it loads.
    """
    with open_regular_file(path, MAX_WEIGHTS_BYTES) as file:
        status = os.fstat(file.fileno())
    return _digest(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=256)
def _digest(path: Path, *_stamp: int) -> str:
    with open_regular_file(path, MAX_WEIGHTS_BYTES) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fault(status: os.stat_result, limit_bytes: int) -> str | None:
    if not stat.S_ISREG(status.st_mode):
        return "is not a plain file; name the file itself"
    if status.st_size > limit_bytes:
        return f"has {status.st_size} bytes, more than the {limit_bytes} allowed; use a smaller one"
    return None if status.st_size else "is empty; copy it again"


def _reason(error: OSError | ValueError) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
