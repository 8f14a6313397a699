"""Find out within a second or two whether a camera answers at all, before FFmpeg connects to it, whose attempts cannot be ended.

A camera's machine may accept connections, or leave them in its kernel's queue, while the camera itself is frozen.
"""

from __future__ import annotations

import ssl
import time
from urllib.parse import SplitResult, urlsplit, urlunsplit

from vidflow.domain.redaction import redact
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.video import rtmp
from vidflow.infra.video.cameras import PORTS, Camera, build_camera_error, connect_to_camera
from vidflow.infra.video.source_connection import Interruption, receive


def require_answer(url: str, access: SourceAccess, interruption: Interruption, limit_s: float) -> None:
    """Return once the camera has answered a request that every server must answer. Sources of other kinds are not asked.

    Raises Unavailable if it has not after `limit_s`, SourceError if its address is not allowed, or ReadingStopped.
    """
    parts, display_name = urlsplit(url), redact(url)
    if parts.scheme.lower() not in PORTS:
        return
    deadline_s = time.monotonic() + limit_s
    try:
        with connect_to_camera(Camera(url, display_name, access, interruption), limit_s) as connection:
            connection.sendall(_build_request(parts))
            if receive(connection, deadline_s, interruption):
                return
    except TimeoutError as error:
        raise build_camera_error(f"no answer within {limit_s:.0f} s", display_name, "source_timeout") from error
    except ssl.SSLError:
        return  # it has answered; the attempt to read it will show what is wrong
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise build_camera_error(reason, display_name) from error
    raise build_camera_error("it closed the connection", display_name)


def _build_request(parts: SplitResult) -> bytes:
    """Return the beginning of RTMP's handshake, or a request for the options of RTSP."""
    if parts.scheme.lower() in rtmp.PORTS:
        return rtmp.HELLO
    shown = parts.netloc.rpartition("@")[2]
    return f"OPTIONS {urlunsplit(('rtsp', shown, parts.path, '', ''))} RTSP/1.0\r\nCSeq: 1\r\n\r\n".encode()
