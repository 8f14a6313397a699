"""All HTTP connections of a process: how many there may be, which are late, and what was refused."""

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
"""Files that a process opens beside its connections to clients: the database's, Kafka's, logs."""
_log = log("api")


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a client may take of a process.

    `connections`: at most so many are served; `reserved` more are kept for health checks, and refuse everything else.
    `head_s`, `head_bytes`: a request's line and headers. `body_grace_s`, `body_bytes_per_s`: a body, or an answer that the client
    reads, has the grace time and then a second for each so many bytes. `linger_s`: how long the rest of a refused request is read,
    so that the client sees the refusal. `stop_grace_s`: the grace time of a body once the server stops. `max_pipelined`: requests
    ahead of their answers on one connection. `check_interval_s`: how often what is late is looked for.
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
    """A transfer that must keep up a rate: late once the grace time, and a second for each `bytes_per_s` moved, are over."""

    def __init__(self, now_s: float, grace_s: float, bytes_per_s: int) -> None:
        self._until_s = now_s + grace_s
        self._bytes_per_s = bytes_per_s

    def extend(self, count: int) -> None:
        """Count bytes that were transferred."""
        self._until_s += count / self._bytes_per_s

    def is_late(self, now_s: float) -> bool:
        """Whether the transfer is too slow."""
        return now_s > self._until_s


class ClientConnection(Protocol):
    """What this module needs of a connection."""

    @property
    def is_answering(self) -> bool:
        """Whether a request has come that is still to be answered."""

    def check_deadlines(self, now_s: float) -> None:
        """Act on what is late."""

    def drop(self) -> None:
        """Close at once, without an answer."""


class Connections:
    """The connections that are open, looked at each `check_interval_s`. Belongs to the event loop's thread."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._served: set[ClientConnection] = set()
        self._reserved: dict[ClientConnection, None] = {}
        self._refused: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: ClientConnection) -> None:
        """Take a new connection.

        Of the reserved ones, one makes room that has sent no request, or the oldest: a health check sends its own at once.
        """
        self._schedule_check()
        if len(self._served) < self.limits.connections:
            self._served.add(connection)
            return
        if len(self._reserved) >= self.limits.reserved:
            self._evict_reserved()
        self._reserved[connection] = None

    def _evict_reserved(self) -> None:
        oldest = next((one for one in self._reserved if not one.is_answering), next(iter(self._reserved)))
        del self._reserved[oldest]
        oldest.drop()
        self.count_refusal("too_many")

    def remove(self, connection: ClientConnection) -> None:
        """Forget a connection that was closed."""
        self._served.discard(connection)
        self._reserved.pop(connection, None)

    def is_served(self, connection: ClientConnection) -> bool:
        """Whether this connection may ask for everything, or only for the health checks. One that finds room by now may."""
        if connection in self._reserved and len(self._served) < self.limits.connections:
            del self._reserved[connection]
            self._served.add(connection)
        return connection in self._served

    def count_refusal(self, reason: str) -> None:
        """Count a refusal; they are logged together."""
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
    """Let the process open as many files as the limits need, as far as the system lets it; say so where that is too few."""
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
