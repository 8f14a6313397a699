"""Clients that are slow, large, many or gone: each is bounded, the others are served, and /health/live answers all the while."""
# ruff: noqa: E501, S311 - tables of cases; damage that is the same each time

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from random import Random
from typing import Any

import httpx
import psycopg
import pytest
from tests.integration.api_server import SOURCE_URL, create_scenario, is_lock_awaited, ready_api, wait_until
from tests.integration.delivery import print_figure
from tests.integration.raw_http import RawResponse, raw_connection, read_response, send_raw_request, wait_until_closed

from vidflow.infra.process.memory import resident_bytes
from vidflow.roles.api import app
from vidflow.roles.api.connections import ConnectionLimits
from vidflow.settings import ApiOptions

HOST = b"Host: localhost\r\n"
GET = b"GET /scenario HTTP/1.1\r\n" + HOST + b"\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\n" + HOST + b"\r\n"
POST = b"POST /scenario/init HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
BODY = f'{{"source": "{SOURCE_URL}", "model": "motion"}}'.encode()
SHORT = ConnectionLimits(
    head_s=0.8, reserved_head_s=0.4, body_grace_s=0.8, response_grace_s=1.0, body_bytes_per_s=2000, idle_s=1, linger_s=0.5, reserved=10, check_interval_s=0.1
)  # fmt: skip
PATIENT = ConnectionLimits(
    head_s=100,
    reserved_head_s=100,
    body_grace_s=100,
    response_grace_s=100,
    idle_s=100,
    reserved=10,
    check_interval_s=0.1,
)
"""Nothing is late within a test."""


@contextmanager
def limited(database_url: str, limits: ConnectionLimits, connections: int = 1000) -> Iterator[httpx.Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "LIMITS", limits)
        with ready_api(ApiOptions(database_url=database_url, max_connections=connections)) as client:
            yield client


@pytest.fixture(scope="module")
def hasty(database_url: str) -> Iterator[httpx.Client]:
    """An api whose patience is short."""
    with limited(database_url, SHORT) as client:
        yield client


@pytest.fixture(scope="module")
def patient(database_url: str) -> Iterator[httpx.Client]:
    with limited(database_url, PATIENT) as client:
        yield client


@pytest.fixture
def quiet_logs(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """No client, whatever it does, is an error of the server."""
    yield caplog
    records = caplog.get_records("call")
    errors = [getattr(one, "vidflow_fields", one.getMessage()) for one in records if one.levelno >= logging.ERROR]
    assert errors == []


def refusals(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The fields of the lines that tell of refused connections."""
    return [
        getattr(record, "vidflow_fields", {})
        for record in caplog.records
        if record.getMessage() == "connections_refused"
    ]


def is_live(client: httpx.Client) -> bool:
    """As a load balancer asks: on a connection of its own."""
    return send_raw_request(client, LIVE).status == 200


def feed(connection: socket.socket, piece: bytes, pause_s: float) -> RawResponse | None:
    """Send a piece again and again until the server answers or closes."""
    gone = threading.Event()

    def send() -> None:
        with suppress(OSError):
            while not gone.wait(pause_s):
                connection.sendall(piece)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        return read_response(connection)
    finally:
        gone.set()
        thread.join()


# --- heads


@pytest.mark.usefixtures("quiet_logs")
def test_a_head_that_comes_drop_by_drop_is_cut_off(hasty: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with raw_connection(hasty) as connection:
        connection.sendall(b"GET /scenario HTTP/1.1\r\n")
        answer = feed(connection, b"X-Drop: 1\r\n", 0.05)
    assert answer is not None
    assert (answer.status, answer.code, answer.headers["connection"]) == (408, "head_late", "close")
    wait_until(lambda: any(line.get("head_late") for line in refusals(caplog)), "it is logged")


def test_a_connection_on_which_nothing_comes_is_closed(
    hasty: httpx.Client, quiet_logs: pytest.LogCaptureFixture
) -> None:
    for sent in (b"", b"\r\n", LIVE):
        with raw_connection(hasty) as connection:
            connection.sendall(sent)
            assert wait_until_closed(connection)
    assert not any("too_many" in line for line in refusals(quiet_logs))


def test_empty_lines_without_end_are_no_request(hasty: httpx.Client) -> None:
    with raw_connection(hasty) as connection:
        assert feed(connection, b"\r\n" * 50, 0.02) is not None


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"x" * 40_000, b"GET /scenario HTTP/1.1\r\nX: " + b"x" * 40_000, b"GET /scenario HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
        b"GET /scenario HTTP/1.1\r\n" + b"x" * 60_000, b"GET /scenario?" + b"x" * 33_000 + b" HTTP/1.1\r\n",
    ],
    ids=["path", "header", "headers", "name", "query"],
)  # fmt: skip
def test_a_head_that_is_too_large_is_refused(hasty: httpx.Client, head: bytes) -> None:
    for end in (b"\r\n\r\n", b" HTTP/1.1\r\n\r\n"):
        answer = send_raw_request(hasty, head + end)
        assert (answer.status, answer.code) == (431, "head_too_large")


def test_a_head_just_below_the_limit_is_served(patient: httpx.Client) -> None:
    padding = b"X: " + b"x" * (SHORT.head_bytes - 200) + b"\r\n"
    assert send_raw_request(patient, GET[:-2] + padding + b"\r\n").status == 200


def test_a_header_of_a_hundred_megabytes_takes_no_memory(
    patient: httpx.Client, quiet_logs: pytest.LogCaptureFixture
) -> None:
    before = resident_bytes(os.getpid())
    sent = 0
    with raw_connection(patient) as connection, suppress(OSError):
        connection.sendall(b"GET /scenario HTTP/1.1\r\nX: ")
        for _ in range(100):
            connection.sendall(b"x" * 1024**2)
            sent += 1
    grown = resident_bytes(os.getpid()) - before
    print_figure(f"a header of 100 MB: {sent} MB were sent and dropped, {grown / 1e6:.1f} MB more memory")
    assert grown < 20e6
    assert is_live(patient)
    wait_until(lambda: any(line.get("head_too_large") for line in refusals(quiet_logs)), "it is logged")


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
    ],
)
def test_what_is_not_http_is_told_so(
    hasty: httpx.Client, quiet_logs: pytest.LogCaptureFixture, nonsense: bytes
) -> None:
    answer = send_raw_request(hasty, nonsense)
    assert (answer.status, answer.code) == (400, "request_malformed")
    assert quiet_logs.text.count("Invalid HTTP") == 0


# --- bodies


def test_a_body_that_comes_drop_by_drop_is_cut_off(hasty: httpx.Client, quiet_logs: pytest.LogCaptureFixture) -> None:
    with raw_connection(hasty) as connection:
        connection.sendall(POST + b"Content-Length: 100000\r\n\r\n")
        answer = feed(connection, b" ", 0.05)
    assert answer is not None
    assert (answer.status, answer.code) == (408, "body_late")
    wait_until(lambda: any(line.get("body_late") for line in refusals(quiet_logs)), "it is logged")


def test_a_body_that_keeps_up_the_pace_is_taken(hasty: httpx.Client) -> None:
    padded = b" " * 6000 + BODY
    with raw_connection(hasty) as connection:
        connection.sendall(POST + f"Content-Length: {len(padded)}\r\n\r\n".encode())
        for start in range(0, len(padded), 500):
            connection.sendall(padded[start : start + 500])
            time.sleep(0.1)  # slower than the grace time alone would allow
        answer = read_response(connection)
    assert answer is not None
    assert answer.status == 201


def test_headers_after_a_body_are_bounded_and_have_no_effect(hasty: httpx.Client) -> None:
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n" + f"{len(BODY):x}\r\n".encode() + BODY + b"\r\n0\r\n"
    assert (
        send_raw_request(hasty, chunked + b"Host: evil.example\r\nOrigin: https://evil.example\r\n\r\n").status == 201
    )
    assert send_raw_request(hasty, chunked + b"X: y\r\n" * 20_000 + b"\r\n").status in {201, 431}


def test_a_refusal_reaches_a_client_that_still_sends(patient: httpx.Client) -> None:
    large = b"Content-Length: 50000000\r\n\r\n" + b" " * 20_000_000
    for request, status in ((POST + large, 413), (POST.replace(b"localhost", b"evil.example") + large, 421)):
        assert send_raw_request(patient, request).status == status


def test_a_body_that_was_announced_and_is_malformed_is_no_error(
    patient: httpx.Client, quiet_logs: pytest.LogCaptureFixture
) -> None:
    announced = POST + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\nnot a length\r\n"
    assert send_raw_request(patient, announced).status == 400
    assert is_live(patient)
    assert "Traceback" not in quiet_logs.text


# --- answers


def test_a_client_that_does_not_read_is_cut_off(hasty: httpx.Client, quiet_logs: pytest.LogCaptureFixture) -> None:
    with raw_connection(hasty) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        def pours() -> bool:
            with suppress(OSError):
                connection.settimeout(0.2)
                connection.sendall(b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\n" + HOST + b"\r\n")
            return any(line.get("answer_late") for line in refusals(quiet_logs))

        wait_until(pours, "it is cut off")


# --- many


def test_where_all_connections_hang_the_health_is_still_answered(
    database_url: str, quiet_logs: pytest.LogCaptureFixture
) -> None:
    with limited(database_url, PATIENT, connections=300) as client, ExitStack() as hanging:
        client.close()  # its connection takes one of them
        opened = [hanging.enter_context(raw_connection(client)) for _ in range(500)]
        for number, connection in enumerate(opened):
            with suppress(OSError):
                connection.sendall(
                    (b"GET /scenario HTTP/1.1\r\n", POST + b"Content-Length: 90\r\n\r\n", b"")[number % 3]
                )
        began_s = time.monotonic()
        for _ in range(20):
            assert is_live(client)
        print_figure(
            f"20 questions about the health beside 300 hanging connections: {time.monotonic() - began_s:.2f} s"
        )
        answer = send_raw_request(client, GET)
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "too_many_connections", "1")
        wait_until(lambda: sum(line.get("too_many", 0) for line in refusals(quiet_logs)) >= 190, "they are counted")
        assert len(refusals(quiet_logs)) < 50
        for connection in opened[:50]:
            connection.close()
        wait_until(lambda: send_raw_request(client, GET).status == 200, "there is room again")


def test_requests_ahead_of_their_answers_are_bounded(patient: httpx.Client) -> None:
    with raw_connection(patient) as connection:
        connection.sendall(LIVE * 10)
        assert [answer.status for _ in range(10) if (answer := read_one(connection))] == [200] * 10
    with raw_connection(patient) as connection, suppress(ConnectionError):
        connection.sendall(LIVE * 5000)
        assert wait_until_closed(connection)
    assert is_live(patient)


def read_one(connection: socket.socket) -> RawResponse | None:
    """An answer, and no byte of the next."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    lines = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:-2])
    return RawResponse(int(head.split()[1]), lines, connection.recv(int(lines["content-length"]), socket.MSG_WAITALL))


# --- hang-ups


def hang_up(connection: socket.socket) -> None:
    """Reset rather than end the connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


@pytest.mark.parametrize("how", [hang_up, socket.socket.close], ids=["reset", "close"])
@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /scen", POST, POST + b"Content-Length: 90\r\n\r\n", POST + b"Content-Length: 90\r\n\r\n{", POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n12"],
    ids=["nothing", "line", "head", "before the body", "body", "chunk"],
)  # fmt: skip
def test_a_client_that_hangs_up_is_no_error(
    patient: httpx.Client, quiet_logs: pytest.LogCaptureFixture, sent: bytes, how: Callable[[socket.socket], None]
) -> None:
    with raw_connection(patient) as connection:
        connection.sendall(sent)
        how(connection)
    assert create_scenario(patient)["state"] == "init_startup"
    wait_until(lambda: "vidflow_http_requests" in patient.get("/metrics").text, "the server has seen it")
    assert "Traceback" not in quiet_logs.text


@pytest.mark.parametrize("how", [hang_up, socket.socket.close], ids=["reset", "close"])
def test_a_client_that_hangs_up_before_the_answer_is_no_error(
    patient: httpx.Client, database_url: str, quiet_logs: pytest.LogCaptureFixture, how: Callable[[socket.socket], None]
) -> None:
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE scenarios IN ACCESS EXCLUSIVE MODE")
        with raw_connection(patient) as connection:
            connection.sendall(POST + f"Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
            wait_until(lambda: is_lock_awaited(database_url), "the request waits")
            how(connection)
        other.rollback()
    assert create_scenario(patient)["state"] == "init_startup"
    assert "Traceback" not in quiet_logs.text


def test_many_that_hang_up_at_once_leave_nothing_open(
    patient: httpx.Client, quiet_logs: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        with ExitStack() as many:
            opened = [many.enter_context(raw_connection(patient)) for _ in range(200)]
            for connection in opened:
                connection.sendall(POST + b"Content-Length: 90\r\n\r\n{")
                hang_up(connection)
    assert is_live(patient)
    assert "Traceback" not in quiet_logs.text


def test_a_body_that_hangs_does_not_hold_up_a_stop(database_url: str, quiet_logs: pytest.LogCaptureFixture) -> None:
    with ExitStack() as hanging:
        with limited(database_url, PATIENT) as client:
            for sent in (POST + b"Content-Length: 90\r\n\r\n", b"GET /scen", b""):
                connection = hanging.enter_context(raw_connection(client))
                connection.sendall(sent)
            assert is_live(client)
            began_s = time.monotonic()
        print_figure(f"stopped beside three hanging connections after {time.monotonic() - began_s:.2f} s")
    assert "Traceback" not in quiet_logs.text


def damaged(random: Random) -> bytes:
    """Requests one after another, with bytes changed, lost and put in."""
    whole = POST + f"Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    chunked = POST + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n"
    upgrade = GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    absolute = b"GET http://localhost/scenario HTTP/1.1\r\nHost: x\r\n\r\n"
    data = bytearray(b"".join(random.choices([GET, LIVE, whole, chunked, upgrade, absolute], k=3)))
    for _ in range(random.randint(1, 6)):
        place = random.randrange(len(data))
        data[place : place + random.randrange(9)] = random.randbytes(random.randrange(9))
    return bytes(data)


def test_no_damaged_request_is_an_error_of_the_server(
    patient: httpx.Client, quiet_logs: pytest.LogCaptureFixture
) -> None:
    random = Random(7)
    for _ in range(200):
        with raw_connection(patient) as connection, suppress(OSError):
            connection.sendall(damaged(random))
            connection.shutdown(socket.SHUT_WR)
            assert wait_until_closed(connection)
    assert is_live(patient)
    assert [record.getMessage() for record in quiet_logs.records if record.getMessage() != "connections_refused"] == []
