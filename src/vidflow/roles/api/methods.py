"""The methods that each path has besides those of its handlers: HEAD, wherever there is a GET.

The framework answers OPTIONS itself. A monitor that sends HEAD gets the status and the headers of the GET, so a check by HEAD means
the same as one by GET.
"""

from __future__ import annotations

from typing import cast

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send


def answer_head(app: ASGIApp) -> ASGIApp:
    """Return the app, wrapped to answer HEAD like GET, and to name HEAD in the answer to OPTIONS. The HTTP server drops the body."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP or scope["method"] not in {"HEAD", "OPTIONS"}:
            await app(scope, receive, send)
            return

        async def send_with_allow(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [_add_head(name, value) for name, value in message["headers"]]
            await send(message)

        # A copy for the app: the HTTP server must still see HEAD. The app's routing results are copied back for the metrics.
        routed = cast("HTTPScope", {**scope, "method": "GET"}) if scope["method"] == "HEAD" else scope
        try:
            await app(routed, receive, send_with_allow)
        finally:
            if "path_template" in routed:
                scope["path_template"] = routed["path_template"]

    return answer


def format_allow(methods: str) -> str:
    """Return the value of the header Allow for these methods, separated by commas: with HEAD beside GET, in a fixed order."""
    names = {method.strip() for method in methods.split(",")}
    return ", ".join(sorted(names | ({"HEAD"} if "GET" in names else set())))


def _add_head(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Return the header, with HEAD if it is an Allow."""
    return (name, format_allow(value.decode("latin-1")).encode()) if name.lower() == b"allow" else (name, value)
