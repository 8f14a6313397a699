"""A GET request over a connection of our own, with time limits for each step and a way to stop at once.

Each request has a new connection. Proxies are not used.
"""

from __future__ import annotations

import http.client
import io
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any, Final, Protocol
from urllib.parse import quote, urlsplit

from vidflow import __version__

CONNECT_TIMEOUT_S: Final = 10.0
READ_TIMEOUT_S: Final = 10.0
"""How long a server may take for its head, and for each part of its body."""
STOP_POLL_S: Final = 0.25
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_PATH_CHARACTERS: Final = "%/:=&?~#+!$,;'@()*[]|"


class Interruption(Protocol):
    """A request to stop reading, such as a threading.Event."""

    def is_set(self) -> bool:
        """Return whether to stop."""
        ...

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds. Return whether to stop."""
        ...


class ReadingStopped(Exception):
    """The interruption of a read asked to stop it."""


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


def get(url: str, headers: Mapping[str, str], tls: ssl.SSLContext, interruption: Interruption) -> Response:
    """Send a GET request. Return the response once its head has arrived.

    Raises OSError, http.client.HTTPException, UnicodeError for an invalid host, or ReadingStopped.
    """
    parts = urlsplit(url)
    host, scheme = (parts.hostname or "").encode("idna").decode(), parts.scheme.lower()
    port = parts.port or _DEFAULT_PORTS[scheme]
    connected = _connect(host, port, interruption)
    if scheme == "https":
        connected = _start_tls(connected, tls, host, interruption)
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
            _require_running(self._interruption)
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


def _connect(host: str, port: int, interruption: Interruption) -> socket.socket:
    """Connect to the first address of the host that answers."""
    failure = OSError("the host has no address")
    for family, address in _resolve(host, port, interruption):
        try:
            return _connect_to(family, address, interruption)
        except OSError as error:
            failure = error
    raise failure


def _resolve(host: str, port: int, interruption: Interruption) -> list[tuple[int, Any]]:
    """Return the families and addresses of the host. The thread that asks for them outlives a stop."""
    found: list[tuple[int, Any]] = []
    failures: list[OSError] = []

    def resolve() -> None:
        try:
            found.extend((entry[0], entry[4]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            failures.append(error)

    resolver = threading.Thread(target=resolve, name=f"resolves {host}", daemon=True)
    resolver.start()
    while resolver.is_alive():
        resolver.join(STOP_POLL_S)
        _require_running(interruption)
    if failures:
        raise failures[0]
    return found


def _connect_to(family: int, address: Any, interruption: Interruption) -> socket.socket:  # noqa: ANN401 - by family
    connecting = socket.socket(family, socket.SOCK_STREAM)
    try:
        connecting.settimeout(0)
        connecting.connect_ex(address)
        _wait_until_connected(connecting, interruption)
    except BaseException:
        connecting.close()
        raise
    connecting.settimeout(STOP_POLL_S)
    return connecting


def _wait_until_connected(connecting: socket.socket, interruption: Interruption) -> None:
    poll = select.poll()
    poll.register(connecting, select.POLLOUT)
    deadline_s = time.monotonic() + CONNECT_TIMEOUT_S
    while not poll.poll(STOP_POLL_S * 1000):
        _require_running(interruption)
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"no connection within {CONNECT_TIMEOUT_S:.0f} s")
    if code := connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(code, os.strerror(code))


def _start_tls(connected: socket.socket, tls: ssl.SSLContext, host: str, interruption: Interruption) -> ssl.SSLSocket:
    """Return the socket after a handshake. It takes a body as cut off if the connection ends without a close notification."""
    deadline_s = time.monotonic() + CONNECT_TIMEOUT_S
    secured = tls.wrap_socket(
        connected, server_hostname=host, do_handshake_on_connect=False, suppress_ragged_eofs=False
    )
    try:
        while True:
            _require_running(interruption)
            try:
                secured.do_handshake()
            except TimeoutError:
                if time.monotonic() > deadline_s:
                    raise
            else:
                return secured
    except BaseException:
        secured.close()
        raise


def _require_running(interruption: Interruption) -> None:
    if interruption.is_set():
        raise ReadingStopped
