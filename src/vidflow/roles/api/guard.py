"""Refuse requests that a web page of another site can make a browser send: DNS rebinding, cross-site forms and fetches.

Such a page can send a POST to a server on the reader's machine. It can also read the responses if its own host name resolves to
that machine. Both show in the headers Host, Origin and Sec-Fetch-Site, which a page cannot set.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from vidflow.roles.api.health import HEALTH_PATHS
from vidflow.roles.api.hosts import AllowedHosts, parse_address, parse_host, parse_origin_host
from vidflow.roles.api.problems import send_problem

ADDRESS_PATHS: Final = HEALTH_PATHS | {"/metrics"}
"""Paths that may be requested by any IP address: load balancers and Prometheus use addresses that no option can foresee. A page
gains nothing by this, since a browser sends the page's host name, even if that name resolves to this machine."""
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Refusal(NamedTuple):
    """The response to a refused request."""

    status: int
    code: str
    detail: str


def guard_requests(app: ASGIApp, allowed: AllowedHosts, cors_origins: Collection[str] = ()) -> ASGIApp:
    """Return the app, wrapped in the checks of Host, Origin and Content-Type. `cors_origins`: origins of other sites that are let in."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        refusal = check_request(scope, allowed, cors_origins) if scope["type"] == ScopeType.HTTP else None
        if refusal is None:
            await app(scope, receive, send)
            return
        await send_problem(send, *refusal)

    return guard


def check_request(scope: HTTPScope, allowed: AllowedHosts, cors_origins: Collection[str] = ()) -> Refusal | None:
    """Return why the request is refused, or None if it is allowed."""
    refusal = _check_host(scope, allowed)
    if refusal is None and scope["method"] not in _SAFE_METHODS:
        refusal = _check_origin(scope, allowed, cors_origins) or _check_content_type(scope)
    return refusal


def _check_host(scope: HTTPScope, allowed: AllowedHosts) -> Refusal | None:
    by_address = scope["path"] in ADDRESS_PATHS and scope["method"] in _SAFE_METHODS
    hosts = _values(scope, b"host")
    if not hosts and scope["http_version"] == "1.0" and by_address:
        return None
    if len(hosts) != 1:
        return Refusal(400, "host_invalid", f"The request has {len(hosts) or 'no'} Host headers. Send exactly one.")
    host = parse_host(hosts[0])
    if host is None:
        return Refusal(
            400, "host_invalid", "The Host header is invalid. Send a host name or address, with an optional port."
        )
    if allowed.allows(host) or (by_address and parse_address(host) is not None):
        return None
    return Refusal(
        421,
        "host_not_allowed",
        f"This server does not answer for host {host[:255]}. Use localhost, or ask the operator to add the host to --allowed-hosts "
        "(VIDFLOW_ALLOWED_HOSTS).",
    )


def _check_origin(scope: HTTPScope, allowed: AllowedHosts, cors_origins: Collection[str]) -> Refusal | None:
    origins = _values(scope, b"origin")
    is_foreign = any(not _is_own(origin, allowed) and origin.lower() not in cors_origins for origin in origins)
    if is_foreign or (not origins and "cross-site" in _values(scope, b"sec-fetch-site")):
        return Refusal(
            403,
            "origin_not_allowed",
            "A web page of another site sent this request. Use a page of this server, or ask the operator to add the page's host to "
            "--allowed-hosts (VIDFLOW_ALLOWED_HOSTS) or its origin to --cors-origins (VIDFLOW_CORS_ORIGINS).",
        )
    return None


def _is_own(origin: str, allowed: AllowedHosts) -> bool:
    host = parse_origin_host(origin)
    return host is not None and allowed.allows(host)


def _check_content_type(scope: HTTPScope) -> Refusal | None:
    """Require that a body is JSON. Without a preflight, a page can send text/plain and two form types, but not JSON."""
    lengths = _values(scope, b"content-length")
    if not _values(scope, b"transfer-encoding") and not any(length.strip("0") for length in lengths):
        return None
    media_types = [value.partition(";")[0].strip().lower() for value in _values(scope, b"content-type")]
    if media_types == ["application/json"]:
        return None
    return Refusal(415, "not_json", "The body must be JSON. Send it with the header Content-Type: application/json.")


def _values(scope: HTTPScope, name: bytes) -> list[str]:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return [value.decode("latin-1").strip() for key, value in headers if key == name]
