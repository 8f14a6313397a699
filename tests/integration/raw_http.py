"""HTTP over a bare socket, for requests that no client library sends."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import httpx


class RawResponse(NamedTuple):
    """The first response on a connection."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The problem's code."""
        problem: dict[str, Any] = json.loads(self.body)
        return str(problem["code"])


@contextmanager
def raw_connection(client: httpx.Client, timeout_s: float = 15.0) -> Iterator[socket.socket]:
    """Open a connection to the client's api."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout_s) as connection:
        yield connection


def read_response(connection: socket.socket, *, has_body: bool = True) -> RawResponse | None:
    """Read one response, or return None if the server closed the connection without one.

    `has_body`: whether to wait for the body that Content-Length announces, which an answer to HEAD does not have.
    """
    data = b""
    while b"\r\n\r\n" not in data:
        received = _receive(connection)
        if not received:
            return None
        data += received
    head, _, body = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    while has_body and len(body) < int(headers.get("content-length", "0")):
        received = _receive(connection)
        if not received:
            break
        body += received
    return RawResponse(int(status_line.split()[1]), headers, body)


def send_raw_request(client: httpx.Client, request: bytes, *, has_body: bool = True) -> RawResponse:
    """Send bytes on a new connection, and return the response."""
    with raw_connection(client) as connection:
        with suppress(ConnectionError):  # the server may refuse before it has read everything
            connection.sendall(request)
        response = read_response(connection, has_body=has_body)
    assert response is not None, "the server closed the connection without a response"
    return response


def wait_until_closed(connection: socket.socket) -> bool:
    """Wait until the server closes the connection."""
    while _receive(connection):
        pass
    return True


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionError:
        return b""
