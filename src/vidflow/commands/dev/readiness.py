"""Whether a stack is ready, as its api's /health/system reports it."""

from __future__ import annotations

import http.client
from collections.abc import Collection
from typing import Final

import msgspec

_REQUEST_TIMEOUT_S: Final = 2.0


class _HealthBody(msgspec.Struct, frozen=True):
    detail: str = ""
    missing: tuple[str, ...] = ()


def describe_missing(port: int, external_roles: Collection[str]) -> str | None:
    """Return what the api says is missing, None if that is nothing but the roles that run `external_roles`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_REQUEST_TIMEOUT_S)
    try:
        connection.request("GET", "/health/system")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        return "the api does not answer"
    finally:
        connection.close()
    if answer.status == http.client.OK:
        return None
    try:
        health = msgspec.json.decode(body, type=_HealthBody)
    except msgspec.DecodeError:
        return f"the api answers {answer.status}"
    if health.missing and set(health.missing) <= set(external_roles):
        return None
    return health.detail or f"the api answers {answer.status}"
