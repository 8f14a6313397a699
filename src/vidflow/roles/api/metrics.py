"""What Prometheus scrapes: how requests go, and from the database how much there is to do. It judges nothing."""

from __future__ import annotations

import math
import time
from typing import Final

import psycopg
from litestar import Response, get
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import Counter, Gauge, Histogram, generate_latest

from vidflow.domain.errors import Unavailable
from vidflow.domain.scenario import State
from vidflow.infra import outbox, vitals
from vidflow.infra.metrics import OUTBOX_OLDEST_S, OUTBOX_SET_ASIDE, OUTBOX_WAITING
from vidflow.infra.postgres import Connection
from vidflow.roles.api.admission import free_bytes
from vidflow.roles.api.context import Api

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

REQUESTS: Final = Counter("vidflow_http_requests", "Requests answered.", ["method", "path", "status"])
REQUEST_SECONDS: Final = Histogram(
    "vidflow_http_request_seconds", "Time to answer.", ["method", "path"], buckets=_SECONDS
)
DATABASE_UP: Final = Gauge("vidflow_database_up", "1 if the database answered the last scrape.")
SCENARIOS: Final = Gauge("vidflow_scenarios", "Scenarios by state.", ["state"])
RUNNERS: Final = Gauge("vidflow_runners", "Runners that were seen lately.")
DISK_FREE: Final = Gauge(
    "vidflow_data_disk_free_bytes", "Room left on the disk of --data-dir; 0 where none is watched."
)
INBOX_LAG_S: Final = Gauge("vidflow_inbox_lag_seconds", "How long ago all results were surely stored; infinite: never.")


@get("/metrics", sync_to_thread=True, include_in_schema=False)
def metrics(api: Api) -> Response[bytes]:
    """Metrics in Prometheus' text form; while the database is away, its part as it last was."""
    try:
        with api.database.connection() as connection:
            _read(connection)
        DATABASE_UP.set(1)
    except (psycopg.Error, Unavailable):
        DATABASE_UP.set(0)
    if api.options.data_dir is not None:
        DISK_FREE.set(free_bytes(api.options.data_dir))
    return Response(generate_latest(), media_type="text/plain; version=0.0.4")


def _read(tx: Connection) -> None:
    """Sets what the database tells."""
    counts = vitals.scenarios_by_state(tx)
    for state in State:
        SCENARIOS.labels(state).set(counts.get(state, 0))
    lag = outbox.lag(tx)
    OUTBOX_WAITING.set(lag.waiting)
    OUTBOX_OLDEST_S.set(lag.oldest_s)
    OUTBOX_SET_ASIDE.set(lag.set_aside)
    signs = vitals.read(tx)
    RUNNERS.set(signs.runners)
    INBOX_LAG_S.set(math.inf if signs.inbox_lag_s is None else signs.inbox_lag_s)


def measured(app: ASGIApp) -> ASGIApp:
    """The app with its requests counted, by the template of their path: what clients make up is one path, `other`."""

    async def measure(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        status = 500

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began_s = time.perf_counter()
        try:
            await app(scope, receive, note)
        finally:
            path = str(scope.get("path_template") or "other")
            method = scope["method"] if path != "other" else "other"
            REQUESTS.labels(method, path, status).inc()
            REQUEST_SECONDS.labels(method, path).observe(time.perf_counter() - began_s)

    return measure
