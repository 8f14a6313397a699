"""Preloaded first by the forkservers of a runner that confines its workers: they start processes for their runner only.

A forkserver starts whatever is sent to its socket, and its processes are confined only by what they run. The socket has a path that
every process of this user can connect to, as can a worker that may connect to local servers.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from multiprocessing import forkserver
from types import SimpleNamespace
from typing import Any, Final

from vidflow.infra.process.sandbox import hide_memory

_RUNNER: Final = os.getppid()
_CREDENTIALS: Final = struct.Struct("3i")
"""The process, user and group of the other end of a socket."""


class _RunnerListener(socket.socket):
    """A listening socket that accepts the runner only."""

    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next connection. Raises ConnectionAbortedError for one of another process, after which a forkserver goes on."""
        connection, address = super().accept()
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(credentials)[0] != _RUNNER:
            connection.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, "not the runner")
        return connection, address


if sys.platform == "linux":
    hide_memory()
    forkserver.socket = SimpleNamespace(socket=_RunnerListener, AF_UNIX=socket.AF_UNIX)  # type: ignore[attr-defined]
