"""The HTTP connections of a process: their limits, their deadlines, and metrics and logs of refusals."""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from typing import Final, Protocol

import msgspec
from prometheus_client import Counter as Metric

from vidflow.infra.telemetry.logs import log

REFUSED_CONNECTIONS: Final = Metric(
    "vidflow_http_connections_refused", "Connections refused or cut off by a limit.", ["reason"]
)
_OTHER_FILES: Final = 256
"""Files that the process opens besides client connections: database, Kafka, logs."""
_log = log("api")


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of client connections and their requests.

    `connections`: connections served at once. `reserved`: further connections, which serve health checks only.
    `head_s`, `head_bytes`: time and size of a request line with its headers; `reserved_head_s`: the time on reserved connections.
    `body_grace_s`, `response_grace_s`, `body_bytes_per_s`: a request body, or the client's reading of a response, may take the
    grace time and one more second for every `body_bytes_per_s` bytes. `idle_s`: how long an idle connection stays open.
    `linger_s`: how long the rest of a refused request is read, so that the client receives the refusal.
    `stop_grace_s`: the grace time of a body once the server stops. `max_pipelined`: unanswered requests on one connection.
    `check_interval_s`: time between two checks for late connections.
    """

    connections: int = 1000
    reserved: int = 50
    head_s: float = 10.0
    reserved_head_s: float = 2.0
    head_bytes: int = 32 * 1024
    body_grace_s: float = 10.0
    response_grace_s: float = 30.0
    body_bytes_per_s: int = 1000
    idle_s: int = 30
    linger_s: float = 2.0
    stop_grace_s: float = 1.0
    max_pipelined: int = 16
    check_interval_s: float = 1.0


class TransferDeadline:
    """The deadline of a transfer: a grace time, extended by a second for every `bytes_per_s` bytes transferred."""

    def __init__(self, now_s: float, grace_s: float, bytes_per_s: int) -> None:
        self._until_s = now_s + grace_s
        self._bytes_per_s = bytes_per_s

    def extend(self, count: int) -> None:
        """Extend the deadline for `count` transferred bytes."""
        self._until_s += count / self._bytes_per_s

    def is_late(self, now_s: float) -> bool:
        """Return whether the deadline has passed."""
        return now_s > self._until_s


class ClientConnection(Protocol):
    """The part of a connection that this module uses."""

    @property
    def is_answering(self) -> bool:
        """Whether a request has arrived that is not answered yet."""

    def check_deadlines(self, now_s: float) -> None:
        """Refuse or drop the connection if it is late."""

    def drop(self) -> None:
        """Close at once, without a response."""


class Connections:
    """The open connections, checked every `check_interval_s`. Use only on the event loop's thread."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._served: set[ClientConnection] = set()
        self._reserved: dict[ClientConnection, None] = {}
        self._refused: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: ClientConnection) -> None:
        """Register a new connection.

        If all reserved connections are taken, drop one that has sent no request, or else the oldest: a health check sends its
        request at once.
        """
        self._schedule_check()
        if len(self._served) < self.limits.connections:
            self._served.add(connection)
            return
        if len(self._reserved) >= self.limits.reserved:
            self._evict_reserved()
        self._reserved[connection] = None

    def _evict_reserved(self) -> None:
        evicted = next(
            (connection for connection in self._reserved if not connection.is_answering), next(iter(self._reserved))
        )
        del self._reserved[evicted]
        evicted.drop()
        self.count_refusal("too_many")

    def remove(self, connection: ClientConnection) -> None:
        """Forget a closed connection."""
        self._served.discard(connection)
        self._reserved.pop(connection, None)

    def is_served(self, connection: ClientConnection) -> bool:
        """Return whether this connection may make any request. Reserved ones may only make health checks.

        A reserved connection is promoted once there is room for it.
        """
        if connection in self._reserved and len(self._served) < self.limits.connections:
            del self._reserved[connection]
            self._served.add(connection)
        return connection in self._served

    def count_refusal(self, reason: str) -> None:
        """Count a refusal. Refusals are logged together, at the next check."""
        self._refused[reason] += 1
        REFUSED_CONNECTIONS.labels(reason).inc()

    def _schedule_check(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.limits.check_interval_s, self._check_all)

    def _check_all(self) -> None:
        self._timer = None
        now_s = asyncio.get_running_loop().time()
        for connection in (*self._served, *self._reserved):
            connection.check_deadlines(now_s)
        if self._refused:
            _log.warning("connections_refused", **self._refused, open=len(self._served), limit=self.limits.connections)
            self._refused.clear()
        if self._served or self._reserved:
            self._schedule_check()


def raise_file_limit(limits: ConnectionLimits) -> None:
    """Raise the process's limit of open files to what `limits` need. Log a warning if the system allows fewer."""
    needed = limits.connections + limits.reserved + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= needed:
        return
    allowed = needed if hard == unlimited else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        _log.warning(
            "few_files",
            allowed=allowed,
            needed=needed,
            needs="raise the limit of open files (ulimit -n), or lower --max-connections",
        )
