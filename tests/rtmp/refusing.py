"""Test support: an RTMP server that answers each client's `connect` in a way of its own."""

from __future__ import annotations

import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_HANDSHAKE_BYTES = 1536
_HEADER_BYTES = 12
_CHUNK_BYTES = 128
_CHUNK_MARK = b"\xc3"
LOGIN = "[ AccessManager.Reject ] : [ code=403 need auth; authmod=adobe ] : "
AGAIN = "[ AccessManager.Reject ] : [ authmod=adobe ] : ?reason=authfailed"


@contextmanager
def answering(*answers: bytes, heard: list[bytes] | None = None) -> Iterator[str]:
    """Answer the first `connect` with the first of these messages, and so on, and all later ones with the last. Yield a stream's URL.

    `heard` gets each `connect`.
    """
    remaining = list(answers)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            hello = self.rfile.read(1 + _HANDSHAKE_BYTES)
            if len(hello) <= _HANDSHAKE_BYTES:
                return
            self.wfile.write(b"\x03" + bytes(_HANDSHAKE_BYTES) + hello[1:])
            self.rfile.read(_HANDSHAKE_BYTES)
            header = self.rfile.read(_HEADER_BYTES)
            if len(header) < _HEADER_BYTES:
                return
            length = int.from_bytes(header[4:7])
            body = self.rfile.read(length + (length - 1) // _CHUNK_BYTES)
            if heard is not None:
                heard.append(body.replace(_CHUNK_MARK, b""))
            self.wfile.write(_in_chunks(remaining.pop(0) if len(remaining) > 1 else remaining[0]))
            self.rfile.read()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, name="refusing RTMP server", daemon=True)
        thread.start()
        try:
            yield f"rtmp://127.0.0.1:{server.server_address[1]}/live/cam"
        finally:
            server.shutdown()
            thread.join()


def error(description: str, redirect: str | None = None) -> bytes:
    """Return the answer that refuses `connect`, which may name another server."""
    extra = b"" if redirect is None else _key("ex") + b"\x03" + _pair("redirect", redirect) + b"\x00\x00\x09"
    return _text("_error") + _number(1) + b"\x05" + _status("NetConnection.Connect.Rejected", description, extra)


def status(code: str) -> bytes:
    """Return a message about the stream, which is an error."""
    return _text("onStatus") + _number(0) + b"\x05" + _status(code, code)


def _status(code: str, description: str, extra: bytes = b"") -> bytes:
    pairs = {"level": "error", "code": code, "description": description}
    return b"\x03" + b"".join(_pair(*pair) for pair in pairs.items()) + extra + b"\x00\x00\x09"


def _in_chunks(body: bytes) -> bytes:
    header = b"\x03" + bytes(3) + len(body).to_bytes(3) + b"\x14" + bytes(4)
    return header + _CHUNK_MARK.join(body[at : at + _CHUNK_BYTES] for at in range(0, len(body), _CHUNK_BYTES))


def _pair(name: str, value: str) -> bytes:
    return _key(name) + _text(value)


def _key(text: str) -> bytes:
    return len(text).to_bytes(2) + text.encode()


def _text(text: str) -> bytes:
    return b"\x02" + _key(text)


def _number(value: int) -> bytes:
    return b"\x00" + struct.pack(">d", value)
