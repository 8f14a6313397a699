"""An HTTP server on loopback with bad habits, to read sources from. Each connection has a thread and serves one request."""

from __future__ import annotations

import http.server
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from tests.broadcast import Broadcast

from vidflow.domain.source_access import SourceAccess

LOOPBACK: Final = SourceAccess(networks=("127.0.0.0/8", "::1/128"))
"""Lets sources be at this server."""
CHUNK_BYTES: Final = 10_000


class Pauses(threading.Event):
    """An interruption that records pauses instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return self.is_set()


@dataclass
class Habits:
    """What the server serves, and how it misbehaves. A test may change it while the server runs.

    `length`: the server states a Content-Length; otherwise the body is `chunked`, or ends with the connection.
    `answers`: raw responses (or statuses with headers) to the first requests. `break_after`: bytes of the body after which each
    connection ends; with `resets`, by a reset. `part_bytes`: the most that one range request gets. `drip_s`: pause after each
    byte. `live`: sent in place of the body to each connection, from its present
    place on. `find`: returns the body at a path, None for 404, in place of `body`.
    `accepts`: value of the Authorization header without which it answers 401 and `challenge`.
    """

    body: bytes
    ranges: bool = True
    length: bool = True
    chunked: bool = False
    break_after: int | None = None
    resets: bool = False
    answers: list[tuple[int, dict[str, str]] | bytes] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"1"'})
    content_range: str | None = None
    part_bytes: int | None = None
    drip_s: float | None = None
    live: Broadcast | None = None
    find: Callable[[str], bytes | None] | None = None
    accepts: str | None = None
    challenge: str = 'Basic realm="test"'
    requests: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def ranges_requested(self) -> list[str]:
        """The Range headers of all requests."""
        return [request.get("range", "") for request in self.requests]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, habits: Habits, stop: threading.Event, *arguments: object) -> None:
        self.habits, self.stop = habits, stop
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, *_: object) -> None:
        """Log nothing, to keep the test output readable."""

    def do_GET(self) -> None:
        habits, self.close_connection = self.habits, True
        habits.requests.append({name.lower(): value for name, value in self.headers.items()})
        habits.paths.append(self.path)
        if habits.answers:
            self._answer(habits.answers.pop(0))
        elif habits.accepts is not None and not self.headers.get("Authorization", "").startswith(habits.accepts):
            self._answer((401, {"WWW-Authenticate": habits.challenge}))
        elif habits.live is not None:
            self._send_live(habits.live)
        else:
            self._serve()

    def _answer(self, answer: tuple[int, dict[str, str]] | bytes) -> None:
        if isinstance(answer, bytes):
            self.wfile.write(answer)
            return
        status, headers = answer
        self.send_response(status)
        for name, value in ({"Content-Length": "0"} | headers).items():
            self.send_header(name, value)
        self.end_headers()

    def _serve(self) -> None:
        habits = self.habits
        wanted = self.headers.get("Range", "")
        is_same = self.headers.get("If-Range") in {None, habits.headers.get("ETag")}
        is_part = habits.ranges and is_same and bool(wanted)
        first = int(wanted[len("bytes=") : -1]) if is_part else 0
        whole = habits.body if habits.find is None else habits.find(self.path)
        if whole is None:
            self._answer((404, {}))
            return
        size = len(whole)
        if first >= size and is_part:
            self._answer((416, {"Content-Range": f"bytes */{size}"}))
            return
        body = whole[first:]
        if is_part and habits.part_bytes is not None:
            body = body[: habits.part_bytes]
        self.send_response(206 if is_part else 200)
        for name, value in habits.headers.items():
            self.send_header(name, value)
        if is_part:
            self.send_header("Content-Range", habits.content_range or f"bytes {first}-{first + len(body) - 1}/{size}")
        if habits.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif habits.length and "Content-Length" not in habits.headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self._send(body)

    def _send_live(self, live: Broadcast) -> None:
        self.send_response(200)
        for name, value in self.habits.headers.items():
            self.send_header(name, value)
        self.end_headers()
        for data in live.send_from_now_on(self.stop):
            self.wfile.write(data)
        if live.resets:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _send(self, body: bytes) -> None:
        habits = self.habits
        sent = body if habits.break_after is None else body[: habits.break_after]
        if habits.drip_s is not None:
            for byte in sent:
                self.wfile.write(bytes([byte]))
                if self.stop.wait(habits.drip_s):
                    return
        elif habits.chunked:
            for at in range(0, len(sent), CHUNK_BYTES):
                piece = sent[at : at + CHUNK_BYTES]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            if len(sent) == len(body):
                self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(sent)
        if habits.resets and len(sent) < len(body):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Ignore clients that close a connection early, which is what a seek does."""


@contextmanager
def serving(habits: Habits, tls: ssl.SSLContext | None = None, name: str = "video.mp4") -> Iterator[str]:
    """Run the server. Yield the URL of its only file, which is served at every path."""
    stop = threading.Event()
    with _Server(("127.0.0.1", 0), partial(_Handler, habits, stop)) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(
            target=partial(server.serve_forever, poll_interval=0.01), name="http server with bad habits", daemon=True
        )
        thread.start()
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}/{name}"
        stop.set()
        server.shutdown()
        thread.join()


@contextmanager
def listening(*, backlog: Sequence[bytes] = ()) -> Iterator[int]:
    """Accept connections on loopback, send the same bytes on each, and never close them. Yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.append(connection)
                for data in backlog:
                    connection.sendall(data)

        thread = threading.Thread(target=accept, name="silent server", daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in connections:
            connection.close()


@contextmanager
def recording_first_lines(tls: ssl.SSLContext | None = None, answer: bytes = b"") -> Iterator[tuple[int, list[bytes]]]:
    """Accept connections on loopback, with `tls` if it is given, and close each after its first line and the `answer` to it.

    Yield the port and these lines.
    """
    lines: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    try:
                        stream = connection if tls is None else tls.wrap_socket(connection, server_side=True)
                        with stream:
                            lines.append(stream.recv(4096).partition(b"\r\n")[0])
                            stream.sendall(answer)
                    except OSError:
                        if tls is None:
                            raise  # with TLS, a client that refuses the certificate ends the handshake

        thread = threading.Thread(target=serve, name="camera", daemon=True)
        thread.start()
        yield server.getsockname()[1], lines
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
