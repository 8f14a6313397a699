"""A GET request over a connection of our own, with time limits for each step and a way to stop at once.

Each request has a new connection. Proxies are not used.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlsplit

from vidflow import __version__
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.source_tls import build_tls_context
from vidflow.infra.video.source_connection import (
    CONNECT_TIMEOUT_S,
    STOP_POLL_S,
    Interruption,
    connect,
    require_running,
    start_tls,
)

READ_TIMEOUT_S: Final = 10.0
"""How long a server may take for its head, and for each part of its body."""
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_PATH_CHARACTERS: Final = "%/:=&?~#+!$,;'@()*[]|"


class Response:
    """A response whose body is still to be read. Close it after use."""

    def __init__(self, stream: _Stream, url: str) -> None:
        self._stream = stream
        self._response = http.client.HTTPResponse(stream, method="GET")  # type: ignore[arg-type]
        self.url = url
        try:
            self._response.begin()
        except BaseException:
            stream.disconnect()
            raise

    @property
    def status(self) -> int:
        """The status code."""
        return self._response.status

    @property
    def headers(self) -> http.client.HTTPMessage:
        """The headers."""
        return self._response.headers

    @property
    def is_chunked(self) -> bool:
        """Whether the body ends with a last chunk instead of at a stated length."""
        return bool(self._response.chunked)

    def read(self, size: int) -> bytes:
        """Return the next bytes of the body as soon as there are some, at most `size`; empty at its end.

        A body without a stated length, not chunked, ends when the server closes the connection. Raises OSError or
        http.client.HTTPException if the connection breaks, or sends nothing in time; ReadingStopped.
        """
        self._stream.set_deadline(READ_TIMEOUT_S)
        return self._response.read1(size)

    def close(self) -> None:
        """Close the connection."""
        self._response.close()
        self._stream.disconnect()


def get(
    url: str,
    headers: Mapping[str, str],
    access: SourceAccess,
    tls: ssl.SSLContext | None,
    interruption: Interruption,
    display_name: str,
) -> Response:
    """Send a GET request. Return the response once its head has arrived. `tls` may be None for http.

    Raises OSError, http.client.HTTPException, UnicodeError for an invalid host, SourceError for an address that is not allowed, or
    ReadingStopped.
    """
    parts = urlsplit(url)
    host, scheme = (parts.hostname or "").encode("idna").decode(), parts.scheme.lower()
    port = parts.port or _DEFAULT_PORTS[scheme]
    connected = connect(host, port, access, interruption, display_name)
    if scheme == "https":
        connected = start_tls(connected, tls or build_tls_context(access), host, interruption)
    stream = _Stream(connected, interruption)
    target = quote(parts.path or "/", _PATH_CHARACTERS) + (
        f"?{quote(parts.query, _PATH_CHARACTERS)}" if parts.query else ""
    )
    shown_host = f"[{host}]" if ":" in host else host
    shown_port = "" if port == _DEFAULT_PORTS[scheme] else f":{port}"
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: {shown_host}{shown_port}",
        f"User-Agent: vidflow/{__version__}",
        "Accept: */*",
        "Accept-Encoding: identity",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers.items()),
        "\r\n",
    ]
    try:
        stream.send("\r\n".join(lines).encode("ascii"))
    except BaseException:
        stream.disconnect()
        raise
    return Response(stream, url)


class _Stream(io.RawIOBase):
    """A connected socket as http.client reads it."""

    def __init__(self, connected: socket.socket, interruption: Interruption) -> None:
        self._socket, self._interruption = connected, interruption
        self.set_deadline(READ_TIMEOUT_S)

    def set_deadline(self, seconds: float) -> None:
        """Let reads raise TimeoutError from so many seconds from now on."""
        self._seconds, self._deadline_s = seconds, time.monotonic() + seconds

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return this stream with a buffer."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - a writable buffer
        while True:
            require_running(self._interruption)
            if time.monotonic() > self._deadline_s:
                raise TimeoutError(f"no data for {self._seconds:.0f} s")
            try:
                return self._socket.recv_into(buffer)
            except TimeoutError:
                continue

    def send(self, request: bytes) -> None:
        """Send a whole request."""
        self._socket.settimeout(CONNECT_TIMEOUT_S)
        self._socket.sendall(request)
        self._socket.settimeout(STOP_POLL_S)

    def disconnect(self) -> None:
        """Close the socket."""
        self._socket.close()
