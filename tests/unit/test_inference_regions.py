"""Memory shared by a worker and an inference process: what one side must not be able to do to the other."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from vidflow.infra.inference import messages, regions
from vidflow.infra.inference.messages import Hello, Infer, OutputPlace, Outputs
from vidflow.infra.inference.regions import HEADER_BYTES, RegionError


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.settimeout(5)
    with ours, theirs:
        yield ours, theirs


def test_both_sides_see_the_same_arrays_and_the_same_mark(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    region, fd = regions.create_region(1000)
    messages.send(ours, Infer(3, (96, 160)), fd)
    message, received = messages.receive_from_client(theirs)
    assert message == Infer(3, (96, 160))
    assert received is not None
    other = regions.open_region(received)
    region.array(HEADER_BYTES, (2, 5), np.float32)[...] = 7
    region.mark = 1
    assert other.array(HEADER_BYTES, (2, 5), "float32").sum() == 70
    assert other.mark == 1


def test_an_array_outlives_the_closing_of_its_region() -> None:
    region, fd = regions.create_region(1000)
    os.close(fd)
    array = region.array(HEADER_BYTES, (10,), np.uint8)
    region.close()
    assert array.tolist() == [0] * 10


@pytest.mark.parametrize(
    ("offset", "shape"),
    [(0, (1,)), (HEADER_BYTES, (mmap.PAGESIZE,)), (mmap.PAGESIZE, (1,)), (HEADER_BYTES, (2**40, 2**40)), (HEADER_BYTES, (-1,)),
     (-1, (1,))],
)  # fmt: skip
def test_an_array_outside_its_region_is_refused(offset: int, shape: tuple[int, ...]) -> None:
    region, fd = regions.create_region(100)
    os.close(fd)
    with pytest.raises(RegionError, match="does not lie in"):
        region.array(offset, shape, np.uint8)


def test_a_region_cannot_be_made_smaller() -> None:
    _, fd = regions.create_region(10_000)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 100)
    os.close(fd)


def unsealed(size_bytes: int) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size_bytes)
    return fd


def too_large() -> int:
    fd = unsealed(regions.MAX_REGION_BYTES + mmap.PAGESIZE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, regions.SEALS)
    return fd


def ordinary_file() -> int:
    return os.open("/proc/self/exe", os.O_RDONLY)


@pytest.mark.parametrize("open_file", [lambda: unsealed(4096), too_large, ordinary_file])
def test_a_file_that_is_no_sealed_memory_is_refused_and_closed(open_file: Callable[[], int]) -> None:
    number = open_file()
    with pytest.raises(RegionError, match="shared memory"):
        regions.open_region(number)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_a_message_that_is_too_long_is_refused_before_it_is_read(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall((2**31).to_bytes(4, "little"))
    with pytest.raises(ValueError, match="a message of"):
        messages.receive_from_client(theirs)


def test_a_peer_that_is_gone_in_the_middle_of_a_message_is_noticed(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall((100).to_bytes(4, "little") + b'{"type":')
    ours.close()
    with pytest.raises(EOFError):
        messages.receive_from_client(theirs)


def count_open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_the_files_of_messages_that_are_not_valid_are_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    before = count_open_files()
    for content in (b'{"type":"hello"}', b'{"type":"infer","frames":-1}', b"not JSON"):
        fd = unsealed(4096)
        socket.send_fds(ours, [len(content).to_bytes(4, "little") + content], [fd])
        os.close(fd)
        with pytest.raises(ValueError):  # noqa: PT011 - msgspec's errors
            messages.receive_from_client(theirs)
    assert count_open_files() == before


@pytest.mark.parametrize(
    "message",
    [
        Hello("0190"),
        Infer(64, (96, 160), 2),
        Outputs((OutputPlace(64, (1, 300, 6), "float32"), OutputPlace(128, (), "int64"))),
    ],
)
def test_messages_arrive_as_they_were_sent(
    pair: tuple[socket.socket, socket.socket], message: Hello | Infer | Outputs
) -> None:
    ours, theirs = pair
    messages.send(ours, message)
    receive = messages.receive_from_server if isinstance(message, Outputs) else messages.receive_from_client
    assert receive(theirs) == (message, None)
