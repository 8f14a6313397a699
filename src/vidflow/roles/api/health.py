"""Health checks: whether this process lives, whether it can serve, and whether the whole system can run a scenario."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, Final, TypeVar

import psycopg
from litestar import Request, Router, get

from vidflow.contract import Health, RelayLag, SystemHealth
from vidflow.domain.errors import Unavailable
from vidflow.infra.postgres import system_status
from vidflow.infra.postgres.connection import Connection
from vidflow.roles.api.authentication import PUBLIC, SHOWS_LESS, has_caller
from vidflow.roles.api.bodies import build_pool_health
from vidflow.roles.api.context import Api, Context
from vidflow.roles.api.problems import problem, problem_responses

HEALTH_PATHS: Final = frozenset({"/health/live", "/health/ready", "/health/system"})
"""Served even when all regular connections are in use, and for any address in Host."""
CHECK_TIMEOUT_S: Final = 1.0
"""A check that takes longer has failed: callers need a prompt answer."""

# Separate threads, so that requests that hang do not block the checks.
_threads = ThreadPoolExecutor(4, thread_name_prefix="health")

T = TypeVar("T")


@get("/live", sync_to_thread=False, opt=PUBLIC)
def live() -> Health:
    """Report that this process answers."""
    return Health()


@get("/ready", opt=PUBLIC, responses=problem_responses(503))
async def ready(api: Api) -> Health:
    """Report whether this api can serve: its database answers and has the schema. Meant for load balancers."""
    await _query_database(api, system_status.check_tables)
    return Health()


@get("/system", opt=SHOWS_LESS, responses=problem_responses(401, 503))
async def system(request: Request[Any, Any, Any], api: Api) -> SystemHealth:
    """Report whether a scenario can run to its end: orchestrator, relay, runner and inbox are alive, and none lags.

    The status is `degraded` if scenarios wait in a pool that has no runner. Without a token, where one is needed, no pools are listed.
    """
    state, pools = await _query_database(
        api, lambda tx: (system_status.read_system_status(tx), system_status.read_pool_status(tx))
    )
    lag = RelayLag(state.outbox_waiting, round(state.outbox_oldest_s, 3))
    if state.missing:
        detail = f"Not running: {', '.join(state.missing)}. Start what is missing."
        if lag.oldest_s >= system_status.OUTBOX_STUCK_S:
            detail += f" The oldest message has waited for Kafka for {lag.oldest_s:.0f} s."
        raise problem(503, "not_running", detail, missing=state.missing, relay_lag=lag)
    if state.is_behind:
        detail = "The inbox runs, but has not stored the results of the last seconds: it has a backlog, or a Kafka broker is away."
        raise problem(503, "results_behind", detail, missing=[], relay_lag=lag)
    shown = pools if has_caller(request) else []
    return SystemHealth(
        status="degraded" if any(pool.is_empty for pool in pools) else "ok",
        relay_lag=lag,
        pools=[build_pool_health(pool) for pool in shown],
        empty_pools=[pool.pool for pool in shown if pool.is_empty],
    )


async def _query_database(api: Context, query: Callable[[Connection], T]) -> T:
    """Return the query's result. Raises a 503 problem that names the database if there is no result in time."""

    def run_query() -> T:
        with api.database.connection(CHECK_TIMEOUT_S) as connection:
            return query(connection)

    try:
        query_in_context = partial(copy_context().run, run_query)  # log lines have the request's id
        return await asyncio.wait_for(
            asyncio.get_running_loop().run_in_executor(_threads, query_in_context), CHECK_TIMEOUT_S
        )
    except Unavailable as error:
        raise problem(503, error.code, error.message, missing=["database"]) from error
    except (TimeoutError, psycopg.Error) as error:
        detail = f"The database did not answer within {CHECK_TIMEOUT_S:g} s. Start it, or check VIDFLOW_DATABASE_URL."
        raise problem(503, "database_unavailable", detail, missing=["database"]) from error


def router() -> Router:
    """Return the routes under /health."""
    return Router("/health", route_handlers=[live, ready, system], tags=["health"])
