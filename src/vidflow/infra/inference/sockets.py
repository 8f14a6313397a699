"""The sockets between workers and inference processes. Their names are in no file system, so a killed runner leaves nothing. Linux only.

Such a name has no permissions: any user of the machine may connect. So both sides check whose process the other one is.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
from typing import Final

_CREDENTIALS: Final = struct.Struct("=iII")
"""The process, user and group of the other side."""


def listen(backlog: int) -> tuple[socket.socket, str]:
    """Return a listening socket, and its name for `connect`. It exists until the last process closes the socket. Raises OSError."""
    name = f"vidflow-inference-{secrets.token_hex(16)}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(f"\0{name}")
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener, name


def connect(name: str, timeout_s: float) -> socket.socket:
    """Return a socket that is connected to this name. Raises OSError, also if another user listens there."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        connection.connect(f"\0{name}")
        is_own = is_of_this_user(connection)
    except BaseException:
        connection.close()
        raise
    if not is_own:
        connection.close()
        raise PermissionError(f"another user listens at {name}")
    return connection


def is_of_this_user(connection: socket.socket) -> bool:
    """Return whether the other side is a process of this user."""
    _, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(user == os.geteuid())
