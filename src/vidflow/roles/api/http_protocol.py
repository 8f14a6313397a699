"""uvicorn's HTTP protocol with limits: the size and time of a request's head, the pace of bodies and answers."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Any, Final
from urllib.parse import urlsplit

import httptools
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from vidflow.roles.api.connections import Connections, Pace
from vidflow.roles.api.health import PATHS
from vidflow.roles.api.problems import problem_answer, send_problem

_FED_BYTES: Final = 8 * 1024
"""The parser is fed in parts, so that a head that is too long is noticed within one of them."""


class Phase(Enum):
    """How far a connection is with its newest request."""

    QUIET = "quiet"  # nothing of a request has come
    HEAD = "head"
    BODY = "body"
    ANSWER = "answer"  # the request is whole
    CLOSING = "closing"  # refused: what still comes is read and dropped


class TooLarge(Exception):
    """The head of a request is longer than it may be, or there are too many requests ahead of their answers."""


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, connections: Connections, **parts: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(**parts)
        self._all = connections
        self._limits = connections.limits
        self._phase = Phase.QUIET
        self._since_s = self.loop.time()
        self._head_bytes = 0
        self._part_bytes = 0
        self._body = Pace(self._since_s, 0, 1)
        self._answer: Pace | None = None
        self._unread_bytes = 0
        self._newest: _Answer
        self._answers: set[_Answer] = set()

    # --- uvicorn's callbacks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection."""
        super().connection_made(transport)
        self._all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._all.remove(self)
        self._unset_keepalive_if_required()
        self._cut_answers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, which calls the methods below."""
        self._unset_keepalive_if_required()
        if self._phase is Phase.QUIET:
            self._enter_head()
        for start in range(0, len(data), _FED_BYTES):
            if self._phase is Phase.CLOSING or self.transport.is_closing():
                return
            self._feed(data[start : start + _FED_BYTES])

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
        if self._phase is Phase.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole: the app is started."""
        if len(self.pipeline) >= self._limits.pipelined:
            raise TooLarge
        self._take_absolute_target()
        self._phase = Phase.BODY
        self._body = Pace(self.loop.time(), self._limits.body_grace_s, self._limits.body_bytes_per_s)
        served, reserved = self.app, not self._all.is_served(self)
        refuses = reserved and self.url.partition(b"?")[0].decode("latin-1") not in PATHS
        if refuses:
            self._all.refused("too_many")
        self.app = self._newest = _Answer(_too_many if refuses else served, closes=reserved)
        try:
            super().on_headers_complete()
        finally:
            self.app = served
        self._newest.begins(self.cycle, self._answers)

    def on_body(self, body: bytes) -> None:
        """Part of the body has come."""
        self._body.moved(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._phase = Phase.ANSWER
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is written. Where the request is not whole yet, the rest of it is not waited for."""
        super().on_response_complete()
        if self._phase is not Phase.CLOSING and self.cycle.response_complete:
            if self._newest.said_close or self.cycle.more_body:
                self._close_slowly()
            elif self._phase is Phase.ANSWER:
                self._phase = Phase.QUIET

    def shutdown(self) -> None:
        """The server stops: a body that is under way has a moment more, so that a slow one does not hold up the stop."""
        super().shutdown()
        if self._phase is Phase.BODY:
            self._body = Pace(self.loop.time(), self._limits.stop_grace_s, self._limits.body_bytes_per_s)

    # --- Connection

    @property
    def is_answering(self) -> bool:
        """Whether a request has come that is still to be answered."""
        return self._phase in {Phase.BODY, Phase.ANSWER}

    def drop(self) -> None:
        """Close at once, without an answer."""
        self._phase = Phase.CLOSING
        self._cut_answers()
        self.transport.abort()

    def _cut_answers(self) -> None:
        """Tell the apps of all requests, of which uvicorn knows the newest alone, that nobody hears them any more."""
        for answer in self._answers:
            answer.cut()

    def look(self, now_s: float) -> None:
        """Act on what is late. What uvicorn does not read, since the app is busy, is not the client's fault."""
        if self._answer_is_late(now_s):
            self._all.refused("answer_late")
            self.drop()
        elif self._phase is Phase.CLOSING:
            if now_s > self._since_s + self._limits.linger_s:
                self.drop()
        elif self.flow.read_paused:
            self._since_s = now_s
            self._body = Pace(now_s, self._limits.body_grace_s, self._limits.body_bytes_per_s)
        elif self._phase is Phase.HEAD and now_s > self._head_until_s:
            self._refuse(408, "head_late", "the head of the request did not come in time")
        elif self._phase is Phase.QUIET and self.cycle is None and now_s > self._head_until_s:
            self.drop()  # a connection on which nothing was ever sent: browsers open such
        elif self._phase is Phase.BODY and self._body.is_late(now_s):
            self._refuse(408, "body_late", "the body of the request comes too slowly")

    @property
    def _head_until_s(self) -> float:
        served = self._all.is_served(self)
        return self._since_s + (self._limits.head_s if served else self._limits.reserved_head_s)

    # --- what is refused

    def _enter_head(self) -> None:
        self._phase = Phase.HEAD
        self._since_s = self.loop.time()
        self._head_bytes = self._part_bytes = 0

    def _feed(self, part: bytes) -> None:
        self._part_bytes += len(part)
        try:
            self.parser.feed_data(part)
        except httptools.HttpParserUpgrade:
            return  # to nothing that this server speaks: it answers in HTTP/1.1
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, TooLarge):
                self._refuse_head()
            else:
                self._refuse(400, "request_malformed", "this is not an HTTP request")
            return
        if self._phase is Phase.HEAD and self._part_bytes > self._limits.head_bytes + _FED_BYTES:
            self._refuse_head()

    def _refuse_head(self) -> None:
        self._refuse(
            431, "head_too_large", f"the head of a request may have {self._limits.head_bytes} bytes; send fewer headers"
        )

    def _count_head(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > self._limits.head_bytes:
            raise TooLarge

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
        self._all.refused(code)
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._cut_answers()  # the app, if it waits for the body, learns that it will not come
            if cycle.response_started or self.pipeline or self._phase is not Phase.BODY:
                self.drop()
                return
        headers, body = problem_answer(status, code, detail)
        headers = [*self.server_state.default_headers, *headers, (b"connection", b"close")]
        lines = [b"%s: %s\r\n" % header for header in headers]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        self._close_slowly()

    def _close_slowly(self) -> None:
        """End the answer's direction and read on for a while: closed at once, the client would lose the answer to a reset."""
        self._phase = Phase.CLOSING
        self._since_s = self.loop.time()
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()

    def _answer_is_late(self, now_s: float) -> bool:
        """Whether the client has stopped reading what was written."""
        unread = self.transport.get_write_buffer_size()
        if not unread:
            self._answer = None
        elif self._answer is None:
            self._answer = Pace(now_s, self._limits.answer_grace_s, self._limits.body_bytes_per_s)
        elif unread < self._unread_bytes:
            self._answer.moved(self._unread_bytes - unread)
        self._unread_bytes = unread
        return self._answer is not None and self._answer.is_late(now_s)


class _Answer:
    """The app of one request. Its answer says that the connection closes, where that follows: the body was not read to its end, or
    the connection is a reserved one.

    uvicorn would close at once then, and the client lose the answer to a reset; so it is told nothing of the header.
    """

    def __init__(self, app: ASGI3Application, *, closes: bool) -> None:
        self._app = app
        self._closes = closes
        self._cycle: RequestResponseCycle
        self._others: set[_Answer]
        self.said_close = False

    def begins(self, cycle: RequestResponseCycle, others: set[_Answer]) -> None:
        """Belong to a request, whose app has not run yet, and be one of the connection's answers until it is done."""
        self._cycle = cycle
        self._others = others
        others.add(self)

    def cut(self) -> None:
        """Let the app end: it reads that the client is gone, and what it writes is dropped."""
        self._cycle.disconnected = True
        self._cycle.waiting_for_100_continue = False
        self._cycle.message_event.set()

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def answer(message: ASGISendEvent) -> None:
            cycle = self._cycle
            if cycle.transport.is_closing():
                self.cut()
            if message["type"] != "http.response.start" or not (self._closes or cycle.more_body):
                await send(message)
                return
            self.said_close = True
            await send({**message, "headers": [*message.get("headers", []), (b"connection", b"close")]})
            cycle.keep_alive = True

        try:
            await self._app(scope, receive, answer)
        finally:
            self._others.discard(self)


async def _too_many(_scope: Scope, _receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """The app on a connection above the limit."""
    await send_problem(
        send,
        503,
        "too_many_connections",
        "this server has all the connections it may have; try again soon (its operator may raise --max-connections)",
    )
