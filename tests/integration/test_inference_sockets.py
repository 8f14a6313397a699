"""The sockets of inference processes, which any user of the machine may connect to, and only this one may use."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection

import pytest

from vidflow.domain.errors import ErrorInfo
from vidflow.infra.inference import sockets
from vidflow.infra.inference.messages import Refused
from vidflow.infra.models.thread_budget import ThreadBudget
from vidflow.roles.inference.server import InferenceServer

TIMEOUT_S = 20.0
OTHER_USER = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")


@contextmanager
def other_user(body: Callable[[Connection], None]) -> Iterator[Connection]:
    """Run `body` in a process of another user. Yield the other end of its pipe."""
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe()
    process = context.Process(target=_run_as_other_user, args=(body, there))
    process.start()
    there.close()
    with here:
        yield here
    process.join(TIMEOUT_S)
    assert process.exitcode == 0


def _run_as_other_user(body: Callable[[Connection], None], pipe: Connection) -> None:
    os.setuid(OTHER_USER)
    body(pipe)


def listen(pipe: Connection) -> None:
    listener, name = sockets.listen(1)
    with listener:
        pipe.send(name)
        pipe.poll(TIMEOUT_S)


def connect_and_read(pipe: Connection) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"\0{pipe.recv()}")
        pipe.send(connection.recv(1))


def test_the_next_socket_has_another_name() -> None:
    names = set()
    for _ in range(3):
        listener, name = sockets.listen(1)
        with listener, sockets.connect(name, TIMEOUT_S) as connection:
            assert sockets.is_of_this_user(connection)
        names.add(name)
        with pytest.raises(ConnectionRefusedError):
            sockets.connect(name, TIMEOUT_S)
    assert len(names) == 3


@as_root
def test_a_worker_sends_nothing_to_a_process_of_another_user() -> None:
    with other_user(listen) as pipe, pytest.raises(PermissionError, match="another user"):
        sockets.connect(pipe.recv(), TIMEOUT_S)


@as_root
def test_an_inference_process_reads_nothing_of_another_user() -> None:
    listener, name = sockets.listen(1)
    refused = Refused(ErrorInfo("model_refused", "It is damaged."), fatal=True)
    server = InferenceServer(listener, refused, (0, 0), None, 1, ThreadBudget(1))
    thread = threading.Thread(target=server._accept, daemon=True)
    thread.start()
    with closing(listener), other_user(connect_and_read) as pipe:
        pipe.send(name)
        assert pipe.recv() == b""
