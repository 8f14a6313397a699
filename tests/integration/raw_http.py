"""HTTP over a bare socket, for requests that no client library sends."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import httpx


class RawResponse(NamedTuple):
    """What the server wrote until it closed, or for the first answer's length."""

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
    """A connection to the api of the client."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout_s) as connection:
        yield connection


def read_response(connection: socket.socket) -> RawResponse | None:
    """One answer; None where the server closed without any."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = _received(connection)
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        more = _received(connection)
        if not more:
            break
        body += more
    return RawResponse(int(first.split()[1]), headers, body)


def send_raw_request(client: httpx.Client, request: bytes) -> RawResponse:
    """The answer to bytes on a connection of their own."""
    with raw_connection(client) as connection:
        with suppress(ConnectionError):  # the server may refuse before it has read all
            connection.sendall(request)
        answer = read_response(connection)
    assert answer is not None, "the server answers"
    return answer


def wait_until_closed(connection: socket.socket) -> bool:
    """Wait until the server closes the connection."""
    while _received(connection):
        pass
    return True


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionError:
        return b""
