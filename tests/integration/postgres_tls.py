"""A server that speaks TLS before a PostgreSQL that does not. For tests."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SSL_REQUEST = struct.pack("!ii", 8, 80877103)


@contextmanager
def running_tls_proxy(target_port: int, certificate: tuple[Path, Path]) -> Iterator[int]:
    """The port of a server that takes TLS as PostgreSQL does, and hands what it hears to the server behind."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def accept() -> None:
        while True:
            try:
                front, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(front,), daemon=True).start()

    def serve(front: socket.socket) -> None:
        with suppress(OSError), front, socket.create_connection(("127.0.0.1", target_port)) as back:
            if front.recv(len(SSL_REQUEST), socket.MSG_WAITALL) != SSL_REQUEST:
                return  # no client of these tests asks without TLS
            front.sendall(b"S")
            with context.wrap_socket(front, server_side=True) as safe:
                there = threading.Thread(target=carry, args=(safe, back), daemon=True)
                there.start()
                carry(back, safe)
                there.join()

    def carry(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(65536):
                target.sendall(chunk)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    thread = threading.Thread(target=accept, name="speaks TLS")
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()
