"""One owner for a folder of data: a lock that lasts as long as the owner, or a child that it was handed to, lives."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Final

from vidflow.domain.errors import SetupError

_NAME: Final = "owner.lock"
_ORPHAN_S: Final = 15.0  # servers whose parent was killed end within a second or so; under load it takes longer
_POLL_S: Final = 0.02


class FolderLock:
    """Holds a folder. `fd` kept open in a child keeps the folder locked until that child is gone too.

    A server whose parent was killed may need a moment to end: the lock waits for that, but never for a living owner.
    """

    def __init__(self, folder: Path) -> None:
        """Locks the folder, which is made where it is missing. Raises SetupError where another process has it."""
        folder.mkdir(parents=True, exist_ok=True)
        self.fd = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(self.fd, folder)
        except BaseException:
            os.close(self.fd)
            raise
        os.truncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Lets go of the folder, unless a child still has it. A second time does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _lock(fd: int, folder: Path) -> None:
    until = time.monotonic() + _ORPHAN_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = _owner(fd)
            if owner is None or time.monotonic() > until:
                raise SetupError(
                    f"another vidflow uses {folder}: stop it, or give another folder (--data-dir)"
                ) from error
            if _is_running(owner):
                raise SetupError(
                    f"another vidflow (process {owner}) uses {folder}: stop it, or give another folder (--data-dir)"
                ) from error
            time.sleep(_POLL_S)
        else:
            return


def _owner(fd: int) -> int | None:
    word = os.pread(fd, 32, 0).strip()
    return int(word) if word.isdigit() else None


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
