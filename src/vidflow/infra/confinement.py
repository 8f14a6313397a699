"""Confine untrusted file names to a folder: a model's files to its folder, a source to the media root.

A name is checked as written and with links followed. Only models may be links that lead out, see `resolve_linked_file`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Final

_FOLDER_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LINKS: Final = 40
"""As many as Linux follows in one path."""


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


def resolve_linked_file(folder: Path, name: str, trusted: Collection[int]) -> Path:
    """Return the real path of `name` as `resolve_inside` does, but let the file itself be a link that leads out of the folder.

    The folders in `name` must be inside: a linked folder would add all its files. `trusted` are users as for `check_link_owners`.
    Raises OutsideFolder and OSError.
    """
    try:
        return resolve_inside(folder, name)
    except OutsideFolder:
        path = folder.absolute() / name
        if not path.name or not is_written_inside(folder, name):
            raise
    link = resolve_inside(folder, str(path.parent)) / path.name
    check_link_owners(link, trusted)
    return link.resolve(strict=True)


def check_link_owners(path: Path, trusted: Collection[int]) -> None:
    """Raise OutsideFolder if a link on the way to a file was made by a user who may not be allowed to read the file.

    Each link must belong to root, to this process's user, to a user in `trusted`, or to the file's owner. Otherwise anyone could make
    a link to a file that only this process can read, and then read it by the answers of this process. Raises OSError if the file does
    not exist.
    """
    owners: list[int] = []
    current = Path("/")
    pending = list(reversed(path.absolute().parts))
    while pending:
        part = pending.pop()
        following = (
            current.parent if part == ".." else current / part
        )  # "/", the start of an absolute path, replaces the current one
        status = os.lstat(following)
        if not stat.S_ISLNK(status.st_mode):
            current = following
            continue
        owners.append(status.st_uid)
        if len(owners) > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        pending += reversed(following.readlink().parts)
    if not {0, os.geteuid(), os.lstat(current).st_uid, *trusted}.issuperset(owners):
        raise OutsideFolder


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
