"""Certificates made by openssl, and a server that speaks TLS before a PostgreSQL that does not. For tests."""

from __future__ import annotations

import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

SSL_REQUEST = struct.pack("!ii", 8, 80877103)


class Certificate(NamedTuple):
    certificate: Path
    key: Path


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def authority(folder: Path, name: str) -> Certificate:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed here")
    made = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
    _openssl(
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", made.key, "-out", made.certificate, "-days", "2",
        "-subj", f"/CN={name}",
    )  # fmt: skip
    return made


def issued(by: Certificate, folder: Path, name: str, *, host: str, days: int) -> Certificate:
    """A server's certificate. One of `days` before now has expired."""
    made, request, names = Certificate(folder / f"{name}.crt", folder / f"{name}.key"), folder / "csr", folder / "names"
    names.write_text(f"subjectAltName=DNS:{host}")
    _openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", made.key, "-out", request, "-subj", f"/CN={host}")
    _openssl(
        "x509", "-req", "-in", request, "-CA", by.certificate, "-CAkey", by.key, "-CAcreateserial", "-out", made.certificate,
        "-days", str(days), "-extfile", names,
    )  # fmt: skip
    return made


@contextmanager
def speaking_tls(port_behind: int, shows: Certificate) -> Iterator[int]:
    """The port of a server that takes TLS as PostgreSQL does, and hands what it hears to the server behind."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*shows)
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def accept() -> None:
        while True:
            try:
                front, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(front,), daemon=True).start()

    def serve(front: socket.socket) -> None:
        with suppress(OSError), front, socket.create_connection(("127.0.0.1", port_behind)) as back:
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
