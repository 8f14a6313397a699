"""Whether this process lives, whether it can serve, and whether the whole of vidflow can run a scenario: three questions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import msgspec
import psycopg
from litestar import Router, get

from vidflow.domain.errors import Unavailable
from vidflow.infra.postgres import system_status
from vidflow.infra.postgres.connection import Connection
from vidflow.roles.api.context import Api, Context
from vidflow.roles.api.problems import problem, problem_responses
from vidflow.roles.api.schemas import Health, PoolHealth, RelayLag, SystemHealth

HEALTH_PATHS: Final = frozenset({"/health/live", "/health/ready", "/health/system"})
"""Answered whatever is short, and to any address."""
CHECK_TIMEOUT_S: Final = 1.0
"""A check that takes longer has failed: who asks wants to know now."""

# Threads of their own: requests that hang must not keep a check from being asked.
_threads = ThreadPoolExecutor(4, thread_name_prefix="health")

T = TypeVar("T")


@get("/live", sync_to_thread=False)
def live() -> Health:
    """This process answers."""
    return Health()


@get("/ready", responses=problem_responses(503))
async def ready(api: Api) -> Health:
    """This api can serve: its database answers and has the schema. For load balancers."""
    await _query_database(api, system_status.check_tables)
    return Health()


@get("/system", responses=problem_responses(503))
async def system(api: Api) -> SystemHealth:
    """A scenario could run to its end: an orchestrator leads, a relay, a runner and the inbox are at work, and none lags.

    A pool in which scenarios wait and that has no runner makes it `degraded`, and is named.
    """
    signs, pools = await _query_database(
        api, lambda tx: (system_status.read_system_status(tx), system_status.read_pool_status(tx))
    )
    lag = RelayLag(signs.outbox_waiting, round(signs.outbox_oldest_s, 3))
    if signs.missing:
        detail = f"missing: {', '.join(signs.missing)}; start what is missing"
        if lag.oldest_s >= system_status.OUTBOX_STUCK_S:
            detail += f" (a message waits for Kafka for {lag.oldest_s:.0f} s)"
        raise problem(503, "not_running", detail, missing=signs.missing, relay_lag=lag)
    if signs.is_behind:
        detail = "the inbox runs and has not stored the results of the last seconds: a broker of Kafka is away, or it has a backlog"
        raise problem(503, "results_behind", detail, missing=[], relay_lag=lag)
    empty = [one.pool for one in pools if one.is_empty]
    shown = [PoolHealth(**msgspec.structs.asdict(one)) for one in pools]
    return SystemHealth(status="degraded" if empty else "ok", relay_lag=lag, pools=shown, empty_pools=empty)


async def _query_database(api: Context, question: Callable[[Connection], T]) -> T:
    """The database's answer. Raises a problem that names the database where there is none in time."""

    def ask() -> T:
        with api.database.connection(CHECK_TIMEOUT_S) as connection:
            return question(connection)

    try:
        return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(_threads, ask), CHECK_TIMEOUT_S)
    except Unavailable as error:
        raise problem(503, error.code, error.message, missing=["database"]) from error
    except (TimeoutError, psycopg.Error) as error:
        detail = f"missing: database (no answer within {CHECK_TIMEOUT_S:g} s); start it, or check VIDFLOW_DATABASE_URL"
        raise problem(503, "database_unavailable", detail, missing=["database"]) from error


def router() -> Router:
    """The routes of this resource."""
    return Router("/health", route_handlers=[live, ready, system], tags=["health"])
