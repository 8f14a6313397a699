"""The proxy of the fault suite: a cut must be a cut, or the tests that lean on it show nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from tests.faults.proxy import Proxy

SHORT_S = 0.2


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that says again what it hears."""

    def serve() -> None:
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(caller,), daemon=True).start()

    def answer(caller: socket.socket) -> None:
        with caller:
            while said := caller.recv(1000):
                caller.sendall(said)

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve)
    thread.start()
    yield int(listener.getsockname()[1])
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


def test_nothing_comes_through_a_cut_and_all_of_it_afterwards(proxy: Proxy, caller: socket.socket) -> None:
    caller.settimeout(SHORT_S)
    with proxy.cut():
        caller.sendall(b"lost?")
        with pytest.raises(TimeoutError):
            caller.recv(100)
    caller.settimeout(5)
    assert caller.recv(100) == b"lost?"


def test_who_comes_during_a_cut_is_served_behind_it(proxy: Proxy) -> None:
    with proxy.cut():
        late = socket.create_connection(("127.0.0.1", proxy.port), 5)
        late.sendall(b"late")
        late.settimeout(SHORT_S)
        with pytest.raises(TimeoutError):
            late.recv(100)
    with late:
        late.settimeout(5)
        assert late.recv(100) == b"late"


def test_a_refusing_one_hangs_up_on_old_and_new(proxy: Proxy, caller: socket.socket) -> None:
    with proxy.refusing():
        assert caller.recv(100) == b""
        with socket.create_connection(("127.0.0.1", proxy.port), 5) as other:
            assert other.recv(100) == b""
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as other:
        other.sendall(b"again")
        assert other.recv(100) == b"again"
