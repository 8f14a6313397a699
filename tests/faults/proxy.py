"""A TCP proxy on the loopback interface whose wire can be cut, restored, made slow, and hung up. It knows nothing of what it carries."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Self

CHUNK: Final = 64 * 1024
CONNECT_TIMEOUT_S: Final = 5.0


class Proxy:
    """Carries each connection to `target_port()` of this machine, byte for byte, by two threads.

    While it is cut, nothing comes through either way and nobody is told, as in a network that drops packets; what was sent
    meanwhile arrives once it is restored. (To the kernels at both ends the peer is still there: their own timeouts, which
    would notice a real cut sooner or later, do not. That is the harder case.)
    """

    def __init__(self, target_port: Callable[[], int]) -> None:
        self.delay_s = 0.0
        """How long each byte is on its way, in each direction: half of a round trip. What is sent at once arrives at once."""
        self.connections_accepted = 0
        """Connections so far."""
        self._target_port = target_port
        self._connected = threading.Event()
        self._connected.set()
        self._refuses = False
        self._over = False
        self._open: set[socket.socket] = set()
        self._dropped: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, name=f"proxy {self.port}")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._connected.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        self._thread.join(CONNECT_TIMEOUT_S)

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Lets nothing through while the block lasts, and says nothing."""
        self._connected.clear()
        try:
            yield
        finally:
            self._connected.set()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Hangs up on everybody while the block lasts."""
        self._refuses = True
        self.hang_up()
        try:
            yield
        finally:
            self._refuses = False

    def drop(self) -> None:
        """Forgets all connections without a word: neither end hears anything more, and new ones are carried as before."""
        with self._lock:
            dropped, self._open = self._open, set()
            self._dropped |= dropped

    def hang_up(self) -> None:
        """Ends all connections."""
        with self._lock:
            ends, self._open = self._open, set()
            if self._over:
                ends |= self._dropped
        for end in ends:
            _close(end)

    def _accept(self) -> None:
        while not self._over:
            try:
                front, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._join, args=(front,), name=f"proxy {self.port} joins", daemon=True).start()

    def _join(self, front: socket.socket) -> None:
        """Finds the one behind, and carries what comes from it; what goes to it is another thread's."""
        self._connected.wait()
        try:
            if self._refuses or self._over:
                raise ConnectionRefusedError
            back = socket.create_connection(("127.0.0.1", self._target_port()), CONNECT_TIMEOUT_S)
        except OSError:
            _close(front)
            return
        back.settimeout(None)
        for end in (front, back):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open |= {front, back}
        self.connections_accepted += 1
        there = threading.Thread(target=self._carry, args=(front, back), name=f"proxy {self.port} there", daemon=True)
        there.start()
        self._carry(back, front)
        there.join()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        """Until one of both ends hangs up: then both are closed."""
        under_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        arriving = threading.Thread(
            target=self._deliver, args=(under_way, target), name=f"proxy {self.port} delivers", daemon=True
        )
        arriving.start()
        with contextlib.suppress(OSError):
            while chunk := source.recv(CHUNK):
                if source not in self._dropped:
                    under_way.put((time.monotonic() + self.delay_s, chunk))
        under_way.put((0.0, b""))
        arriving.join()
        with self._lock:
            if source in self._dropped and not self._over:
                return  # nor through a dropped one: both ends stay open until the proxy ends
            self._open -= {source, target}
        for end in (source, target):
            _close(end)

    def _deliver(self, under_way: queue.SimpleQueue[tuple[float, bytes]], target: socket.socket) -> None:
        """Hand over each chunk when its time has come. The end of a connection does not come through a cut either."""
        never = threading.Event()
        while True:
            due_s, chunk = under_way.get()
            if (left_s := due_s - time.monotonic()) > 0:
                never.wait(left_s)
            self._connected.wait()
            if not chunk:
                return
            try:
                target.sendall(chunk)
            except OSError:
                return


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
