"""Who is let in: no new scenario where too many wait already, or where the disk is nearly full. What was let in is never held up.

Neither is asked for at each request: a look a second, by the request that finds it due, and in between the scenarios that
this api let in itself are counted. So one api keeps its limit; of several, each may overshoot it by what the others let in
within a second.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vidflow.domain.errors import SetupError
from vidflow.infra.postgres import scenarios
from vidflow.infra.postgres.connection import Connection
from vidflow.roles.api.problems import problem
from vidflow.settings import ApiOptions

REFRESH_INTERVAL_S: Final = 1.0


def require_folder(options: ApiOptions) -> None:
    """Raises SetupError where the folder whose disk is to be watched is not there."""
    if options.data_dir is not None and not options.data_dir.is_dir():
        raise SetupError(f"there is no folder {options.data_dir}; give another --data-dir, or none")


def free_bytes(folder: Path) -> int:
    """How much more the folder's disk takes from a user without privileges."""
    return shutil.disk_usage(folder).free


class Admission:
    """What is known of queue and disk. Used by all requests."""

    def __init__(self, options: ApiOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._refreshed_s = float("-inf")
        self._waiting = 0
        self._waiting_bytes = 0
        self._in_progress = 0
        self._in_progress_bytes = 0
        self._free_bytes: int | None = None

    @contextmanager
    def admit(self, tx: Connection, size_bytes: int) -> Iterator[None]:
        """Admit one more scenario of this size, which is stored in the block. Raises a problem that says when to come again."""
        with self._lock:
            self._refresh(tx)
            self._require_free_disk()
            self._require_queue_capacity(size_bytes)
            self._waiting += 1
            self._waiting_bytes += size_bytes
            self._in_progress += 1
            self._in_progress_bytes += size_bytes
        try:
            yield
        finally:
            with self._lock:
                self._in_progress -= 1
                self._in_progress_bytes -= size_bytes

    def _refresh(self, tx: Connection) -> None:
        """Under the lock: the others wait for a millisecond, rather than pass by an old number."""
        if time.monotonic() - self._refreshed_s < REFRESH_INTERVAL_S:
            return
        self._refreshed_s = time.monotonic()
        folder = self._options.data_dir
        self._free_bytes = free_bytes(folder) if folder is not None else None
        # What is under way may be among the counted: too many for a second, but never too few.
        queue = scenarios.read_queue_totals(tx)
        self._waiting = queue.scenarios + self._in_progress
        self._waiting_bytes = queue.bytes + self._in_progress_bytes

    def _require_free_disk(self) -> None:
        least = self._options.min_free_bytes
        if self._free_bytes is not None and self._free_bytes < least:
            raise problem(
                503,
                "disk_full",
                f"the disk of the server's data has {self._free_bytes} bytes left, and new work is taken from {least} on; what runs "
                "goes on; its operator must make room, or lower --min-free-bytes",
            )

    def _require_queue_capacity(self, size_bytes: int) -> None:
        limit, limit_bytes = self._options.queue_limit, self._options.queue_limit_bytes
        if self._waiting >= limit:
            raise problem(
                429,
                "queue_full",
                f"{limit} scenarios wait for a runner already, which is this server's limit; come again later (its operator may "
                "start more runners, or raise --queue-limit)",
            )
        if self._waiting and self._waiting_bytes + size_bytes > limit_bytes:
            raise problem(
                429,
                "queue_full",
                f"what waits for a runner takes {self._waiting_bytes} bytes already, and this server's limit is {limit_bytes}; come again "
                "later, or send fewer labels (its operator may start more runners, or raise --queue-limit-bytes)",
            )
