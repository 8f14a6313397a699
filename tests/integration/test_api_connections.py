"""Slow, large, many and disconnected clients: each is limited, others are served, and /health/live always answers."""
# ruff: noqa: E501, S311 - tables of cases; reproducible damage

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
"""Long enough that nothing is late within a test."""


@contextmanager
def limited(database_url: str, limits: ConnectionLimits, connections: int = 1000) -> Iterator[httpx.Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "LIMITS", limits)
        with ready_api(ApiOptions(database_url=database_url, max_connections=connections)) as client:
            yield client


@pytest.fixture(scope="module")
def impatient(database_url: str) -> Iterator[httpx.Client]:
    """An api with short deadlines."""
    with limited(database_url, SHORT) as client:
        yield client


@pytest.fixture(scope="module")
def patient(database_url: str) -> Iterator[httpx.Client]:
    with limited(database_url, PATIENT) as client:
        yield client


@pytest.fixture
def quiet_logs(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Assert that no client, whatever it does, causes an error in the server's log."""
    yield caplog
    records = [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert [getattr(record, "vidflow_fields", record.getMessage()) for record in records] == []


def refusals(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return the fields of the log lines about refused connections."""
    return [
        getattr(record, "vidflow_fields", {})
        for record in caplog.records
        if record.getMessage() == "connections_refused"
    ]


def is_live(client: httpx.Client) -> bool:
    """Check like a load balancer, on a new connection."""
    return send_raw_request(client, LIVE).status == 200


def feed(connection: socket.socket, data: bytes, pause_s: float) -> RawResponse | None:
    """Send data repeatedly until the server responds or closes."""
    done = threading.Event()

    def send() -> None:
        with suppress(OSError):
            while not done.wait(pause_s):
                connection.sendall(data)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        return read_response(connection)
    finally:
        done.set()
        thread.join()


# --- heads


@pytest.mark.usefixtures("quiet_logs")
def test_a_head_that_arrives_too_slowly_is_refused(impatient: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with raw_connection(impatient) as connection:
        connection.sendall(b"GET /scenario HTTP/1.1\r\n")
        response = feed(connection, b"X-Drop: 1\r\n", 0.05)
    assert response is not None
    assert (response.status, response.code, response.headers["connection"]) == (408, "head_late", "close")
    wait_until(lambda: any(line.get("head_late") for line in refusals(caplog)), "it is logged")


@pytest.mark.long
def test_an_idle_connection_is_closed(impatient: httpx.Client, quiet_logs: pytest.LogCaptureFixture) -> None:
    for sent in (b"", b"\r\n", LIVE):
        with raw_connection(impatient) as connection:
            connection.sendall(sent)
            assert wait_until_closed(connection)
    assert not any("too_many" in line for line in refusals(quiet_logs))


def test_endless_empty_lines_are_refused(impatient: httpx.Client) -> None:
    with raw_connection(impatient) as connection:
        assert feed(connection, b"\r\n" * 50, 0.02) is not None


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"x" * 40_000, b"GET /scenario HTTP/1.1\r\nX: " + b"x" * 40_000, b"GET /scenario HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
        b"GET /scenario HTTP/1.1\r\n" + b"x" * 60_000, b"GET /scenario?" + b"x" * 33_000 + b" HTTP/1.1\r\n",
    ],
    ids=["path", "header", "headers", "name", "query"],
)  # fmt: skip
def test_a_head_that_is_too_large_is_refused(impatient: httpx.Client, head: bytes) -> None:
    for end in (b"\r\n\r\n", b" HTTP/1.1\r\n\r\n"):
        response = send_raw_request(impatient, head + end)
        assert (response.status, response.code) == (431, "head_too_large")


def test_a_head_just_below_the_limit_is_served(patient: httpx.Client) -> None:
    padding = b"X: " + b"x" * (SHORT.head_bytes - 200) + b"\r\n"
    assert send_raw_request(patient, GET[:-2] + padding + b"\r\n").status == 200


def test_a_header_of_a_hundred_megabytes_uses_no_memory(
    patient: httpx.Client, quiet_logs: pytest.LogCaptureFixture
) -> None:
    initial_bytes = resident_bytes(os.getpid())
    sent_megabytes = 0
    with raw_connection(patient) as connection, suppress(OSError):
        connection.sendall(b"GET /scenario HTTP/1.1\r\nX: ")
        for _ in range(100):
            connection.sendall(b"x" * 1024**2)
            sent_megabytes += 1
    grown_bytes = resident_bytes(os.getpid()) - initial_bytes
    print_figure(f"header of 100 MB: {sent_megabytes} MB sent and dropped, memory grew by {grown_bytes / 1e6:.1f} MB")
    assert grown_bytes < 20e6
    assert is_live(patient)
    wait_until(lambda: any(line.get("head_too_large") for line in refusals(quiet_logs)), "it is logged")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
    ],
)
def test_data_that_is_not_http_is_refused(
    impatient: httpx.Client, quiet_logs: pytest.LogCaptureFixture, data: bytes
) -> None:
    response = send_raw_request(impatient, data)
    assert (response.status, response.code) == (400, "request_malformed")
    assert quiet_logs.text.count("Invalid HTTP") == 0


# --- bodies


def test_a_body_that_arrives_too_slowly_is_refused(
    impatient: httpx.Client, quiet_logs: pytest.LogCaptureFixture
) -> None:
    with raw_connection(impatient) as connection:
        connection.sendall(POST + b"Content-Length: 100000\r\n\r\n")
        response = feed(connection, b" ", 0.05)
    assert response is not None
    assert (response.status, response.code) == (408, "body_late")
    wait_until(lambda: any(line.get("body_late") for line in refusals(quiet_logs)), "it is logged")


def test_a_body_that_keeps_up_the_pace_is_accepted(impatient: httpx.Client) -> None:
    padded = b" " * 6000 + BODY
    with raw_connection(impatient) as connection:
        connection.sendall(POST + f"Content-Length: {len(padded)}\r\n\r\n".encode())
        for start in range(0, len(padded), 500):
            connection.sendall(padded[start : start + 500])
            time.sleep(0.1)  # slower than the grace time alone would allow
        response = read_response(connection)
    assert response is not None
    assert response.status == 201


def test_headers_after_a_body_are_limited_and_ignored(impatient: httpx.Client) -> None:
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n" + f"{len(BODY):x}\r\n".encode() + BODY + b"\r\n0\r\n"
    assert (
        send_raw_request(impatient, chunked + b"Host: evil.example\r\nOrigin: https://evil.example\r\n\r\n").status
        == 201
    )
    assert send_raw_request(impatient, chunked + b"X: y\r\n" * 20_000 + b"\r\n").status in {201, 431}


def test_a_refusal_reaches_a_client_that_is_still_sending(patient: httpx.Client) -> None:
    large = b"Content-Length: 50000000\r\n\r\n" + b" " * 20_000_000
    for request, status in ((POST + large, 413), (POST.replace(b"localhost", b"evil.example") + large, 421)):
        assert send_raw_request(patient, request).status == status


def test_a_malformed_body_after_expect_100_continue_is_no_server_error(
    patient: httpx.Client, quiet_logs: pytest.LogCaptureFixture
) -> None:
    announced = POST + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\nnot a length\r\n"
    assert send_raw_request(patient, announced).status == 400
    assert is_live(patient)
    assert "Traceback" not in quiet_logs.text


# --- responses


def test_a_client_that_does_not_read_is_disconnected(
    impatient: httpx.Client, quiet_logs: pytest.LogCaptureFixture
) -> None:
    with raw_connection(impatient) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        def is_disconnected() -> bool:
            with suppress(OSError):
                connection.settimeout(0.2)
                connection.sendall(b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\n" + HOST + b"\r\n")
            return any(line.get("answer_late") for line in refusals(quiet_logs))

        wait_until(is_disconnected, "the client is disconnected")


# --- many connections


def test_health_checks_are_served_while_all_connections_hang(
    database_url: str, quiet_logs: pytest.LogCaptureFixture
) -> None:
    with limited(database_url, PATIENT, connections=300) as client, ExitStack() as hanging:
        client.close()  # its connection would count
        opened = [hanging.enter_context(raw_connection(client)) for _ in range(500)]
        for number, connection in enumerate(opened):
            with suppress(OSError):
                connection.sendall(
                    (b"GET /scenario HTTP/1.1\r\n", POST + b"Content-Length: 90\r\n\r\n", b"")[number % 3]
                )
        started_s = time.monotonic()
        for _ in range(20):
            assert is_live(client)
        print_figure(f"20 health checks beside 300 hanging connections: {time.monotonic() - started_s:.2f} s")
        response = send_raw_request(client, GET)
        assert (response.status, response.code, response.headers["retry-after"]) == (503, "too_many_connections", "1")
        wait_until(
            lambda: sum(line.get("too_many", 0) for line in refusals(quiet_logs)) >= 190, "the refusals are counted"
        )
        assert len(refusals(quiet_logs)) < 50
        for connection in opened[:50]:
            connection.close()
        wait_until(lambda: send_raw_request(client, GET).status == 200, "there is room again")


def test_the_number_of_pipelined_requests_is_limited(patient: httpx.Client) -> None:
    with raw_connection(patient) as connection:
        connection.sendall(LIVE * 10)
        assert [response.status for _ in range(10) if (response := read_one(connection))] == [200] * 10
    with raw_connection(patient) as connection, suppress(ConnectionError):
        connection.sendall(LIVE * 5000)
        assert wait_until_closed(connection)
    assert is_live(patient)


def read_one(connection: socket.socket) -> RawResponse | None:
    """Read one response, and no byte of the next."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    lines = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:-2])
    return RawResponse(int(head.split()[1]), lines, connection.recv(int(lines["content-length"]), socket.MSG_WAITALL))


# --- disconnects


def hang_up(connection: socket.socket) -> None:
    """Reset the connection instead of closing it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


@pytest.mark.parametrize("disconnect", [hang_up, socket.socket.close], ids=["reset", "close"])
@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /scen", POST, POST + b"Content-Length: 90\r\n\r\n", POST + b"Content-Length: 90\r\n\r\n{", POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n12"],
    ids=["nothing", "line", "head", "before the body", "body", "chunk"],
)  # fmt: skip
def test_a_client_that_disconnects_is_no_error(
    patient: httpx.Client,
    quiet_logs: pytest.LogCaptureFixture,
    sent: bytes,
    disconnect: Callable[[socket.socket], None],
) -> None:
    with raw_connection(patient) as connection:
        connection.sendall(sent)
        disconnect(connection)
    assert create_scenario(patient)["state"] == "init_startup"
    wait_until(lambda: "vidflow_http_requests" in patient.get("/metrics").text, "the server has handled it")
    assert "Traceback" not in quiet_logs.text


@pytest.mark.parametrize("disconnect", [hang_up, socket.socket.close], ids=["reset", "close"])
def test_a_client_that_disconnects_before_the_response_is_no_error(
    patient: httpx.Client,
    database_url: str,
    quiet_logs: pytest.LogCaptureFixture,
    disconnect: Callable[[socket.socket], None],
) -> None:
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE scenarios IN ACCESS EXCLUSIVE MODE")
        with raw_connection(patient) as connection:
            connection.sendall(POST + f"Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
            wait_until(lambda: is_lock_awaited(database_url), "the request waits")
            disconnect(connection)
        other.rollback()
    assert create_scenario(patient)["state"] == "init_startup"
    assert "Traceback" not in quiet_logs.text


def test_many_clients_that_disconnect_at_once_leave_nothing_open(
    patient: httpx.Client, quiet_logs: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        with ExitStack() as stack:
            opened = [stack.enter_context(raw_connection(patient)) for _ in range(200)]
            for connection in opened:
                connection.sendall(POST + b"Content-Length: 90\r\n\r\n{")
                hang_up(connection)
    assert is_live(patient)
    assert "Traceback" not in quiet_logs.text


@pytest.mark.long
def test_a_hanging_body_does_not_delay_a_stop(database_url: str, quiet_logs: pytest.LogCaptureFixture) -> None:
    with ExitStack() as hanging:
        with limited(database_url, PATIENT) as client:
            for sent in (POST + b"Content-Length: 90\r\n\r\n", b"GET /scen", b""):
                connection = hanging.enter_context(raw_connection(client))
                connection.sendall(sent)
            assert is_live(client)
            started_s = time.monotonic()
        print_figure(f"stop with three hanging connections: {time.monotonic() - started_s:.2f} s")
    assert "Traceback" not in quiet_logs.text


def damaged_requests(random: Random) -> bytes:
    """Return three requests with bytes changed, removed and inserted."""
    complete = POST + f"Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    chunked = POST + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n"
    upgrade = GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    absolute = b"GET http://localhost/scenario HTTP/1.1\r\nHost: x\r\n\r\n"
    data = bytearray(b"".join(random.choices([GET, LIVE, complete, chunked, upgrade, absolute], k=3)))
    for _ in range(random.randint(1, 6)):
        start = random.randrange(len(data))
        data[start : start + random.randrange(9)] = random.randbytes(random.randrange(9))
    return bytes(data)


def test_damaged_requests_are_no_server_error(patient: httpx.Client, quiet_logs: pytest.LogCaptureFixture) -> None:
    random = Random(7)
    for _ in range(200):
        with raw_connection(patient) as connection, suppress(OSError):
            connection.sendall(damaged_requests(random))
            connection.shutdown(socket.SHUT_WR)
            assert wait_until_closed(connection)
    assert is_live(patient)
    assert [record.getMessage() for record in quiet_logs.records if record.getMessage() != "connections_refused"] == []
