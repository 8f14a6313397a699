"""Says once that a server is away and once that it is back, however many parts of this process notice it, and however often.

Also what a role says that was not told of its server at all.
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
"""The code of an error of a server that does answer: the error says itself what to do."""
KAFKA_SECURITY: Final = "kafka_security"
"""A broker that refuses this client, or with which TLS cannot be agreed on: the error says itself what to do."""
DISK_FULL: Final = "disk_full"
"""A PostgreSQL that answers and can store nothing more."""
TIMED_OUT: Final = "timed_out"
"""A PostgreSQL that answers and has ended a statement or a transaction by a time limit of its own."""
TIMED_OUT_STATES: Final = frozenset({
    "25P04",  # transaction_timeout: the server has closed the connection
    "55P03",  # lock_timeout
    "57014",  # statement_timeout, or cancelled by an administrator
})  # fmt: skip
_LIMIT: Final = (
    "trying again; look for slow statements and locks in pg_stat_activity, or raise the limit for vidflow's user"
)
_ROOM: Final = "waiting; make room on the disk of its data"
_NO_ROOM_STATE: Final = "53100"
_log = log("outage")
_lock: Final = threading.Lock()
_open_outages: Final[MutableMapping[Outage, str]] = WeakKeyDictionary()
"""The trouble that each part has with its server. A part that is gone has none: a closed client never tells that it is well."""


class _Totals(Collector):
    """How often each server was away, and for how long in all, what goes on now included. Used under the lock."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._over_s: dict[str, float] = {}
        self._since_s: dict[str, float] = {}

    def watch(self, server: str) -> None:
        """Export the server from now on, so that its first outage is seen as a change."""
        self._counts.setdefault(server, 0)
        self._over_s.setdefault(server, 0.0)

    def begin(self, server: str) -> None:
        """The server is away; begun already or not."""
        self._end_forgotten()
        if server not in self._since_s:
            self._since_s[server] = time.monotonic()
            self._counts[server] = self._counts.get(server, 0) + 1

    def end(self, server: str) -> None:
        """The server is back."""
        if (since_s := self._since_s.pop(server, None)) is not None:
            self._over_s[server] = self._over_s.get(server, 0.0) + time.monotonic() - since_s

    def collect(self) -> Iterable[Metric]:
        """Return the counters, by server."""
        count = CounterMetricFamily("vidflow_outages", "Times that a server was away.", labels=["server"])
        seconds = CounterMetricFamily("vidflow_outage_seconds", "Time that a server was away.", labels=["server"])
        with _lock:
            self._end_forgotten()
            now_s = time.monotonic()
            for server, number in self._counts.items():
                count.add_metric([server.lower()], number)
                under_way_s = now_s - self._since_s.get(server, now_s)
                seconds.add_metric([server.lower()], self._over_s[server] + under_way_s)
        yield count
        yield seconds

    def _end_forgotten(self) -> None:
        """End the outages of which no part is left: closed clients never tell that they are well."""
        known = {one._server for one in _open_outages}  # noqa: SLF001
        for server in self._since_s.keys() - known:
            self.end(server)


_totals: Final = _Totals()
PROCESS_REGISTRY.register(_totals)


class Outage:
    """What one part of this process (a loop, a client) knows of a server. `needs` tells an operator what to do."""

    def __init__(self, server: str, needs: str) -> None:
        self._server = server
        self._needs = needs
        with _lock:
            _totals.watch(server)

    def begin(self, error: BaseException) -> None:
        """The server did not answer, or not as it should: said where no part of this process has said it already."""
        trouble = _classify(error)
        with _lock:
            said = any(one._server == self._server and of == trouble for one, of in _open_outages.items())  # noqa: SLF001
            _open_outages[self] = trouble
            _totals.begin(self._server)
        if not said:
            needs = {AWAY: self._needs, DISK_FULL: _ROOM, TIMED_OUT: _LIMIT}.get(trouble)
            _log.warning(trouble, server=self._server, error=format_error(error), needs=needs)

    def end(self) -> None:
        """The server answered: said once all parts that missed it have it again."""
        with _lock:
            missed = _open_outages.pop(self, None) is not None
            over = missed and not any(one._server == self._server for one in _open_outages)  # noqa: SLF001
            if over:
                _totals.end(self._server)
        if over:
            _log.info("back", server=self._server)


def _classify(error: BaseException) -> str:
    if isinstance(error, VidflowError) and error.code in {TOPIC_MISSING, KAFKA_SECURITY}:
        return error.code
    state = getattr(error, "sqlstate", None)
    if state in TIMED_OUT_STATES:
        return TIMED_OUT
    return DISK_FULL if state == _NO_ROOM_STATE else AWAY


def format_error(error: BaseException) -> str:
    """What an error says; libraries like to say it in several lines."""
    return " ".join(str(error).split())


def postgres_outage() -> Outage:
    """For the database of a role."""
    return Outage("PostgreSQL", "waiting; start it, or set VIDFLOW_DATABASE_URL; `vidflow dev` brings its own")


def kafka_outage() -> Outage:
    """For the brokers of a role."""
    return Outage("Kafka", "waiting; start it, or set VIDFLOW_KAFKA; `vidflow dev` brings its own")


def require_postgres(url: str) -> None:
    """Raises SetupError where no database is named, or by something that is no URL: it is not repeated, it may be a secret."""
    if not url:
        raise SetupError(
            "no database is named: set VIDFLOW_DATABASE_URL (or --database-url), or start everything with: vidflow dev"
        )
    if not url.startswith(("postgresql://", "postgres://")):
        raise SetupError(
            "VIDFLOW_DATABASE_URL (or --database-url) is no URL of PostgreSQL: write postgresql://host:port/database with "
            "user:password@ before the host"
        )


def require_kafka(settings: KafkaSettings, *, or_else: str = "") -> None:
    """Raises SetupError where no brokers are named; `or_else` is another way out, for who has one."""
    if not settings.bootstrap:
        raise SetupError(
            f"no Kafka is named: set VIDFLOW_KAFKA (or --kafka), {or_else}or start everything with: vidflow dev"
        )
