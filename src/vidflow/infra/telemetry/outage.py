"""Log each outage of a server once at its beginning and once at its end, however many parts of this process notice it.

`require_postgres` and `require_kafka` check that a server is configured at all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, MutableMapping
from typing import Final
from weakref import WeakKeyDictionary

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from vidflow.domain.errors import SetupError, VidflowError
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.metrics import PROCESS_REGISTRY

AWAY: Final = "away"
TOPIC_MISSING: Final = "topic_missing"
"""A broker answers, but the topic does not exist. The error itself says what to do."""
KAFKA_SECURITY: Final = "kafka_security"
"""Authentication, TLS or authorization with a broker failed. The error itself says what to do."""
DISK_FULL: Final = "disk_full"
"""PostgreSQL answers but its disk is full."""
TIMED_OUT: Final = "timed_out"
"""PostgreSQL answers but has ended a statement or transaction at a time limit set in the server."""
TIMED_OUT_STATES: Final = frozenset({
    "25P04",  # transaction_timeout: the server has closed the connection
    "55P03",  # lock_timeout
    "57014",  # statement_timeout, or cancelled by an administrator
})  # fmt: skip
_TIMED_OUT_NEEDS: Final = (
    "retrying; look for slow statements and locks in pg_stat_activity, or raise the limit for vidflow's user"
)
_DISK_FULL_NEEDS: Final = "waiting; free space on the disk of its data"
_DISK_FULL_STATE: Final = "53100"
_log = log("outage")
_lock: Final = threading.Lock()
_open_outages: Final[MutableMapping[Outage, str]] = WeakKeyDictionary()
"""The current outages and their kinds. Weak references, because a discarded client never reports the end of its outage."""
_away: Final[set[str]] = set()
"""The servers whose outage was logged, and whose return was not."""


class _Totals(Collector):
    """Counts the outages of each server and their total time, including current ones. Call its methods under the lock."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._over_s: dict[str, float] = {}
        self._since_s: dict[str, float] = {}

    def watch(self, server: str) -> None:
        """Export the server's counters from now on, so that its first outage shows as an increase."""
        self._counts.setdefault(server, 0)
        self._over_s.setdefault(server, 0.0)

    def begin(self, server: str) -> None:
        """Note that the server is away. Does nothing during an outage."""
        self._end_abandoned()
        if server not in self._since_s:
            self._since_s[server] = time.monotonic()
            self._counts[server] = self._counts.get(server, 0) + 1

    def end(self, server: str) -> None:
        """Note that the server is back."""
        if (since_s := self._since_s.pop(server, None)) is not None:
            self._over_s[server] = self._over_s.get(server, 0.0) + time.monotonic() - since_s

    def collect(self) -> Iterable[Metric]:
        """Yield the counters, by server. Takes the lock itself."""
        count = CounterMetricFamily("vidflow_outages", "Times that a server was away.", labels=["server"])
        seconds = CounterMetricFamily("vidflow_outage_seconds", "Time that a server was away.", labels=["server"])
        with _lock:
            self._end_abandoned()
            now_s = time.monotonic()
            for server, number in self._counts.items():
                count.add_metric([server.lower()], number)
                current_s = now_s - self._since_s.get(server, now_s)
                seconds.add_metric([server.lower()], self._over_s[server] + current_s)
        yield count
        yield seconds

    def _end_abandoned(self) -> None:
        """End the outages whose Outage objects no longer exist."""
        away = {outage._server for outage in _open_outages}  # noqa: SLF001
        for server in self._since_s.keys() - away:
            self.end(server)


_totals: Final = _Totals()
PROCESS_REGISTRY.register(_totals)


class Outage:
    """One part of this process (a loop, a client) that uses a server. `needs` says what an operator should do in an outage."""

    def __init__(self, server: str, needs: str) -> None:
        self._server = server
        self._needs = needs
        with _lock:
            _totals.watch(server)

    @property
    def is_logged(self) -> bool:
        """Whether an outage of the server was logged, by any part, and its end was not."""
        return self._server in _away

    def begin(self, error: BaseException) -> None:
        """Note that the server failed. Log it unless another part has logged the same kind of outage of this server."""
        kind = _classify(error)
        with _lock:
            logged = any(
                other._server == self._server and other_kind == kind  # noqa: SLF001
                for other, other_kind in _open_outages.items()
            )
            _open_outages[self] = kind
            _away.add(self._server)
            _totals.begin(self._server)
        if not logged:
            needs = {AWAY: self._needs, DISK_FULL: _DISK_FULL_NEEDS, TIMED_OUT: _TIMED_OUT_NEEDS}.get(kind)
            _log.warning(kind, server=self._server, error=format_error(error), needs=needs)

    def end(self) -> None:
        """Note that the server answered. Log the end of the outage once it is over for all parts.

        It may have been noticed by other parts alone, which no longer exist: a client is replaced while its server is away.
        """
        with _lock:
            _open_outages.pop(self, None)
            over = self.is_logged and not any(other._server == self._server for other in _open_outages)  # noqa: SLF001
            if over:
                _away.discard(self._server)
                _totals.end(self._server)
        if over:
            _log.info("back", server=self._server)


def _classify(error: BaseException) -> str:
    if isinstance(error, VidflowError) and error.code in {TOPIC_MISSING, KAFKA_SECURITY}:
        return error.code
    state = getattr(error, "sqlstate", None)
    if state in TIMED_OUT_STATES:
        return TIMED_OUT
    return DISK_FULL if state == _DISK_FULL_STATE else AWAY


def format_error(error: BaseException) -> str:
    """Return an error's text as one line."""
    return " ".join(str(error).split())


def postgres_outage() -> Outage:
    """Return an Outage for a role's database."""
    return Outage("PostgreSQL", "waiting; start it, or set VIDFLOW_DATABASE_URL; `vidflow dev` starts its own")


def kafka_outage() -> Outage:
    """Return an Outage for a role's brokers."""
    return Outage("Kafka", "waiting; start it, or set VIDFLOW_KAFKA; `vidflow dev` starts its own")


def require_postgres(url: str) -> None:
    """Raise SetupError if `url` is empty or not a PostgreSQL URL. The error does not quote it: it may be a secret."""
    if not url:
        raise SetupError(
            "No database is configured. Set VIDFLOW_DATABASE_URL (or --database-url), or start everything with: vidflow dev"
        )
    if not url.startswith(("postgresql://", "postgres://")):
        raise SetupError(
            "VIDFLOW_DATABASE_URL (or --database-url) is not a PostgreSQL URL. Write postgresql://host:port/database, with "
            "user:password@ before the host."
        )


def require_kafka(settings: KafkaSettings) -> None:
    """Raise SetupError if no brokers are configured."""
    if not settings.bootstrap:
        raise SetupError(
            "No Kafka is configured. Set VIDFLOW_KAFKA (or --kafka), or start everything with: vidflow dev"
        )
