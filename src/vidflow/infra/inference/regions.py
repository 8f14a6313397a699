"""Memory that a worker and an inference process share, without a name in the file system. Linux only.

Each region is sealed, so the other process cannot make it smaller while it is mapped here, which would be a SIGBUS.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

SEALS: Final = getattr(fcntl, "F_SEAL_SHRINK", 0) | getattr(fcntl, "F_SEAL_GROW", 0) | getattr(fcntl, "F_SEAL_SEAL", 0)
MAX_REGION_BYTES: Final = 2**31
"""Far more than the largest batch of the largest model needs, and a bound for what a peer may claim."""
HEADER_BYTES: Final = 64
"""The region's first bytes, before its arrays. The first one is the mark."""


class RegionError(Exception):
    """The other process sent a region or a place in one that is not valid."""


class Region:
    """A mapped region. `mark` is a byte that both processes read and write."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        """Map the open file and close it."""
        try:
            self._memory = mmap.mmap(fd, size_bytes)
        finally:
            os.close(fd)
        self.size_bytes = size_bytes

    @property
    def mark(self) -> int:
        """The region's mark, at first 0."""
        return self._memory[0]

    @mark.setter
    def mark(self, value: int) -> None:
        self._memory[0] = value

    def array(self, offset: int, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array inside the region, which it keeps mapped. Raises RegionError if it does not lie inside."""
        kind = np.dtype(dtype)
        count = 1
        for length in shape:
            count *= length
        if offset < HEADER_BYTES or min(shape, default=0) < 0 or offset + count * kind.itemsize > self.size_bytes:
            raise RegionError(f"an array of shape {shape} at {offset} does not lie in {self.size_bytes} bytes")
        return np.frombuffer(self._memory, kind, count, offset).reshape(shape)

    def close(self) -> None:
        """Unmap the region, unless an array still uses it: then it is unmapped with the last one."""
        with contextlib.suppress(BufferError):
            self._memory.close()


def create_region(size_bytes: int) -> tuple[Region, int]:
    """Return a region for arrays of `size_bytes`, and its file for the other process, to be closed once it is sent."""
    fd = os.memfd_create("vidflow-inference", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    total = _round_up(HEADER_BYTES + size_bytes, mmap.PAGESIZE)
    try:
        os.ftruncate(fd, total)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        return Region(os.dup(fd), total), fd
    except BaseException:
        os.close(fd)
        raise


def open_region(fd: int) -> Region:
    """Return the region that the other process has created. Raises RegionError if it is not sealed or too large."""
    try:
        seals, size_bytes = fcntl.fcntl(fd, fcntl.F_GET_SEALS), os.fstat(fd).st_size
    except OSError as error:  # any other kind of file
        os.close(fd)
        raise RegionError(f"not shared memory ({error.strerror})") from error
    if seals & SEALS != SEALS or not HEADER_BYTES <= size_bytes <= MAX_REGION_BYTES:
        os.close(fd)
        raise RegionError(f"shared memory of {size_bytes} bytes with the seals {seals}")
    return Region(fd, size_bytes)


def align(offset: int) -> int:
    """Return the next offset at which an array may begin."""
    return _round_up(offset, HEADER_BYTES)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
