"""Find out within a second or two whether a camera answers at all, before FFmpeg connects to it, whose attempts cannot be ended.

A camera's machine may accept connections, or leave them in its kernel's queue, while the camera itself is frozen.
"""

from __future__ import annotations

import socket
import ssl
import time
from urllib.parse import urlsplit, urlunsplit

from vidflow.domain.redaction import redact
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.source_tls import build_tls_context
from vidflow.infra.video.cameras import PORTS, build_camera_error
from vidflow.infra.video.source_connection import Interruption, connect, require_running, start_tls


def require_answer(url: str, access: SourceAccess, interruption: Interruption, limit_s: float) -> None:
    """Return once the camera has answered a request for its options; any answer counts. Sources of other kinds are not asked.

    Raises Unavailable if it has not after `limit_s`, SourceError if its address is not allowed, or ReadingStopped.
    """
    parts, display_name = urlsplit(url), redact(url)
    scheme, host = parts.scheme.lower(), parts.hostname or ""
    if scheme not in PORTS:
        return
    deadline_s = time.monotonic() + limit_s
    shown = f"{host}:{parts.port}" if parts.port else host
    request = f"OPTIONS {urlunsplit(('rtsp', shown, parts.path, '', ''))} RTSP/1.0\r\nCSeq: 1\r\n\r\n"
    try:
        connection = connect(host, parts.port or PORTS[scheme], access, interruption, display_name, limit_s)
        if scheme == "rtsps":
            connection = start_tls(connection, build_tls_context(access), host, interruption, limit_s)
        with connection:
            connection.sendall(request.encode())
            if _receive(connection, deadline_s, interruption):
                return
    except TimeoutError as error:
        raise build_camera_error(f"no answer within {limit_s:.0f} s", display_name, "source_timeout") from error
    except ssl.SSLError:
        return  # it has answered; the attempt to read it will show what is wrong
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise build_camera_error(reason, display_name) from error
    raise build_camera_error("it closed the connection", display_name)


def _receive(connection: socket.socket, deadline_s: float, interruption: Interruption) -> bytes:
    """Return the first bytes of the answer, b"" if the connection ended. Raises TimeoutError at the deadline."""
    while True:
        require_running(interruption)
        try:
            return connection.recv(1024)
        except TimeoutError:
            if time.monotonic() > deadline_s:
                raise
