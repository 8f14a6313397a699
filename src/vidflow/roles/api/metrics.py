"""Prometheus metrics of an api: its requests, its connection pool, and the state of the whole system in its database.

The cost of a scrape does not grow with the number of scenarios: scenarios in each state are counted up to MAX_COUNTED_SCENARIOS, and
ended ones are counted by the orchestrator instead.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from typing import Final

import psycopg
from litestar import Response, get
from litestar.enums import ScopeType
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from vidflow.domain.errors import Unavailable
from vidflow.infra.postgres import outbox, scenarios, system_status
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.telemetry.metrics import INBOX_REGISTRY, build_role_registry
from vidflow.roles.api.admission import free_bytes
from vidflow.roles.api.context import Context

API: Final = CollectorRegistry()
"""Metrics of this process."""
TABLES: Final = CollectorRegistry()
"""Metrics read from the database, left out of a scrape while it is away."""

_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

REQUESTS: Final = Counter("vidflow_http_requests", "Requests answered.", ["method", "path", "status"], registry=API)
REQUEST_SECONDS: Final = Histogram(
    "vidflow_http_request_seconds", "Time to answer.", ["method", "path"], buckets=_BUCKETS_S, registry=API
)
DATABASE_UP: Final = Gauge("vidflow_database_up", "1 if the database answered this scrape.", registry=API)
POOL_LIMIT: Final = Gauge("vidflow_database_pool_limit", "Connections that the pool may have.", registry=API)
POOL_CONNECTIONS: Final = Gauge("vidflow_database_pool_connections", "Connections of the pool.", registry=API)
POOL_IN_USE: Final = Gauge("vidflow_database_pool_in_use", "Connections in use by requests.", registry=API)
POOL_WAITING: Final = Gauge("vidflow_database_pool_waiting", "Requests that wait for a connection.", registry=API)
DISK_FREE: Final = Gauge(
    "vidflow_data_disk_free_bytes", "Free bytes on the disk of --data-dir; 0 if it is not set.", registry=API
)

SCENARIOS: Final = Gauge(
    "vidflow_scenarios", "Scenarios by state, at most 10,000 of each counted.", ["state"], registry=TABLES
)
QUEUE_OLDEST_S: Final = Gauge(
    "vidflow_queue_oldest_seconds", "Longest time a scenario has waited for a runner.", registry=TABLES
)
OUTBOX_WAITING: Final = Gauge(
    "vidflow_outbox_waiting", "Messages that wait in the outbox, at most 10,000 counted.", registry=TABLES
)
OUTBOX_OLDEST_S: Final = Gauge(
    "vidflow_outbox_oldest_seconds", "Age of the oldest message in the outbox.", registry=TABLES
)
OUTBOX_SET_ASIDE: Final = Gauge(
    "vidflow_outbox_set_aside", "Messages in the outbox that Kafka rejected, at most 10,000 counted.", registry=TABLES
)
POOL_RUNNERS: Final = Gauge("vidflow_pool_runners", "Runners of a pool.", ["pool"], registry=TABLES)
POOL_SLOTS: Final = Gauge("vidflow_pool_slots", "Slots of a pool's runners.", ["pool"], registry=TABLES)
POOL_USED: Final = Gauge("vidflow_pool_slots_used", "Slots of a pool's runners in use.", ["pool"], registry=TABLES)
POOL_QUEUE: Final = Gauge(
    "vidflow_pool_waiting", "Scenarios in a pool's queue, at most 1,000 counted.", ["pool"], registry=TABLES
)
RUNNERS: Final = Gauge("vidflow_runners", "Runners seen within the last seconds.", registry=TABLES)
INBOX_LAG_S: Final = Gauge(
    "vidflow_inbox_lag_seconds",
    "Age of the latest time up to which all results are stored; infinite if there is none.",
    registry=TABLES,
)


class _ApiCollector(Collector):
    """The metrics of an api, updated at each scrape."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of this process, and those read from the database if it answers."""
        with self._lock:
            self._set_process_metrics()
            try:
                with self._context.database.connection() as connection:
                    set_database_metrics(connection)
                DATABASE_UP.set(1)
            except (psycopg.Error, Unavailable):
                DATABASE_UP.set(0)
                return list(API.collect())
            return [*API.collect(), *TABLES.collect()]

    def describe(self) -> Iterable[Metric]:
        """Return the metric families without a query."""
        return [*API.collect(), *TABLES.collect()]

    def _set_process_metrics(self) -> None:
        pool = self._context.database.read_usage()
        POOL_LIMIT.set(pool.limit)
        POOL_CONNECTIONS.set(pool.connected)
        POOL_IN_USE.set(pool.in_use)
        POOL_WAITING.set(pool.waiting)
        if self._context.options.data_dir is not None:
            DISK_FREE.set(free_bytes(self._context.options.data_dir))


def build_registry(context: Context) -> CollectorRegistry:
    """Return the registry that this api exports, with the inbox's metrics if it hosts the inbox."""
    registry = build_role_registry("api", *([INBOX_REGISTRY] if context.options.inbox else []))
    registry.register(_ApiCollector(context))
    return registry


def metrics_route(metrics_registry: CollectorRegistry) -> HTTPRouteHandler:
    """Return the handler of `GET /metrics`, for an api without a separate metrics port."""

    @get("/metrics", sync_to_thread=True, include_in_schema=False)
    def metrics() -> Response[bytes]:
        """Return the metrics in the Prometheus text format."""
        return Response(generate_latest(metrics_registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return metrics


def set_database_metrics(tx: Connection) -> None:
    """Set the metrics that are read from the database."""
    for scenario_state, count in scenarios.count_scenarios_by_state(tx).items():
        SCENARIOS.labels(scenario_state).set(count)
    QUEUE_OLDEST_S.set(scenarios.read_queue_oldest_s(tx))
    OUTBOX_SET_ASIDE.set(outbox.count_set_aside(tx))
    _set_pool_metrics(system_status.read_pool_status(tx))
    state = system_status.read_system_status(tx)
    OUTBOX_WAITING.set(state.outbox_waiting)
    OUTBOX_OLDEST_S.set(state.outbox_oldest_s)
    RUNNERS.set(state.runners)
    INBOX_LAG_S.set(math.inf if state.inbox_lag_s is None else state.inbox_lag_s)


def _set_pool_metrics(pools: Iterable[system_status.PoolStatus]) -> None:
    """Set the metrics of each pool that has runners. The others are summed up as `other`, since clients can invent their names."""
    for gauge in (POOL_RUNNERS, POOL_SLOTS, POOL_USED, POOL_QUEUE):
        gauge.clear()
    for pool in pools:
        name = pool.pool if pool.runners else "other"
        POOL_RUNNERS.labels(name).inc(pool.runners)
        POOL_SLOTS.labels(name).inc(pool.slots)
        POOL_USED.labels(name).inc(pool.used)
        POOL_QUEUE.labels(name).inc(pool.waiting)


def measure_requests(app: ASGIApp) -> ASGIApp:
    """Return the app, wrapped to count and time requests by path template. Paths and methods that clients invent are `other`."""

    async def measure(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        status = 500

        async def record_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started_s = time.perf_counter()
        try:
            await app(scope, receive, record_status)
        finally:
            path = str(scope.get("path_template") or "other")
            method = scope["method"] if path != "other" and scope["method"] in _METHODS else "other"
            REQUESTS.labels(method, path, status).inc()
            REQUEST_SECONDS.labels(method, path).observe(time.perf_counter() - started_s)

    return measure
