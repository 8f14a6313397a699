"""A TCP proxy on the loopback interface that can cut, delay, drop and close connections. It does not read what it forwards."""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Self

CHUNK: Final = 64 * 1024
CONNECT_TIMEOUT_S: Final = 5.0


class Proxy:
    """Forward each connection to `target_port()` on this machine, byte for byte.

    During a cut nothing comes through in either direction and no end is notified, as in a network that drops packets. What was
    sent meanwhile arrives after the cut. The kernels at both ends still acknowledge packets, so TCP timeouts, which would end a
    real cut eventually, do not. This makes the proxy's cut harder to detect than a real one.
    """

    def __init__(self, target_port: Callable[[], int]) -> None:
        self.delay_s = 0.0
        """Delay in each direction, which is half of a round trip. It does not limit the throughput."""
        self.connections_accepted = 0
        """The number of connections so far."""
        self._target_port = target_port
        self._connected = threading.Event()
        self._connected.set()
        self._refuses = False
        self._over = False
        self._open: set[socket.socket] = set()
        self._dropped: set[socket.socket] = set()
        self._reset: set[socket.socket] = set()
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
        """Let nothing through while the block runs, without closing connections."""
        self._connected.clear()
        try:
            yield
        finally:
            self._connected.set()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Close all connections, and new ones at once, while the block runs."""
        self._refuses = True
        self.hang_up()
        try:
            yield
        finally:
            self._refuses = False

    def drop(self) -> None:
        """Silently stop forwarding the open connections. New connections are forwarded as before."""
        with self._lock:
            dropped, self._open = self._open, set()
            self._dropped |= dropped

    def hang_up(self) -> None:
        """Close all connections."""
        with self._lock:
            ends, self._open = self._open, set()
            if self._over:
                ends |= self._dropped
        for end in ends:
            _close(end)

    def reset(self) -> None:
        """Close all connections with a reset (RST), as a machine does that was restarted."""
        with self._lock:
            ends, self._open = self._open, set()
            self._reset |= ends
        for end in ends:
            _abort(end)

    def _accept(self) -> None:
        while not self._over:
            try:
                front, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(
                target=self._connect, args=(front,), name=f"proxy {self.port} connection", daemon=True
            ).start()

    def _connect(self, front: socket.socket) -> None:
        """Connect to the target and forward both directions, one of them on another thread."""
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
        upstream = threading.Thread(
            target=self._forward, args=(front, back), name=f"proxy {self.port} upstream", daemon=True
        )
        upstream.start()
        self._forward(back, front)
        upstream.join()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        """Forward one direction until an end closes the connection, then close both ends."""
        chunks: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        delivery = threading.Thread(
            target=self._deliver, args=(chunks, target), name=f"proxy {self.port} delivery", daemon=True
        )
        delivery.start()
        with contextlib.suppress(OSError):
            while chunk := source.recv(CHUNK):
                if source not in self._dropped:
                    chunks.put((time.monotonic() + self.delay_s, chunk))
        chunks.put((0.0, b""))
        delivery.join()
        with self._lock:
            if source in self._dropped and not self._over:
                return  # a dropped connection stays open at both ends until the proxy ends
            self._open -= {source, target}
        for end in (source, target):
            (_abort if end in self._reset else _close)(end)

    def _deliver(self, chunks: queue.SimpleQueue[tuple[float, bytes]], target: socket.socket) -> None:
        """Send each chunk when it is due. During a cut nothing is sent, not even the end of the connection (b"")."""
        never = threading.Event()
        while True:
            due_s, chunk = chunks.get()
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


def _abort(end: socket.socket) -> None:
    """Close a connection with a reset. The kernel sends it once no thread reads the connection any more."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RD)
    end.close()
