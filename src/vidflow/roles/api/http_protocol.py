"""uvicorn's HTTP protocol with limits: size and time of a request's head, pace of request bodies and responses."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httptools
from litestar.types import ASGIApp
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from vidflow.roles.api.connections import Connections, TransferDeadline
from vidflow.roles.api.health import HEALTH_PATHS
from vidflow.roles.api.problems import encode_problem, send_problem
from vidflow.roles.api.request_ids import HEADER, choose_request_id, identify_requests

_CHUNK_BYTES: Final = 8 * 1024
"""The parser is fed in chunks, so that an oversized head is noticed within one of them."""
_VERSIONS: Final = frozenset({"1.0", "1.1"})
"""The parser also accepts 0.9 and 2.0, whose messages have another form."""


class RequestPhase(Enum):
    """The phase of a connection's newest request."""

    IDLE = "idle"  # no part of a request has arrived
    HEAD = "head"
    BODY = "body"
    RESPONSE = "response"  # the request is complete
    CLOSING = "closing"  # refused: further input is read and dropped


class RequestLimitExceeded(Exception):
    """The head of a request is too large, or too many requests of the connection are unanswered."""


class LimitedProtocol(HttpToolsProtocol):
    """One client connection."""

    def __init__(self, connections: Connections, **uvicorn_arguments: Any) -> None:  # noqa: ANN401 - passed through
        super().__init__(**uvicorn_arguments)
        self._connections = connections
        self._limits = connections.limits
        self._phase = RequestPhase.IDLE
        self._since_s = self.loop.time()
        self._head_bytes = 0
        self._fed_bytes = 0
        self._body_deadline = TransferDeadline(self._since_s, 0, 1)
        self._response_deadline: TransferDeadline | None = None
        self._unread_bytes = 0
        self._latest_app: _RequestApp
        self._active_apps: set[_RequestApp] = set()

    # --- uvicorn's callbacks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Register the connection."""
        super().connection_made(transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._connections.remove(self)
        self._unset_keepalive_if_required()
        self._disconnect_apps()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, which calls the methods below."""
        self._unset_keepalive_if_required()
        if self._phase is RequestPhase.IDLE:
            self._enter_head()
        for start in range(0, len(data), _CHUNK_BYTES):
            if self._phase is RequestPhase.CLOSING or self.transport.is_closing():
                return
            self._feed(data[start : start + _CHUNK_BYTES])

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._enter_head()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Add a part of the request's target."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header. Headers after the body are dropped, since nothing reads them."""
        self._count_head(len(name) + len(value) + 4)
        if self._phase is RequestPhase.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the app: the head is complete."""
        if len(self.pipeline) >= self._limits.max_pipelined:
            raise RequestLimitExceeded
        if self.parser.get_http_version() not in _VERSIONS:
            raise ValueError(self.parser.get_http_version())
        self._take_absolute_target()
        self._phase = RequestPhase.BODY
        self._body_deadline = TransferDeadline(
            self.loop.time(), self._limits.body_grace_s, self._limits.body_bytes_per_s
        )
        served, reserved = self.app, not self._connections.is_served(self)
        refuses = reserved and self.url.partition(b"?")[0].decode("latin-1") not in HEALTH_PATHS
        if refuses:
            self._connections.count_refusal("too_many")
        self.app = self._latest_app = _RequestApp(_REFUSAL if refuses else served, closes=reserved)
        try:
            super().on_headers_complete()
        finally:
            self.app = served
        self._latest_app.attach(self.cycle, self._active_apps)

    def on_body(self, body: bytes) -> None:
        """Add a part of the body."""
        self._body_deadline.extend(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is complete."""
        self._phase = RequestPhase.RESPONSE
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Finish a response. If the request is not complete yet, close without waiting for its rest."""
        super().on_response_complete()
        if self._phase is not RequestPhase.CLOSING and self.cycle.response_complete:
            if self._latest_app.sent_close or self.cycle.more_body:
                self._start_lingering_close()
            elif self._phase is RequestPhase.RESPONSE:
                self._phase = RequestPhase.IDLE

    def shutdown(self) -> None:
        """Stop serving. A body in progress gets a short deadline, so that a slow client does not delay the stop."""
        super().shutdown()
        if self._phase is RequestPhase.BODY:
            self._body_deadline = TransferDeadline(
                self.loop.time(), self._limits.stop_grace_s, self._limits.body_bytes_per_s
            )

    # --- methods of ClientConnection

    @property
    def is_answering(self) -> bool:
        """Whether a request has arrived that is not answered yet."""
        return self._phase in {RequestPhase.BODY, RequestPhase.RESPONSE}

    def drop(self) -> None:
        """Close at once, without a response."""
        self._phase = RequestPhase.CLOSING
        self._disconnect_apps()
        self.transport.abort()

    def _disconnect_apps(self) -> None:
        """Disconnect the apps of all requests. uvicorn itself knows only the newest one."""
        for request_app in self._active_apps:
            request_app.disconnect()

    def check_deadlines(self, now_s: float) -> None:
        """Refuse or drop the connection if it is late. No deadline runs while uvicorn does not read because the app is busy."""
        if self._is_response_late(now_s):
            self._connections.count_refusal("answer_late")
            self.drop()
        elif self._phase is RequestPhase.CLOSING:
            if now_s > self._since_s + self._limits.linger_s:
                self.drop()
        elif self.flow.read_paused:
            self._since_s = now_s
            self._body_deadline = TransferDeadline(now_s, self._limits.body_grace_s, self._limits.body_bytes_per_s)
        elif self._phase is RequestPhase.HEAD and now_s > self._head_deadline_s:
            self._refuse(408, "head_late", "The head of the request did not arrive in time. Send it at once.")
        elif self._phase is RequestPhase.IDLE and self.cycle is None and now_s > self._head_deadline_s:
            self.drop()  # it never carried a request: browsers open such connections in advance
        elif self._phase is RequestPhase.BODY and self._body_deadline.is_late(now_s):
            self._refuse(408, "body_late", "The body of the request arrives too slowly. Send it faster.")

    @property
    def _head_deadline_s(self) -> float:
        served = self._connections.is_served(self)
        return self._since_s + (self._limits.head_s if served else self._limits.reserved_head_s)

    # --- limits and refusals

    def _enter_head(self) -> None:
        self._phase = RequestPhase.HEAD
        self._since_s = self.loop.time()
        self._head_bytes = self._fed_bytes = 0
        self.headers = []

    def _feed(self, chunk: bytes) -> None:
        self._fed_bytes += len(chunk)
        try:
            self.parser.feed_data(chunk)
        except httptools.HttpParserUpgrade:
            return  # the server supports no other protocol and answers in HTTP/1.1
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, RequestLimitExceeded):
                self._refuse_head()
            else:
                self._refuse(400, "request_malformed", "The data received is not an HTTP request.")
            return
        if self._phase is RequestPhase.HEAD and self._fed_bytes > self._limits.head_bytes + _CHUNK_BYTES:
            self._refuse_head()

    def _refuse_head(self) -> None:
        self._refuse(
            431,
            "head_too_large",
            f"The head of the request exceeds {self._limits.head_bytes} bytes. Send fewer or shorter headers.",
        )

    def _count_head(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > self._limits.head_bytes:
            raise RequestLimitExceeded

    def _take_absolute_target(self) -> None:
        """Split an absolute target (http://host/path). Its host replaces the Host header (RFC 9112, 3.2.2)."""
        if self.url.startswith(b"/") or b"://" not in self.url:
            return
        target = urlsplit(self.url.decode("ascii"))
        if target.scheme not in {"http", "https"} or not target.netloc:
            raise ValueError(target)
        self.url = ((target.path or "/") + (f"?{target.query}" if target.query else "")).encode()
        self.headers[:] = [(name, value) for name, value in self.headers if name != b"host"]
        self.headers.append((b"host", target.netloc.encode()))

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Send a problem, unless another response is in progress, and close."""
        self._connections.count_refusal(code)
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._disconnect_apps()  # an app that waits for the body must learn that it will not arrive
            if cycle.response_started or self.pipeline or self._phase is not RequestPhase.BODY:
                self.drop()
                return
        request_id = choose_request_id(self.headers or ())
        headers, body = encode_problem(status, code, detail, request_id)
        headers = [
            *self.server_state.default_headers, *headers, (HEADER, request_id.encode()), (b"connection", b"close"),
        ]  # fmt: skip
        lines = [b"%s: %s\r\n" % header for header in headers]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", b"" if self._is_head_request else body]))
        self._start_lingering_close()

    @property
    def _is_head_request(self) -> bool:
        """Whether the newest request, or the part of it that has arrived, has the method HEAD."""
        return self._phase is not RequestPhase.IDLE and self.parser.get_method() == b"HEAD"

    def _start_lingering_close(self) -> None:
        """Close the sending side and read on for a while: after an immediate close, a reset could discard the response."""
        self._phase = RequestPhase.CLOSING
        self._since_s = self.loop.time()
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()

    def _is_response_late(self, now_s: float) -> bool:
        """Return whether the client reads the response too slowly."""
        unread = self.transport.get_write_buffer_size()
        if not unread:
            self._response_deadline = None
        elif self._response_deadline is None:
            self._response_deadline = TransferDeadline(
                now_s, self._limits.response_grace_s, self._limits.body_bytes_per_s
            )
        elif unread < self._unread_bytes:
            self._response_deadline.extend(self._unread_bytes - unread)
        self._unread_bytes = unread
        return self._response_deadline is not None and self._response_deadline.is_late(now_s)


class _RequestApp:
    """The app of one request. Adds `Connection: close` to the response if the connection closes after it.

    It closes if the body was not read to its end, or if the connection is a reserved one. The header is hidden from uvicorn, which
    would close at once; a reset could then discard the response.
    """

    def __init__(self, app: ASGI3Application, *, closes: bool) -> None:
        self._app = app
        self._closes = closes
        self._cycle: RequestResponseCycle
        self._active_apps: set[_RequestApp]
        self.sent_close = False

    def attach(self, cycle: RequestResponseCycle, active_apps: set[_RequestApp]) -> None:
        """Attach to a request before its app runs. The app is one of the connection's `active_apps` until it has finished."""
        self._cycle = cycle
        self._active_apps = active_apps
        active_apps.add(self)

    def disconnect(self) -> None:
        """Make the app end: it reads that the client is gone, and its output is dropped."""
        self._cycle.disconnected = True
        self._cycle.waiting_for_100_continue = False
        self._cycle.message_event.set()

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def send_response(message: ASGISendEvent) -> None:
            cycle = self._cycle
            if cycle.transport.is_closing():
                self.disconnect()
            if message["type"] != "http.response.start" or not (self._closes or cycle.more_body):
                await send(message)
                return
            self.sent_close = True
            await send({**message, "headers": [*message.get("headers", []), (b"connection", b"close")]})
            cycle.keep_alive = True

        try:
            await self._app(scope, receive, send_response)
        finally:
            self._active_apps.discard(self)


async def _refuse_connection(_scope: Scope, _receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Refuse a request other than a health check on a reserved connection."""
    await send_problem(
        send,
        503,
        "too_many_connections",
        "All connections of this server are in use. Try again soon, or ask the operator to raise --max-connections.",
    )


_REFUSAL: Final = cast("ASGI3Application", identify_requests(cast("ASGIApp", _refuse_connection)))
