"""The methods that each path has besides those of its handlers: HEAD, wherever there is a GET.

The framework answers OPTIONS itself. A monitor that sends HEAD gets the status and the headers of the GET, so a check by HEAD means
the same as one by GET.
"""

from __future__ import annotations

from typing import cast

from litestar import Litestar
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send


def answer_head(app: Litestar) -> ASGIApp:
    """Return the app, wrapped to answer HEAD like GET, and OPTIONS with all methods. The HTTP server drops the body."""
    # The framework's own answer to OPTIONS lacks the methods of handlers that were registered after the first of their path.
    methods = {route.path_format: format_allow(",".join(route.methods)) for route in app.routes}

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP or scope["method"] not in {"HEAD", "OPTIONS"}:
            await app(scope, receive, send)
            return

        async def send_with_allow(message: Message) -> None:
            if message["type"] == "http.response.start":
                allow = methods.get(routed.get("path_template", ""))
                message["headers"] = [_correct_allow(name, value, allow) for name, value in message["headers"]]
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


def _correct_allow(name: bytes, value: bytes, allow: str | None) -> tuple[bytes, bytes]:
    """Return the header. If it is Allow, it names all methods of the path: `allow`, or what it has itself with HEAD."""
    if name.lower() != b"allow":
        return name, value
    return name, (allow or format_allow(value.decode("latin-1"))).encode()
