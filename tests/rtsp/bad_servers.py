"""Test support: servers at which no camera answers as it should. Each is a context manager that yields the URL of a camera there."""

from __future__ import annotations

import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

CONNECTIONS_TO_FILL = 4
"""More than the kernel holds for a listener with a backlog of 0."""


def camera_url(port: int) -> str:
    return f"rtsp://127.0.0.1:{port}/cam"


@contextmanager
def silent() -> Iterator[str]:
    """A server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield camera_url(server.getsockname()[1])


@contextmanager
def full() -> Iterator[str]:
    """A server whose backlog is full: attempts to connect get no answer, like those that a firewall drops."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(CONNECTIONS_TO_FILL):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield camera_url(server.getsockname()[1])


@contextmanager
def refusing(status: str) -> Iterator[str]:
    """An RTSP server that answers each request with this status line, such as "404 Not Found"."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            sequence = "0"
            for line in self.rfile:
                if match := re.match(rb"CSeq: *(\d+)", line, re.IGNORECASE):
                    sequence = match.group(1).decode()
                if line == b"\r\n":
                    self.wfile.write(f"RTSP/1.0 {status}\r\nCSeq: {sequence}\r\n\r\n".encode())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, name="refusing camera", daemon=True)
        thread.start()
        try:
            yield camera_url(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()
