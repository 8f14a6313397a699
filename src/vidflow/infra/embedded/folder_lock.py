"""A lock on a data folder, held until its owner and every child that inherited it have ended."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Final

from vidflow.domain.errors import SetupError

_FILE_NAME: Final = "owner.lock"
_ORPHAN_TIMEOUT_S: Final = 15.0  # a server whose parent was killed ends within about a second, later under load
_POLL_S: Final = 0.02


class FolderLock:
    """The lock on a folder. A child that inherits `fd` keeps the folder locked until the child ends, too.

    A new owner waits a short time for an orphaned server to end, but not for a running owner.
    """

    def __init__(self, folder: Path) -> None:
        """Create the folder if necessary and lock it. Raises SetupError if another process holds it."""
        folder.mkdir(parents=True, exist_ok=True)
        self.fd = os.open(folder / _FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(self.fd, folder)
        except BaseException:
            os.close(self.fd)
            raise
        os.truncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Release this process's hold on the folder. Calling it again does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _lock(fd: int, folder: Path) -> None:
    deadline_s = time.monotonic() + _ORPHAN_TIMEOUT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = _read_owner(fd)
            if owner is None or time.monotonic() > deadline_s:
                raise SetupError(
                    f"Another vidflow uses {folder}. Stop it, or choose another folder (--data-dir)."
                ) from error
            if _is_running(owner):
                raise SetupError(
                    f"Another vidflow (process {owner}) uses {folder}. Stop it, or choose another folder (--data-dir)."
                ) from error
            time.sleep(_POLL_S)
        else:
            return


def _read_owner(fd: int) -> int | None:
    content = os.pread(fd, 32, 0).strip()
    return int(content) if content.isdigit() else None


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
