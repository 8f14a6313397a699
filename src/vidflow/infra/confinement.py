"""Confine untrusted file names to a folder: a model's files to its folder, a source to the media root.

A name is checked as written and with links followed.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

_FOLDER_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class OutsideFolder(Exception):
    """The name leads out of the folder, by `..`, as an absolute path or by a link."""


def resolve_inside(folder: Path, name: str) -> Path:
    """Return the real path of `name`, which is absolute or relative to `folder`.

    Raises OutsideFolder for a name that leads out of the folder, whether or not a file exists there, so that nobody can probe
    for files outside. Raises OSError if the file does not exist or cannot be reached.
    """
    path = folder.absolute() / name
    try:
        if not is_written_inside(folder, name):
            raise OutsideFolder
        root = folder.resolve(strict=True)
        for strict in (False, True):  # first without regard to whether it exists
            real = path.resolve(strict=strict)
            if not real.is_relative_to(root):
                raise OutsideFolder
    except RuntimeError as error:
        raise OSError(errno.ELOOP, "Too many levels of symbolic links") from error
    except ValueError as error:
        raise OSError(errno.EINVAL, "invalid characters in the path") from error
    return real


def is_written_inside(folder: Path, name: str) -> bool:
    """Return whether `name` is inside `folder` by its text alone. An absolute name may start with the folder's real path."""
    path = Path(os.path.normpath(folder.absolute() / name))
    return path.is_relative_to(folder.absolute()) or path.is_relative_to(folder.resolve())


def open_folder_of(path: Path) -> int:
    """Return a descriptor of the folder that contains a real path, for use as `dir_fd`.

    Raises OSError if a part of the folder's path has become a link since the path was resolved.
    """
    descriptor = os.open(path.anchor, _FOLDER_FLAGS)
    for part in path.parts[1:-1]:
        parent = descriptor
        try:
            descriptor = os.open(part, _FOLDER_FLAGS, dir_fd=parent)
        finally:
            os.close(parent)
    return descriptor
