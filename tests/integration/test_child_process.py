"""A process of the runner that does not do what it should: the runner neither waits for it nor keeps what it sends."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait

import pytest

from vidflow.infra.models.thread_budget import ThreadsCommand
from vidflow.roles.inference import link
from vidflow.roles.runner.child_process import MEMORY_CHECK_S, ChildProcess, signal_name
from vidflow.roles.runner.forkservers import Forkservers

Child = ChildProcess[link.InferenceAlive, str]
MORE_ORDERS_THAN_A_PIPE_HOLDS = 10_000


def send_invalid(messages: Connection, orders: Connection, _stderr: Connection) -> None:
    link.send(messages, link.InferenceAlive(is_loaded=True))
    messages.send_bytes(b'{"type": "alive", "is_loaded": 1}')
    orders.recv_bytes()


def send_endlessly(messages: Connection, _orders: Connection, _stderr: Connection) -> None:
    while True:
        link.send(messages, link.InferenceAlive(is_loaded=True))


def read_nothing(_messages: Connection, _orders: Connection, _stderr: Connection) -> None:
    signal.pause()


def print_secret(_messages: Connection, _orders: Connection, stderr: Connection) -> None:
    with open(stderr.fileno(), "w", closefd=False) as text:
        text.write("cannot log in with hunter2\n")


@pytest.fixture(scope="module")
def forkservers() -> Forkservers:
    return Forkservers()


@contextmanager
def started(forkservers: Forkservers, target: Callable[..., None], secrets: tuple[str, ...] = ()) -> Iterator[Child]:
    child: Child = ChildProcess(
        forkservers.context, target, (), link.receive, "invalid", name="test", threads=1, secrets=secrets
    )
    try:
        yield child
    finally:
        child.kill("test")
        child.close()


def read_until_ended(child: Child) -> list[link.InferenceAlive]:
    messages: list[link.InferenceAlive] = []
    while child.exit_code() is None:
        wait(child.waitables())
        messages += child.read_messages()
    return [*messages, *child.read_messages()]


def test_a_process_that_sends_an_invalid_message_is_killed(forkservers: Forkservers) -> None:
    with started(forkservers, send_invalid) as child:
        assert read_until_ended(child) == [link.InferenceAlive(is_loaded=True)]
        assert (child.exit_code(), child.kill_reason) == (-signal.SIGKILL, "invalid")


def test_a_process_that_sends_endlessly_is_read_in_parts(forkservers: Forkservers) -> None:
    with started(forkservers, send_endlessly) as child:
        total = 0
        while total < 5000:
            wait(child.waitables())
            count = len(list(child.read_messages()))
            assert count <= 2000
            total += count


def test_a_process_that_reads_no_orders_delays_nobody(forkservers: Forkservers) -> None:
    with started(forkservers, read_nothing) as child:
        sent = [child.send_order(ThreadsCommand(1)) for _ in range(MORE_ORDERS_THAN_A_PIPE_HOLDS)]
        assert sent[0]
        assert not sent[-1]


def test_memory_is_compared_with_the_cap_now_and_then(forkservers: Forkservers) -> None:
    with started(forkservers, read_nothing) as child:
        now_s = time.monotonic()
        assert not child.exceeds_memory(0, now_s)
        assert child.exceeds_memory(1, now_s)
        assert not child.exceeds_memory(1, now_s + MEMORY_CHECK_S / 2)
        assert child.exceeds_memory(1, now_s + 2 * MEMORY_CHECK_S)
        assert not child.exceeds_memory(2**40, now_s + 4 * MEMORY_CHECK_S)


def test_the_tail_of_the_output_has_no_secrets(forkservers: Forkservers) -> None:
    with started(forkservers, print_secret, ("hunter2",)) as child:
        read_until_ended(child)
        tail = child.tail()
        assert tail is not None
        assert "cannot log in" in tail
        assert "hunter2" not in tail


@pytest.mark.parametrize(("exit_code", "name"), [(0, None), (3, None), (-9, "SIGKILL"), (-11, "SIGSEGV"), (-99, "99")])
def test_a_signal_has_its_name_in_errors(exit_code: int, name: str | None) -> None:
    assert signal_name(exit_code) == name
