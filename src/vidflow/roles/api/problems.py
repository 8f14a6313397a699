"""The mapping of every error of a request to a problem (RFC 9457)."""

from __future__ import annotations

import http
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import psycopg
from litestar.exceptions import HTTPException, MethodNotAllowedException, ValidationException
from litestar.openapi.datastructures import ResponseSpec
from litestar.plugins.problem_details import ProblemDetailsConfig, ProblemDetailsException, ProblemDetailsPlugin

from vidflow.contract import Problem
from vidflow.domain.errors import ResultsRemoved, SetupError, Unavailable, UnknownScenario, UserError, VidflowError
from vidflow.domain.redaction import redact
from vidflow.infra.postgres.errors import is_away, is_conflict, is_disk_full, is_timed_out
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.request_id import REQUEST_ID
from vidflow.roles.api.methods import format_allow

RETRY_AFTER_S: Final = {409: 1, 429: 5, 503: 1}
"""The Retry-After header in seconds, by status. A queue shrinks slowly."""
AUTHENTICATE: Final = 'Bearer realm="vidflow"'
"""The WWW-Authenticate header of a 401."""
_CODES: Final = {
    400: "request_malformed", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 415: "not_json", 503: "unavailable",
}  # fmt: skip
_DETAILS: Final = {
    404: "There is no resource at this path. The paths are listed at /docs.",
    413: "The body of the request is too large. Send a smaller one.",
}

_log = log("api")


def problem(status: int, code: str, detail: str, **members: Any) -> ProblemDetailsException:  # noqa: ANN401 - any JSON
    """Return a problem to raise. `members`: its additional members. A 401, 409, 429 or 503 gets the header that belongs to it."""
    request_id = REQUEST_ID.get()
    return ProblemDetailsException(
        status_code=status,
        type_=f"urn:vidflow:problem:{code}",
        title=http.HTTPStatus(status).phrase,
        detail=redact(detail),
        extra={"code": code, **members} | ({"request_id": request_id} if request_id is not None else {}),
        headers=_headers(status) or None,
    )


def encode_problem(
    status: int, code: str, detail: str, request_id: str | None
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return the headers and the body of a problem, for responses sent outside the framework."""
    title = http.HTTPStatus(status).phrase
    content = Problem(f"urn:vidflow:problem:{code}", title, status, redact(detail), code, request_id=request_id)
    body = msgspec.json.encode(content)
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
    ]
    headers += [(name.lower().encode(), value.encode()) for name, value in _headers(status).items()]
    return headers, body


def _headers(status: int) -> dict[str, str]:
    """Return the headers that a client needs to act on this status."""
    if status == http.HTTPStatus.UNAUTHORIZED:
        return {"WWW-Authenticate": AUTHENTICATE}
    return {"Retry-After": str(RETRY_AFTER_S[status])} if status in RETRY_AFTER_S else {}


async def send_problem(send: Callable[[Any], Awaitable[None]], status: int, code: str, detail: str) -> None:
    """Send a problem as the response through the ASGI callable `send`, outside the framework."""
    headers, body = encode_problem(status, code, detail, REQUEST_ID.get())
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _from_http_error(error: HTTPException) -> ProblemDetailsException:
    """Map an error that the framework raises for a path, a method, a parameter or a size."""
    if isinstance(error, ProblemDetailsException):
        return error
    if error.status_code >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        return _from_unexpected_error(error)
    if isinstance(error, ValidationException):
        # Parameters are checked before (queries.py), and so is the body (requests.py), unless it is empty.
        return problem(400, "body_malformed", "The body is empty. Send a JSON object.")
    status = error.status_code
    detail, headers = _DETAILS.get(status, error.detail), error.headers
    if isinstance(error, MethodNotAllowedException):
        allow = format_allow((headers or {}).get("allow", ""))
        detail, headers = f"This path does not support this method. Use one of: {allow}.", {"Allow": allow}
    mapped = problem(status, _CODES.get(status, "refused"), detail)
    mapped.headers = headers
    return mapped


def _from_vidflow_error(error: VidflowError) -> ProblemDetailsException:
    if isinstance(error, UnknownScenario):
        return problem(404, error.code, error.message)
    if isinstance(error, ResultsRemoved):
        return problem(410, error.code, error.message)
    if isinstance(error, UserError):
        return problem(422, error.code, error.message)
    if isinstance(error, Unavailable | SetupError):
        return problem(503, error.code, error.message)
    return _from_unexpected_error(error)


def _from_database_error(error: psycopg.Error) -> ProblemDetailsException:
    if is_disk_full(error):
        return problem(
            503,
            "disk_full",
            "The database's disk is full, so nothing new can be stored. Try again after the operator has made room.",
        )
    if is_timed_out(error):
        return problem(
            503,
            "database_timeout",
            "The database did not answer within its time limit, and nothing was changed. Try again later, or request less (a smaller "
            "limit).",
        )
    if is_away(error) or is_conflict(error):
        return problem(503, "database_unavailable", "The database is unavailable at the moment. Try again soon.")
    return _from_unexpected_error(error)


def _from_unexpected_error(error: Exception) -> ProblemDetailsException:
    """Map a bug in vidflow. It is logged once, with an id that the client receives."""
    error_id = str(uuid.uuid4())
    _log.exception("request_failed", cause=error, error_id=error_id, error=f"{type(error).__name__}: {error}")
    return problem(
        500, "fault", f"Internal error, logged as {error_id}. Report it to the server's operator.", error_id=error_id
    )


def create_plugin() -> ProblemDetailsPlugin:
    """Return the Litestar plugin that turns errors into responses."""
    return ProblemDetailsPlugin(
        ProblemDetailsConfig(
            exception_to_problem_detail_map={
                HTTPException: _from_http_error,
                VidflowError: _from_vidflow_error,
                psycopg.Error: _from_database_error,
                Exception: _from_unexpected_error,
            }
        )
    )


def problem_responses(*statuses: int) -> dict[int, ResponseSpec]:
    """Return the problems that a handler may respond with, for the OpenAPI document."""
    return {
        status: ResponseSpec(
            Problem,
            generate_examples=False,
            description=http.HTTPStatus(status).phrase,
            media_type="application/problem+json",
        )
        for status in statuses
    }
