"""Test support: the ways to lose a camera. Each is a context manager; the camera is back at its end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from tests.faults.proxy import Proxy
from tests.rtsp.camera import Camera


@dataclass(frozen=True)
class Site:
    """A camera, and the proxy through which it is read."""

    camera: Camera
    proxy: Proxy

    def find_url(self, outage: Outage) -> str:
        """Return the URL at which to read the camera, so that this outage affects it."""
        is_direct = outage not in {reset, hung_up, refused, cut}
        return self.camera.url if is_direct else self.camera.url.replace(str(self.camera.port), str(self.proxy.port))


Outage = Callable[[Site], AbstractContextManager[None]]


@contextmanager
def killed(site: Site) -> Iterator[None]:
    site.camera.kill()
    yield
    site.camera.start()


@contextmanager
def _replaced(site: Site, *, path: str = "cam", launch: str | None = None) -> Iterator[None]:
    """Another camera is at its place."""
    with killed(site):
        site.camera.start(path, launch)
        yield
        site.camera.kill()


@contextmanager
def ended(site: Site) -> Iterator[None]:
    site.camera.end()
    yield
    site.camera.start()


@contextmanager
def frozen(site: Site) -> Iterator[None]:
    site.camera.freeze()
    yield
    site.camera.thaw()


@contextmanager
def reset(site: Site) -> Iterator[None]:
    site.proxy.reset()
    yield


@contextmanager
def hung_up(site: Site) -> Iterator[None]:
    site.proxy.hang_up()
    yield


@contextmanager
def refused(site: Site) -> Iterator[None]:
    with site.proxy.refusing():
        yield


@contextmanager
def cut(site: Site) -> Iterator[None]:
    """No packet comes through, and the connections of before stay dead."""
    with site.proxy.cut():
        yield
        site.proxy.drop()


@contextmanager
def not_found(site: Site) -> Iterator[None]:
    with _replaced(site, path="elsewhere"):
        yield


@contextmanager
def unavailable(site: Site) -> Iterator[None]:
    with _replaced(site, launch="filesrc location=/missing ! h264parse ! rtph264pay name=pay0"):
        yield


@contextmanager
def silent(site: Site) -> Iterator[None]:
    """The camera's machine accepts connections but says nothing. Connections made meanwhile stay so."""
    with killed(site), _listening(site.camera.port, lambda _: None):
        yield


@contextmanager
def curt(site: Site) -> Iterator[None]:
    """The camera's machine accepts connections and closes them."""
    with killed(site), _listening(site.camera.port, socket.socket.close):
        yield


@contextmanager
def _listening(port: int, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    accepted: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:
                return
            accepted.append(caller)
            answer(caller)

    listener = socket.create_server(("127.0.0.1", port))
    thread = threading.Thread(target=accept, name="listener")
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
    _HELD.extend(accepted)


_HELD: list[socket.socket] = []
"""Connections that stay open and silent until the tests are over."""
