"""Every error of a request as a problem (RFC 9457), in this one place. Not where errors are raised."""

from __future__ import annotations

import http
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec
import psycopg
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi.datastructures import ResponseSpec
from litestar.plugins.problem_details import ProblemDetailsConfig, ProblemDetailsException, ProblemDetailsPlugin

from vidflow.domain.errors import ResultsRemoved, SetupError, Unavailable, UnknownScenario, UserError, VidflowError
from vidflow.infra.postgres.errors import is_away, is_conflict, is_disk_full, is_timed_out
from vidflow.infra.telemetry.logs import log, redact
from vidflow.roles.api.schemas import FieldProblem, Problem

RETRY_AFTER_S: Final = {429: 5, 503: 1}
"""When to come again: a queue gets shorter slowly."""
_LOCATION: Final = re.compile(r"^(?P<message>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_FIELD: Final = re.compile(r"(?:unknown|required) field `(?P<field>[^`]*)`")
_CODES: Final = {
    400: "request_malformed", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 415: "not_json", 503: "unavailable",
}  # fmt: skip
_DETAILS: Final = {
    404: "there is nothing at this path; the paths are listed at /docs",
    405: "this path does not take this method; the methods are listed at /docs",
    413: "the body is larger than a request may be; leave something out",
}

_log = log("api")


def problem(status: int, code: str, detail: str, **more: Any) -> ProblemDetailsException:  # noqa: ANN401 - members of a problem
    """A problem to raise. `more`: its other members; a 429 or 503 says when to come again."""
    return ProblemDetailsException(
        status_code=status,
        type_=f"urn:vidflow:problem:{code}",
        title=http.HTTPStatus(status).phrase,
        detail=redact(detail),
        extra={"code": code, **more},
        headers={"Retry-After": str(RETRY_AFTER_S[status])} if status in RETRY_AFTER_S else None,
    )


def encode_problem(status: int, code: str, detail: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return the headers and the body of a problem, for what answers outside the framework."""
    answer = Problem(f"urn:vidflow:problem:{code}", http.HTTPStatus(status).phrase, status, redact(detail), code)
    body = msgspec.json.encode(answer)
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if status in RETRY_AFTER_S:
        headers.append((b"retry-after", str(RETRY_AFTER_S[status]).encode()))
    return headers, body


async def send_problem(send: Callable[[Any], Awaitable[None]], status: int, code: str, detail: str) -> None:
    """Answer a request with a problem and nothing else, by the ASGI `send` of what answers outside the framework."""
    headers, body = encode_problem(status, code, detail)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def body_problem(error: Exception, hints: Mapping[str, str]) -> ProblemDetailsException:
    """What is wrong with a body: 400 where it is no JSON, 422 with the field where it is not what was asked for.

    `hints` tells of each field what it may be.
    """
    if not isinstance(error, msgspec.ValidationError):
        return problem(400, "body_malformed", f"the body is no JSON: {error}")
    match = _LOCATION.match(str(error))
    message, path = (match["message"], match["path"] or "") if match else (str(error), "")
    if named := _FIELD.search(message):
        path = f"{path}.{named['field']}" if path else named["field"]
    hint = hints.get(re.split(r"[.\[]", path)[0])
    field = FieldProblem(path or "body", redact(f"{message}; it is {hint}" if hint else message))
    return problem(422, "request_invalid", f"{field.field}: {field.message}", errors=[field])


def _from_http_error(error: HTTPException) -> ProblemDetailsException:
    """A refusal of the framework's: a path, a method, a parameter, a size."""
    if isinstance(error, ProblemDetailsException):
        return error
    if error.status_code >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        return _from_unexpected_error(error)
    if isinstance(error, ValidationException):
        return _from_validation_error(error)
    status = error.status_code
    mapped = problem(status, _CODES.get(status, "refused"), _DETAILS.get(status, error.detail))
    mapped.headers = error.headers
    return mapped


def _from_validation_error(error: ValidationException) -> ProblemDetailsException:
    found = error.extra if isinstance(error.extra, list) else []
    fields = [FieldProblem(_name(one), redact(str(one.get("message", "")))) for one in found if isinstance(one, dict)]
    if any(one.field == "data" for one in fields):
        return problem(400, "body_malformed", "the body is empty; send a JSON object")
    detail = "; ".join(f"{one.field}: {one.message}" for one in fields) or error.detail
    return problem(400, _CODES[400], detail, errors=fields)


def _name(fault: Mapping[str, Any]) -> str:
    """A parameter as the client wrote it: `state` is a word of the framework's, so the handler calls it otherwise."""
    return str(fault.get("key", "?")).removeprefix("in_")


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
            "the database's disk is full: nothing new is stored until its operator has made room; try again later",
        )
    if is_timed_out(error):
        return problem(
            503,
            "database_timeout",
            "the database did not answer within its time limit and nothing was changed; try again later, or ask for less (a smaller "
            "limit)",
        )
    if is_away(error) or is_conflict(error):
        return problem(503, "database_unavailable", "the database is away for now; try again soon")
    return _from_unexpected_error(error)


def _from_unexpected_error(error: Exception) -> ProblemDetailsException:
    """A fault of ours: logged once, with an id that the client is told."""
    error_id = str(uuid.uuid4())
    _log.exception("request_failed", cause=error, error_id=error_id, error=f"{type(error).__name__}: {error}")
    return problem(
        500, "fault", f"this is a fault of the server, logged as {error_id}; tell its operator", error_id=error_id
    )


def create_plugin() -> ProblemDetailsPlugin:
    """The one place where errors turn into answers."""
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
    """The problems that a handler may answer with, for the OpenAPI document."""
    return {
        status: ResponseSpec(
            Problem,
            generate_examples=False,
            description=http.HTTPStatus(status).phrase,
            media_type="application/problem+json",
        )
        for status in statuses
    }
