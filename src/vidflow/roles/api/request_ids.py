"""Request ids: each response, each problem and each log line of a request has the id that the client gave or, without one, a new id."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from typing import Final

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from vidflow.infra.telemetry.request_id import REQUEST_ID

HEADER: Final = b"x-request-id"
MAX_REQUEST_ID_CHARACTERS: Final = 128
_REQUEST_ID: Final = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_REQUEST_ID_CHARACTERS}}}", re.ASCII)


def choose_request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the id in a request's headers (names in lower case), or a new one if there is none, several, or no valid one."""
    given = [value.decode("latin-1") for name, value in headers if name == HEADER]
    return given[0] if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]) else str(uuid.uuid4())


def identify_requests(app: ASGIApp) -> ASGIApp:
    """Return the app, wrapped to give each request an id, which its response has in X-Request-Id."""

    async def identify(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        request_id = choose_request_id(scope["headers"])

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (HEADER, request_id.encode())]
            await send(message)

        token = REQUEST_ID.set(request_id)
        try:
            await app(scope, receive, send_with_id)
        finally:
            REQUEST_ID.reset(token)

    return identify
