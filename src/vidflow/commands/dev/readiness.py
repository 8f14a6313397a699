"""The readiness of a stack, as reported by its api's /health/system."""

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
    """Return why the stack is not ready, or None if it misses nothing but `external_roles`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_REQUEST_TIMEOUT_S)
    try:
        connection.request("GET", "/health/system")
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return "The api does not answer."
    finally:
        connection.close()
    if response.status == http.client.OK:
        return None
    try:
        health = msgspec.json.decode(body, type=_HealthBody)
    except msgspec.DecodeError:
        return f"The api answers with status {response.status}."
    if health.missing and set(health.missing) <= set(external_roles):
        return None
    return health.detail or f"The api answers with status {response.status}."
