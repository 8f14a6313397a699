"""Connections to the servers of sources, only to addresses that the operator allows, with a way to stop at once."""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
import time
from typing import Any, Final, Protocol

from vidflow.domain.errors import SourceError
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.telemetry.logs import log

_log = log("sources")

CONNECT_TIMEOUT_S: Final = 10.0
STOP_POLL_S: Final = 0.25


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


def require_running(interruption: Interruption) -> None:
    """Raise ReadingStopped if the interruption asks for it."""
    if interruption.is_set():
        raise ReadingStopped


def resolve(host: str, port: int, access: SourceAccess, interruption: Interruption, display_name: str) -> list[Any]:
    """Return the socket addresses of the host that a source may have. Connect to these, since the host may get others.

    Raises OSError if it has none, SourceError if none is allowed, or ReadingStopped. The error, which a client may see, does not
    name the addresses. The thread that asks for them outlives a stop.
    """
    found: list[Any] = []
    failures: list[OSError] = []

    def look_up() -> None:
        try:
            found.extend(entry[4] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            failures.append(error)

    resolver = threading.Thread(target=look_up, name=f"resolves {host}", daemon=True)
    resolver.start()
    while resolver.is_alive():
        resolver.join(STOP_POLL_S)
        require_running(interruption)
    if failures:
        raise failures[0]
    allowed = [address for address in found if access.allows(address[0])]
    if found and not allowed:
        _log.warning("source_address_refused", source=display_name, host=host, address=found[0][0])
        raise SourceError(
            f"{display_name} leads to the host {host}, which has no public address. If it is meant, the operator can allow its network"
            " (--allow-source-network). The runner's log names the address.",
            code="source_refused",
        )
    return allowed


def connect(
    host: str,
    port: int,
    access: SourceAccess,
    interruption: Interruption,
    display_name: str,
) -> socket.socket:
    """Connect to the first allowed address of the host that answers. Raises like `resolve`."""
    failure = OSError("the host has no address")
    for address in resolve(host, port, access, interruption, display_name):
        try:
            return _connect_to(address, interruption)
        except OSError as error:
            failure = error
    raise failure


def start_tls(
    connected: socket.socket,
    tls: ssl.SSLContext,
    host: str,
    interruption: Interruption,
) -> ssl.SSLSocket:
    """Return the socket after a handshake. It takes data as cut off if the connection ends without a close notification."""
    deadline_s = time.monotonic() + CONNECT_TIMEOUT_S
    secured = tls.wrap_socket(
        connected, server_hostname=host, do_handshake_on_connect=False, suppress_ragged_eofs=False
    )
    try:
        while True:
            require_running(interruption)
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


def receive(connection: socket.socket, deadline_s: float, interruption: Interruption) -> bytes:
    """Return the next bytes, b"" if the connection ended. Raises TimeoutError at the deadline, or ReadingStopped."""
    while True:
        require_running(interruption)
        try:
            return connection.recv(4096)
        except TimeoutError:
            if time.monotonic() > deadline_s:
                raise


def _connect_to(address: Any, interruption: Interruption) -> socket.socket:  # noqa: ANN401 - by its family
    connecting = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
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
        require_running(interruption)
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"no connection within {CONNECT_TIMEOUT_S:.0f} s")
    if code := connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(code, os.strerror(code))
