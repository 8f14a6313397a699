"""The proxy of the fault suite cuts and refuses connections. Otherwise the tests that use it would show nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
from tests.faults.proxy import Proxy

SHORT_S = 0.2


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of an echo server."""

    def serve() -> None:
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(caller,), daemon=True).start()

    def answer(caller: socket.socket) -> None:
        with caller, contextlib.suppress(ConnectionResetError):
            while data := caller.recv(1000):
                caller.sendall(data)

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with Proxy(lambda: echo) as proxy:
        yield proxy


@pytest.fixture
def caller(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as caller:
        caller.sendall(b"hello")
        assert caller.recv(100) == b"hello"
        yield caller


def test_data_sent_during_a_cut_arrives_after_it(proxy: Proxy, caller: socket.socket) -> None:
    caller.settimeout(SHORT_S)
    with proxy.cut():
        caller.sendall(b"lost?")
        with pytest.raises(TimeoutError):
            caller.recv(100)
    caller.settimeout(5)
    assert caller.recv(100) == b"lost?"


def test_a_connection_made_during_a_cut_works_after_it(proxy: Proxy) -> None:
    with proxy.cut():
        late = socket.create_connection(("127.0.0.1", proxy.port), 5)
        late.sendall(b"late")
        late.settimeout(SHORT_S)
        with pytest.raises(TimeoutError):
            late.recv(100)
    with late:
        late.settimeout(5)
        assert late.recv(100) == b"late"


def test_a_refusing_proxy_closes_old_and_new_connections(proxy: Proxy, caller: socket.socket) -> None:
    with proxy.refusing():
        assert caller.recv(100) == b""
        with socket.create_connection(("127.0.0.1", proxy.port), 5) as other:
            assert other.recv(100) == b""
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as other:
        other.sendall(b"again")
        assert other.recv(100) == b"again"


def test_a_reset_is_not_a_usual_end_and_later_connections_work(proxy: Proxy, caller: socket.socket) -> None:
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        caller.recv(100)
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as other:
        other.sendall(b"again")
        assert other.recv(100) == b"again"
