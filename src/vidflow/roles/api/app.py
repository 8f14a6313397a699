"""The api process: the Litestar app, the HTTP server that runs it and, by default, the inbox."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from functools import partial
from typing import TYPE_CHECKING, Final, cast

import msgspec
import uvicorn
from litestar import Litestar, Router, get
from litestar.concurrency import set_asyncio_executor
from litestar.di import Provide
from litestar.openapi.config import OpenAPIConfig
from litestar.response import Redirect
from litestar.types import ASGIApp
from prometheus_client import CollectorRegistry

from vidflow import __version__
from vidflow.domain.errors import SetupError
from vidflow.infra.process.stopping import Stop, start_thread
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.metrics import served
from vidflow.infra.telemetry.outage import require_postgres
from vidflow.roles.api import health, init_checks, models, predictions, scenarios
from vidflow.roles.api.admission import Admission, require_folder
from vidflow.roles.api.authentication import PUBLIC, Authentication, provide_reader, provide_writer, require_tokens
from vidflow.roles.api.connections import ConnectionLimits, Connections, raise_file_limit
from vidflow.roles.api.context import Context
from vidflow.roles.api.cors import build_cors_config, parse_cors_origins
from vidflow.roles.api.database import Database
from vidflow.roles.api.guard import guard_requests
from vidflow.roles.api.hosts import AllowedHosts, is_loopback, parse_allowed_hosts
from vidflow.roles.api.http_protocol import LimitedProtocol
from vidflow.roles.api.methods import answer_head
from vidflow.roles.api.metrics import build_registry, measure_requests, metrics_route
from vidflow.roles.api.openapi import OpenApiPlugin
from vidflow.roles.api.problems import create_plugin
from vidflow.roles.api.queries import require_valid_parameters
from vidflow.roles.api.request_ids import identify_requests
from vidflow.roles.api.requests import MAX_BODY_BYTES, OPTIONS, StrictRequest
from vidflow.roles.api.swagger_ui import SwaggerUiPage
from vidflow.settings import ApiOptions, InboxOptions

if TYPE_CHECKING:
    from uvicorn._types import ASGIApplication

REQUEST_GRACE_S: Final = 5
"""Time that requests in progress have to finish after a stop is requested."""
CANCELLED_GRACE_S: Final = 2
"""Time that requests cancelled after that have to send their error."""
HANDLER_THREADS: Final = 64
"""Far more than database connections, so that requests waiting for a connection do not delay the 503 of others."""

LIMITS: Final = ConnectionLimits()
HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",  # or another site could embed /docs and trick its reader into clicking there
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Sent with every response."""

_log = log("api")


@get("/", include_in_schema=False, sync_to_thread=False, opt=PUBLIC)
def home() -> Redirect:
    """Redirect to the page to try the API, since there is no dashboard yet."""
    return Redirect("/docs")


def create_app(context: Context, allowed: AllowedHosts, stop: Stop, metrics_registry: CollectorRegistry) -> ASGIApp:
    """Return the app, wrapped in the request guard and the request metrics.

    While it runs, the app owns the thread that waits for the schema and, if it hosts the inbox, the inbox's thread.
    """
    options = context.options
    cors_origins = parse_cors_origins(options)

    def get_ready() -> None:
        context.database.wait_until_ready(stop)
        if not stop.requested:
            require_tokens(options, context.database)

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        threads = [start_thread("schema", get_ready, stop)]
        if options.inbox:
            threads.append(start_thread("inbox", lambda: _run_inbox(options, stop), stop))
        try:
            yield
        finally:
            stop.request()
            for thread in threads:
                await asyncio.to_thread(thread.join, REQUEST_GRACE_S)

    app = Litestar(
        route_handlers=[
            scenarios.router(), predictions.get_predictions, models.list_models, health.router(), home,
            *([metrics_route(metrics_registry)] if options.metrics_port is None else []),
        ],
        dependencies={
            "api": Provide(lambda: context, sync_to_thread=False),
            "reader": Provide(provide_reader, sync_to_thread=False),
            "writer": Provide(provide_writer, sync_to_thread=False),
        },
        middleware=[Authentication(options, context.database)],
        cors_config=build_cors_config(cors_origins),
        lifespan=[lifespan],
        plugins=[create_plugin()],
        before_request=require_valid_parameters,
        request_class=StrictRequest,
        request_max_body_size=MAX_BODY_BYTES,
        openapi_config=OpenAPIConfig(
            title="vidflow", version=__version__, path="/docs", use_handler_docstrings=True,
            description="Runs vision models over videos, frame by frame.",
            render_plugins=[OpenApiPlugin(), SwaggerUiPage()],
            openapi_router=Router("/docs", route_handlers=[], include_in_schema=False, opt=PUBLIC),
        ),
        logging_config=None,
    )  # fmt: skip
    app.state[OPTIONS] = options
    guarded = guard_requests(answer_head(app), allowed, cors_origins)
    return identify_requests(measure_requests(guarded))


def _run_inbox(options: ApiOptions, stop: Stop) -> None:
    from vidflow.roles import inbox  # noqa: PLC0415 - an api without an inbox needs no Kafka client

    inbox.run(InboxOptions(database_url=options.database_url, kafka=options.kafka, log_format=options.log_format), stop)


def run(options: ApiOptions, stop: Stop) -> None:
    """Serve until a stop is requested, then let requests finish. Requests that hang are ended with an error.

    Raises SetupError if the address cannot be bound, if no database is configured (or no Kafka, while it hosts the inbox), if
    the default frame rate, an allowed host or the data folder is invalid, or if other machines could name models by path.
    """
    init_checks.parse_default_fps(options)
    allowed = parse_allowed_hosts(options)
    parse_cors_origins(options)
    require_folder(options)
    models.require_loopback(options)
    require_postgres(options.database_url)
    if options.inbox and not options.kafka.bootstrap:
        raise SetupError(
            "No Kafka is configured for the inbox. Set VIDFLOW_KAFKA (or --kafka), or give --no-inbox if an inbox runs elsewhere."
        )
    set_asyncio_executor(ThreadPoolExecutor(HANDLER_THREADS, thread_name_prefix="handler"))
    with _open_socket(options) as listener, closing(Database(options.database_url, options.pool_size)) as database:
        context = Context(options, database, Admission(options))
        exported = build_registry(context)
        app = create_app(context, allowed, stop, exported)
        server = _server(app, options, msgspec.structs.replace(LIMITS, connections=options.max_connections))
        with served(exported, options.metrics_port, options.metrics_host):
            thread = start_thread("http", lambda: server.run(sockets=[listener]), stop)
            _warn_if_reachable(listener, options)
            host, port = listener.getsockname()[:2]
            _log.info("listening", url=f"http://{host}:{port}", docs=f"http://{host}:{port}/docs")
            stop.wait()
            server.should_exit = True
            thread.join(REQUEST_GRACE_S)
            database.close()
            thread.join()


def _server(app: ASGIApp, options: ApiOptions, limits: ConnectionLimits) -> uvicorn.Server:
    raise_file_limit(limits)
    protocol = partial(LimitedProtocol, Connections(limits))
    return uvicorn.Server(
        uvicorn.Config(
            cast("ASGIApplication", app),
            loop="uvloop",
            http=cast("type[asyncio.Protocol]", protocol),
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            headers=list(HEADERS.items()),
            # A proxy's X-Forwarded-For says where a request came from, which the audit records.
            proxy_headers=bool(options.trusted_proxies),
            forwarded_allow_ips=list(options.trusted_proxies),
            timeout_keep_alive=limits.idle_s,
            timeout_graceful_shutdown=REQUEST_GRACE_S + CANCELLED_GRACE_S,
        )
    )


def _warn_if_reachable(listener: socket.socket, options: ApiOptions) -> None:
    """Log a warning if other machines can reach the api and it lets everyone in."""
    host = listener.getsockname()[0]
    if not options.auth and not is_loopback(host):
        _log.warning(
            "reachable_by_others",
            host=host,
            means="anyone who reaches this address can read all results and start and stop scenarios, because of --no-auth",
            needs="leave out --no-auth and create tokens (vidflow token create), or restrict access by a firewall",
        )


def _open_socket(options: ApiOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=1024)
    except OSError as error:
        raise SetupError(
            f"The api cannot listen on {options.host}:{options.port} ({error.strerror}). Choose another --port or --host."
        ) from error
