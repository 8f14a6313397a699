"""Admission of new scenarios: they are refused while the queue is full or the disk nearly full. Admitted scenarios are not affected.

Queue and disk are read at most once a second, by the request that finds the values outdated. In between, the api counts the
scenarios that it admits itself. A single api keeps its limit. With several, each may exceed it by what the others admit in a second.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vidflow.domain.access import WriteScope
from vidflow.domain.errors import SetupError
from vidflow.infra.postgres import scenarios
from vidflow.infra.postgres.connection import Connection
from vidflow.roles.api.problems import problem
from vidflow.roles.api.quotas import ScenarioQuota
from vidflow.settings import ApiOptions

REFRESH_INTERVAL_S: Final = 1.0


def require_folder(options: ApiOptions) -> None:
    """Raise SetupError if the folder whose disk is to be watched does not exist."""
    if options.data_dir is not None and not options.data_dir.is_dir():
        raise SetupError(f"Data folder {options.data_dir} not found. Set --data-dir to an existing folder, or omit it.")


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the folder's disk that an unprivileged user may fill."""
    return shutil.disk_usage(folder).free


class Admission:
    """The last known state of queue and disk. Shared by all requests."""

    def __init__(self, options: ApiOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._refreshed_s = float("-inf")
        self._waiting = 0
        self._waiting_bytes = 0
        self._in_progress = 0
        self._in_progress_bytes = 0
        self._free_bytes: int | None = None
        self._owners = ScenarioQuota(options, REFRESH_INTERVAL_S)

    @contextmanager
    def admit(self, tx: Connection, scope: WriteScope, size_bytes: int) -> Iterator[None]:
        """Admit one scenario of this size, which the caller stores in the block.

        Raises a 429 problem if the queue is full or its owner's quota is used up, a 503 problem if the disk is nearly full.
        """
        with self._lock:
            self._refresh(tx)
            self._require_free_disk()
            self._require_queue_capacity(size_bytes)
            self._owners.begin(tx, scope)
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
                self._owners.end(scope)

    def _refresh(self, tx: Connection) -> None:
        """Read queue and disk again if the values are outdated.

        The caller holds the lock: other requests wait for a millisecond instead of passing on an outdated count.
        """
        if time.monotonic() - self._refreshed_s < REFRESH_INTERVAL_S:
            return
        self._refreshed_s = time.monotonic()
        folder = self._options.data_dir
        self._free_bytes = free_bytes(folder) if folder is not None else None
        # Scenarios in progress may be counted twice: for a second the count may be too high, but it is never too low.
        queue = scenarios.read_queue_totals(tx)
        self._waiting = queue.scenarios + self._in_progress
        self._waiting_bytes = queue.bytes + self._in_progress_bytes

    def _require_free_disk(self) -> None:
        min_free_bytes = self._options.min_free_bytes
        if self._free_bytes is not None and self._free_bytes < min_free_bytes:
            raise problem(
                503,
                "disk_full",
                f"The server's data disk has {self._free_bytes} bytes left; new scenarios need {min_free_bytes}. Running scenarios "
                "continue. Ask the operator to make room or to lower --min-free-bytes.",
            )

    def _require_queue_capacity(self, size_bytes: int) -> None:
        limit, limit_bytes = self._options.queue_limit, self._options.queue_limit_bytes
        if self._waiting >= limit:
            raise problem(
                429,
                "queue_full",
                f"{limit} scenarios wait for a runner, which is this server's limit. Try again later, or ask the operator to start "
                "more runners or to raise --queue-limit.",
            )
        if self._waiting and self._waiting_bytes + size_bytes > limit_bytes:
            raise problem(
                429,
                "queue_full",
                f"The scenarios that wait for a runner take {self._waiting_bytes} bytes; this server's limit is {limit_bytes}. Try again "
                "later, send fewer labels, or ask the operator to start more runners or to raise --queue-limit-bytes.",
            )
