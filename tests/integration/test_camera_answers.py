"""Whether a camera answers is found out within seconds, whatever its machine does with connections meanwhile."""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest
from tests.http_server import LOOPBACK, recording_first_lines
from tests.integration.api_server import free_port
from tests.integration.certificates import CertificateAuthority
from tests.rtsp.bad_servers import CONNECTIONS_TO_FILL, camera_url, refusing, silent

from vidflow.domain.errors import Unavailable
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.video import ReadingStopped, camera_answer
from vidflow.infra.video.camera_answer import require_answer

ANSWER = b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\n"


def ask(url: str, access: SourceAccess = LOOPBACK) -> float:
    """Require an answer. Return the time at which it came."""
    require_answer(url, access, threading.Event())
    return time.monotonic()


@contextmanager
def asking(url: str) -> Iterator[list[float]]:
    """Require an answer on another thread while the block runs. Yield a list that gets the time at which it came."""
    answered: list[float] = []
    thread = threading.Thread(target=lambda: answered.append(ask(url)), name="asks")
    thread.start()
    try:
        yield answered
    finally:
        thread.join()


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_any_answer_counts_also_over_tls(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*authority.issue("camera", "IP:127.0.0.1"))
    with recording_first_lines(tls, ANSWER) as (port, lines):
        ask(f"rtsps://127.0.0.1:{port}/cam", msgspec.structs.replace(LOOPBACK, ca_file=str(authority.ca)))
        assert lines == [f"OPTIONS rtsp://127.0.0.1:{port}/cam RTSP/1.0".encode()]
        ask(f"rtsps://127.0.0.1:{port}/cam")  # refusing its certificate is left to the attempt to read it
    with refusing("404 Not Found") as url:
        ask(url)
        ask(url.replace("127.0.0.1", "localhost"))


def test_sources_of_other_kinds_are_not_asked() -> None:
    ask(f"http://127.0.0.1:{free_port()}/live.ts")


def test_a_refused_or_closed_connection_is_reported_at_once() -> None:
    began_s = time.monotonic()
    with pytest.raises(Unavailable, match="refused") as refused:
        ask(camera_url(free_port()))
    with recording_first_lines() as (port, lines), pytest.raises(Unavailable, match="closed the connection") as closed:
        ask(f"rtsp://user:secret@127.0.0.1:{port}/cam")
    assert {refused.value.code, closed.value.code} == {"source_unreachable"}
    assert lines == [f"OPTIONS rtsp://127.0.0.1:{port}/cam RTSP/1.0".encode()]
    assert time.monotonic() - began_s < 3


@pytest.mark.parametrize("scheme", ["rtsp", "rtsps"])
def test_a_silent_camera_is_given_up_and_leaves_no_connection(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setattr(camera_answer, "ANSWER_S", 0.8)
    with silent() as url:
        before = count_descriptors()
        with pytest.raises(Unavailable) as raised:
            ask(url.replace("rtsp", scheme))
        assert count_descriptors() == before
    assert raised.value.code == "source_timeout"


def test_a_stop_ends_the_wait_for_an_answer() -> None:
    stop = threading.Event()
    with silent() as url:
        timer = threading.Timer(0.3, stop.set)
        timer.start()
        began_s = time.monotonic()
        with pytest.raises(ReadingStopped):
            require_answer(url, LOOPBACK, stop)
    assert time.monotonic() - began_s < 3


def test_a_camera_that_takes_long_to_answer_is_waited_for_on_the_first_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, asking(camera_url(server.getsockname()[1])) as answered:
        first, _ = server.accept()
        with first, closing(server.accept()[0]), closing(server.accept()[0]):  # it was asked twice more
            assert not answered
            first.sendall(ANSWER)


def test_an_answer_counts_although_another_connection_fails_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_answer, "REPEAT_S", 0.0)
    ours, theirs = socket.socketpair()
    connections = iter(["answered", "closed"])

    def ask_once(_address: object) -> camera_answer.Question:
        if next(connections) == "answered":
            yield ours.fileno(), selectors.EVENT_READ
        else:
            theirs.sendall(ANSWER)
            raise ConnectionResetError

    with ours, theirs:
        camera_answer._wait_for_answer(["the camera"], ask_once, threading.Event())


def test_the_return_of_a_frozen_camera_is_noticed_although_its_kernel_dropped_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel repeats a dropped attempt to connect after one second and after three."""
    monkeypatch.setattr(camera_answer, "REPEAT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        waiting = [socket.socket() for _ in range(CONNECTIONS_TO_FILL)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(server.getsockname())
        with asking(camera_url(server.getsockname()[1])) as answered:
            time.sleep(1.1)  # the camera is frozen
            assert not answered
            thawed_s = time.monotonic()
            for each in waiting:
                each.close()
            server.settimeout(5.0)
            while not answered:
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(1.0)
                    if connection.recv(1024):
                        connection.sendall(ANSWER)
                        break
    assert answered[0] - thawed_s < 1.5
