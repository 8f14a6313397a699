"""uvicorn's HTTP protocol with limits: the size and time of a request's head, the pace of bodies and answers."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Any, Final
from urllib.parse import urlsplit

import httptools
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from vidflow.roles.api.connections import Connections, TransferDeadline
from vidflow.roles.api.health import HEALTH_PATHS
from vidflow.roles.api.problems import encode_problem, send_problem

_CHUNK_BYTES: Final = 8 * 1024
"""The parser is fed in parts, so that a head that is too long is noticed within one of them."""


class RequestPhase(Enum):
    """How far a connection is with its newest request."""

    IDLE = "quiet"  # nothing of a request has come
    HEAD = "head"
    BODY = "body"
    RESPONSE = "answer"  # the request is whole
    CLOSING = "closing"  # refused: what still comes is read and dropped


class RequestLimitExceeded(Exception):
    """The head of a request is longer than it may be, or there are too many requests ahead of their answers."""


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, connections: Connections, **parts: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(**parts)
        self._connections = connections
        self._limits = connections.limits
        self._phase = RequestPhase.IDLE
        self._since_s = self.loop.time()
        self._head_bytes = 0
        self._part_bytes = 0
        self._body_deadline = TransferDeadline(self._since_s, 0, 1)
        self._response_deadline: TransferDeadline | None = None
        self._unread_bytes = 0
        self._latest_app: _RequestApp
        self._active_apps: set[_RequestApp] = set()

    # --- uvicorn's callbacks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection."""
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
        """A request begins."""
        self._enter_head()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Part of the request's target has come."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header has come. Those after the body, which nothing here reads, are dropped."""
        self._count_head(len(name) + len(value) + 4)
        if self._phase is RequestPhase.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole: the app is started."""
        if len(self.pipeline) >= self._limits.max_pipelined:
            raise RequestLimitExceeded
        self._take_absolute_target()
        self._phase = RequestPhase.BODY
        self._body_deadline = TransferDeadline(
            self.loop.time(), self._limits.body_grace_s, self._limits.body_bytes_per_s
        )
        served, reserved = self.app, not self._connections.is_served(self)
        refuses = reserved and self.url.partition(b"?")[0].decode("latin-1") not in HEALTH_PATHS
        if refuses:
            self._connections.count_refusal("too_many")
        self.app = self._latest_app = _RequestApp(_refuse_connection if refuses else served, closes=reserved)
        try:
            super().on_headers_complete()
        finally:
            self.app = served
        self._latest_app.attach(self.cycle, self._active_apps)

    def on_body(self, body: bytes) -> None:
        """Part of the body has come."""
        self._body_deadline.extend(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._phase = RequestPhase.RESPONSE
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is written. Where the request is not whole yet, the rest of it is not waited for."""
        super().on_response_complete()
        if self._phase is not RequestPhase.CLOSING and self.cycle.response_complete:
            if self._latest_app.sent_close or self.cycle.more_body:
                self._start_lingering_close()
            elif self._phase is RequestPhase.RESPONSE:
                self._phase = RequestPhase.IDLE

    def shutdown(self) -> None:
        """The server stops: a body that is under way has a moment more, so that a slow one does not hold up the stop."""
        super().shutdown()
        if self._phase is RequestPhase.BODY:
            self._body_deadline = TransferDeadline(
                self.loop.time(), self._limits.stop_grace_s, self._limits.body_bytes_per_s
            )

    # --- Connection

    @property
    def is_answering(self) -> bool:
        """Whether a request has come that is still to be answered."""
        return self._phase in {RequestPhase.BODY, RequestPhase.RESPONSE}

    def drop(self) -> None:
        """Close at once, without an answer."""
        self._phase = RequestPhase.CLOSING
        self._disconnect_apps()
        self.transport.abort()

    def _disconnect_apps(self) -> None:
        """Tell the apps of all requests, of which uvicorn knows the newest alone, that nobody hears them any more."""
        for answer in self._active_apps:
            answer.disconnect()

    def check_deadlines(self, now_s: float) -> None:
        """Act on what is late. What uvicorn does not read, since the app is busy, is not the client's fault."""
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
            self._refuse(408, "head_late", "the head of the request did not come in time")
        elif self._phase is RequestPhase.IDLE and self.cycle is None and now_s > self._head_deadline_s:
            self.drop()  # a connection on which nothing was ever sent: browsers open such
        elif self._phase is RequestPhase.BODY and self._body_deadline.is_late(now_s):
            self._refuse(408, "body_late", "the body of the request comes too slowly")

    @property
    def _head_deadline_s(self) -> float:
        served = self._connections.is_served(self)
        return self._since_s + (self._limits.head_s if served else self._limits.reserved_head_s)

    # --- what is refused

    def _enter_head(self) -> None:
        self._phase = RequestPhase.HEAD
        self._since_s = self.loop.time()
        self._head_bytes = self._part_bytes = 0

    def _feed(self, part: bytes) -> None:
        self._part_bytes += len(part)
        try:
            self.parser.feed_data(part)
        except httptools.HttpParserUpgrade:
            return  # to nothing that this server speaks: it answers in HTTP/1.1
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, RequestLimitExceeded):
                self._refuse_head()
            else:
                self._refuse(400, "request_malformed", "this is not an HTTP request")
            return
        if self._phase is RequestPhase.HEAD and self._part_bytes > self._limits.head_bytes + _CHUNK_BYTES:
            self._refuse_head()

    def _refuse_head(self) -> None:
        self._refuse(
            431, "head_too_large", f"the head of a request may have {self._limits.head_bytes} bytes; send fewer headers"
        )

    def _count_head(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > self._limits.head_bytes:
            raise RequestLimitExceeded

    def _take_absolute_target(self) -> None:
        """A target such as http://host/path names the host, whatever the Host header says (RFC 9112, 3.2.2)."""
        if self.url.startswith(b"/") or b"://" not in self.url:
            return
        target = urlsplit(self.url.decode("ascii"))
        if target.scheme not in {"http", "https"} or not target.netloc:
            raise ValueError(target)
        self.url = ((target.path or "/") + (f"?{target.query}" if target.query else "")).encode()
        self.headers[:] = [(name, value) for name, value in self.headers if name != b"host"]
        self.headers.append((b"host", target.netloc.encode()))

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Answer with a problem where no other answer is under way, and close."""
        self._connections.count_refusal(code)
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._disconnect_apps()  # the app, if it waits for the body, learns that it will not come
            if cycle.response_started or self.pipeline or self._phase is not RequestPhase.BODY:
                self.drop()
                return
        headers, body = encode_problem(status, code, detail)
        headers = [*self.server_state.default_headers, *headers, (b"connection", b"close")]
        lines = [b"%s: %s\r\n" % header for header in headers]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        self._start_lingering_close()

    def _start_lingering_close(self) -> None:
        """End the answer's direction and read on for a while: closed at once, the client would lose the answer to a reset."""
        self._phase = RequestPhase.CLOSING
        self._since_s = self.loop.time()
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()

    def _is_response_late(self, now_s: float) -> bool:
        """Whether the client has stopped reading what was written."""
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
    """The app of one request. Its answer says that the connection closes, where that follows: the body was not read to its end, or
    the connection is a reserved one.

    uvicorn would close at once then, and the client lose the answer to a reset; so it is told nothing of the header.
    """

    def __init__(self, app: ASGI3Application, *, closes: bool) -> None:
        self._app = app
        self._closes = closes
        self._cycle: RequestResponseCycle
        self._active_apps: set[_RequestApp]
        self.sent_close = False

    def attach(self, cycle: RequestResponseCycle, others: set[_RequestApp]) -> None:
        """Belong to a request, whose app has not run yet, and be one of the connection's answers until it is done."""
        self._cycle = cycle
        self._active_apps = others
        others.add(self)

    def disconnect(self) -> None:
        """Let the app end: it reads that the client is gone, and what it writes is dropped."""
        self._cycle.disconnected = True
        self._cycle.waiting_for_100_continue = False
        self._cycle.message_event.set()

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def answer(message: ASGISendEvent) -> None:
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
            await self._app(scope, receive, answer)
        finally:
            self._active_apps.discard(self)


async def _refuse_connection(_scope: Scope, _receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """The app on a connection above the limit."""
    await send_problem(
        send,
        503,
        "too_many_connections",
        "this server has all the connections it may have; try again soon (its operator may raise --max-connections)",
    )
