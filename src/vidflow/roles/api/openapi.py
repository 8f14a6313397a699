"""The OpenAPI document: what the framework derives from the handlers, completed by what it does not know.

The schemas of bodies come from msgspec, which also checks them. Each operation gets the answers and headers that all have, and each
problem the codes that it can have.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from enum import Enum
from http import HTTPStatus
from typing import Any, Final

import msgspec
from litestar import Request
from litestar.openapi.plugins import JsonRenderPlugin

from vidflow import contract
from vidflow.domain.errors import ModelError, ParameterError
from vidflow.domain.frame_rate import ALL_FRAMES, FASTEST_RATE, FRAME_RATE_TEXT, MAX_FRAME_RATE_CHARACTERS
from vidflow.infra.postgres.idempotency import KEPT_HOURS
from vidflow.roles.api.health import HEALTH_PATHS
from vidflow.roles.api.idempotency import KEY_TEXT, MAX_KEY_CHARACTERS
from vidflow.roles.api.problems import AUTHENTICATE, RETRY_AFTER_S
from vidflow.roles.api.request_ids import MAX_REQUEST_ID_CHARACTERS

JsonObject = dict[str, Any]

_SCHEMA: Final = "#/components/schemas/{name}"
_BODIES: Final = (
    contract.InitScenario, contract.ChangeScenario, contract.ScenarioResponse, contract.ScenarioPage, contract.HistoryPage,
    contract.GapPage, contract.PredictionPage, contract.ModelList, contract.Health, contract.SystemHealth, contract.Problem,
)  # fmt: skip
_PATHS_WITH_ETAG: Final = frozenset({"/scenario/{scenario_uuid}", "/prediction"})
PUBLIC_PATHS: Final = frozenset({"/health/live", "/health/ready"})
"""Paths that need no token."""
_NOISE: Final = ("deprecated", "allowEmptyValue", "allowReserved")
"""Members that have their default values."""

_ANY_CODES: Final[Mapping[int, tuple[str, ...]]] = {
    400: ("request_malformed", "host_invalid"), 408: ("head_late",), 421: ("host_not_allowed",), 431: ("head_too_large",), 500: ("fault",),
}  # fmt: skip
"""Problems with which any request may be answered, by status."""
_CHANGING_METHODS: Final = frozenset({"post", "put", "patch", "delete"})
_CHANGE_CODES: Final[Mapping[int, tuple[str, ...]]] = {
    403: ("origin_not_allowed", "token_read_only"),
    408: ("body_late",),
    415: ("not_json",),
}
_BODY_CODES: Final[Mapping[int, tuple[str, ...]]] = {
    400: ("body_malformed", "body_incomplete"),
    413: ("body_too_large",),
}
_TOKEN_CODES: Final[Mapping[int, tuple[str, ...]]] = {401: ("token_missing", "token_invalid"), 429: ("rate_limited",)}
"""Problems of the paths that need a token."""
_IDEMPOTENT_PATHS: Final = frozenset({"/scenario/init"})
"""Paths whose requests may have an Idempotency-Key."""
_IDEMPOTENCY_CODES: Final[Mapping[int, tuple[str, ...]]] = {
    400: ("idempotency_key_invalid",), 409: ("idempotency_key_in_use",), 422: ("idempotency_key_reused",),
}  # fmt: skip
_DATABASE_CODES: Final = ("database_busy", "database_timeout", "database_unavailable")
_DECLARED_CODES: Final[Mapping[int, tuple[str, ...]]] = {
    404: ("scenario_unknown",), 410: ("results_removed",), 429: ("queue_full", "quota_reached"),
    422: (
        "request_invalid", ParameterError.default_code, "source_invalid", "source_forbidden", "source_missing", "source_not_video",
        ModelError.default_code, "model_spec_invalid", "model_file_missing", "model_refused",
    ),
}  # fmt: skip
"""Problems that a handler declares with `problem_responses`, by status."""
_CONFLICT_CODES: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("/scenario/{scenario_uuid}", "patch"): ("scenario_not_changeable",),
    ("/scenario/{scenario_uuid}", "delete"): ("scenario_not_ended",),
}
"""Problems of status 409."""
_UNAVAILABLE_CODES: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("/scenario/init", "post"): ("disk_full", "extra_missing"),
    ("/scenario/{scenario_uuid}/shutdown", "post"): ("disk_full", "unavailable"),
    ("/health/system", "get"): ("not_running", "results_behind"),
}  # fmt: skip
"""Problems of status 503 besides those of the database and of connections."""

_HEADERS: Final[JsonObject] = {
    "RequestId": {
        "description": "the id of the request, as given or new; the log lines of the request have it",
        "schema": {"type": "string", "minLength": 1, "maxLength": MAX_REQUEST_ID_CHARACTERS, "pattern": "^[A-Za-z0-9._-]+$"},
    },
    "ETag": {
        "description": "the tag of this content; give it in If-None-Match to get it again only if it has changed",
        "schema": {"type": "string"},
    },
    "Location": {"description": "the path of the new scenario", "schema": {"type": "string", "format": "uri-reference"}},
    "RetryAfter": {
        "description": "seconds after which to try again",
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWWAuthenticate": {"description": "how to send a token", "schema": {"type": "string", "const": AUTHENTICATE}},
    "RateLimit": {"description": "what is left of the owner's quota of requests, if it has one", "schema": {"type": "string"}},
    "RateLimitPolicy": {"description": "the owner's quota of requests, if it has one", "schema": {"type": "string"}},
    "Allow": {"description": "the methods of the path", "schema": {"type": "string"}},
}  # fmt: skip
_PARAMETERS: Final[JsonObject] = {
    "RequestId": {
        "name": "X-Request-Id", "in": "header", "schema": {"type": "string"},
        "description": f"an id for the request: 1 to {MAX_REQUEST_ID_CHARACTERS} letters, digits, '.', '_' and '-'; any other is replaced",
    },
    "IdempotencyKey": {
        "name": "Idempotency-Key", "in": "header",
        "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARACTERS + 2, "pattern": f'^(?:{KEY_TEXT})$'},
        "description": "a new one for each change, such as a uuid: a repeated request with it gets the same answer, "
        f"for {KEPT_HOURS} hours",
    },
    "IfNoneMatch": {
        "name": "If-None-Match", "in": "header", "schema": {"type": "string"},
        "description": "tags of contents that the client has, or *: the answer is 304 without a body if the content has one of them",
    },
}  # fmt: skip


class OpenApiPlugin(JsonRenderPlugin):
    """Renders the completed document for Litestar."""

    def __init__(self) -> None:
        super().__init__()
        self._rendered: bytes | None = None

    def render(self, request: Request[Any, Any, Any], openapi_schema: JsonObject) -> bytes:  # noqa: ARG002 - Litestar's signature
        """Return the document as JSON. It is completed once."""
        if self._rendered is None:
            self._rendered = msgspec.json.encode(complete_document(openapi_schema))
        return self._rendered


def complete_document(derived: JsonObject) -> JsonObject:
    """Return the document that the framework has derived with the rest of it. Nothing is changed in place."""
    document: JsonObject = msgspec.json.decode(msgspec.json.encode(derived))
    document["components"] = {
        "schemas": _build_schemas(),
        "headers": _HEADERS,
        "parameters": _PARAMETERS,
        "securitySchemes": {
            "token": {"type": "http", "scheme": "bearer", "description": "created by vidflow token create"}
        },
        "responses": {
            "MethodNotAllowed": {
                "description": "Each path answers a method that it does not have so.",
                "headers": {**_reference_headers(405), "Allow": {"$ref": "#/components/headers/Allow"}},
                "content": _problem_content(("method_not_allowed",)),
            },
            "NotFound": {
                "description": "Each path that is not in this document answers so.",
                "headers": _reference_headers(404),
                "content": _problem_content(("not_found",)),
            },
        },
    }
    for path, operations in document["paths"].items():
        for method, operation in list(operations.items()):
            _complete_operation(path, method, operation)
        if path in HEALTH_PATHS:
            operations["head"] = _build_head(operations["get"])
    return document


# --- schemas


def _build_schemas() -> JsonObject:
    """Return the schemas of all bodies, from the types that check them."""
    _, schemas = msgspec.json.schema_components(_BODIES, ref_template=_SCHEMA)
    enums = {kind.__name__: kind for kind in _find_subclasses(Enum) if kind.__name__ in schemas}
    for name, schema in schemas.items():
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"])
        if "enum" in schema and name in enums:  # msgspec sorts them
            schema |= {"type": "string", "enum": [member.value for member in enums[name]]}
        for one in schema.get("properties", {}).values():
            if one.get("default") == [] and one.get("minItems"):  # the member is left out rather than empty
                del one["default"]
        translate_patterns(schema)
    text: JsonObject = {"type": "string", "maxLength": MAX_FRAME_RATE_CHARACTERS, "pattern": f"^(?:{FRAME_RATE_TEXT})$"}
    rate: list[JsonObject] = [
        {"type": "number", "exclusiveMinimum": 0, "maximum": int(FASTEST_RATE)},
        text,
        {"const": ALL_FRAMES},
    ]
    _replace_alternatives(schemas["InitScenario"]["properties"]["fps"], [*rate, {"type": "null"}])
    _replace_alternatives(schemas["ScenarioResponse"]["properties"]["fps"], rate)
    return schemas


def _find_subclasses(kind: type[Enum]) -> Iterator[type[Enum]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _find_subclasses(subclass)


def _replace_alternatives(schema: JsonObject, alternatives: list[JsonObject]) -> None:
    """Replace a union by alternatives of which a value matches exactly one."""
    del schema["anyOf"]
    schema["oneOf"] = alternatives


def translate_patterns(schema: Any) -> None:  # noqa: ANN401 - any part of a schema
    """Write Python's patterns in a schema in the way of JSON Schema (ECMA-262), where `$` is only the end of the text."""
    if isinstance(schema, dict):
        if isinstance(schema.get("pattern"), str):
            schema["pattern"] = translate_pattern(schema["pattern"])
        for part in schema.values():
            translate_patterns(part)
    elif isinstance(schema, list):
        for part in schema:
            translate_patterns(part)


def translate_pattern(pattern: str) -> str:
    r"""Return the ECMA-262 form of a Python pattern that is anchored by `\A`, `\Z` or `$(?!\n)`."""
    return pattern.replace(r"$(?!\n)", "$").replace(r"\A", "^").replace(r"\Z", "$")


# --- operations


def _complete_operation(path: str, method: str, operation: JsonObject) -> None:
    parameters = [_simplify_parameter(parameter) for parameter in operation.get("parameters", ())]
    references = ["RequestId", *(["IfNoneMatch"] if path in _PATHS_WITH_ETAG else [])]
    references += ["IdempotencyKey"] if path in _IDEMPOTENT_PATHS else []
    operation["parameters"] = [*parameters, *({"$ref": f"#/components/parameters/{name}"} for name in references)]
    del operation["deprecated"]
    # A server on a loopback address needs no token until one was created.
    operation["security"] = [] if path in PUBLIC_PATHS else [{"token": []}, {}]
    codes = _codes_by_status(path, method, operation)
    responses = operation["responses"]
    for status in codes.keys() - {int(status) for status in responses}:
        responses[str(status)] = {"description": HTTPStatus(status).phrase}
    if path in _PATHS_WITH_ETAG:
        responses["304"] = {"description": "The content has a tag of If-None-Match."}
    for text, response in responses.items():
        status = int(text)
        if status in codes:
            response["content"] = _problem_content(codes[status])
        response["headers"] = _reference_headers(
            status, has_etag=path in _PATHS_WITH_ETAG, has_quota=path not in PUBLIC_PATHS
        )
    operation["responses"] = dict(sorted(responses.items()))


def _simplify_parameter(parameter: JsonObject) -> JsonObject:
    """Return the parameter without what the framework adds: null, which a query cannot contain, and members with default values."""
    schema = dict(parameter["schema"])
    schema.pop("description", None)
    alternatives = [one for one in schema.pop("oneOf", ()) if one != {"type": "null"}]
    schema = {**(alternatives[0] if alternatives else {}), **schema}
    schema |= {name: int(schema[name]) for name in ("minimum", "maximum") if name in schema}
    return {name: value for name, value in parameter.items() if name not in _NOISE} | {"schema": schema}


def _codes_by_status(path: str, method: str, operation: JsonObject) -> dict[int, tuple[str, ...]]:
    """Return the codes of the problems with which the operation may be answered."""
    declared = [int(status) for status in operation["responses"] if int(status) >= HTTPStatus.BAD_REQUEST]
    tables = [
        _ANY_CODES,
        *([_TOKEN_CODES] if path not in PUBLIC_PATHS else []),
        *([_IDEMPOTENCY_CODES] if path in _IDEMPOTENT_PATHS else []),
        *([_CHANGE_CODES] if method in _CHANGING_METHODS else []),
        *([_BODY_CODES] if "requestBody" in operation else []),
        {status: _DECLARED_CODES.get(status, ()) for status in declared},
        {409: _CONFLICT_CODES.get((path, method), ())},
        {503: tuple(_find_unavailable(path, method, declared))},
    ]
    found: dict[int, tuple[str, ...]] = {}
    for table in tables:
        for status, codes in table.items():
            found[status] = found.get(status, ()) + codes
    return {status: codes for status, codes in found.items() if codes or status in declared}


def _find_unavailable(path: str, method: str, declared: list[int]) -> Iterator[str]:
    if path not in HEALTH_PATHS:
        yield "too_many_connections"
    if HTTPStatus.SERVICE_UNAVAILABLE in declared:
        yield from _DATABASE_CODES
    yield from _UNAVAILABLE_CODES.get((path, method), ())


def _problem_content(codes: tuple[str, ...]) -> JsonObject:
    problem: JsonObject = {"$ref": _SCHEMA.format(name="Problem")}
    if codes:
        problem = {"allOf": [problem, {"properties": {"code": {"enum": list(codes)}}}]}
    return {"application/problem+json": {"schema": problem}}


def _reference_headers(status: int, *, has_etag: bool = False, has_quota: bool = False) -> JsonObject:
    """Return the headers of a response."""
    names = {"X-Request-Id": "RequestId"}
    if status in RETRY_AFTER_S:
        names["Retry-After"] = "RetryAfter"
    if status == HTTPStatus.UNAUTHORIZED:
        names["WWW-Authenticate"] = "WWWAuthenticate"
    if status == HTTPStatus.CREATED:
        names["Location"] = "Location"
    if has_etag and status in {HTTPStatus.OK, HTTPStatus.NOT_MODIFIED}:
        names["ETag"] = "ETag"
    if has_quota:
        names |= {"RateLimit": "RateLimit", "RateLimit-Policy": "RateLimitPolicy"}
    return {name: {"$ref": f"#/components/headers/{component}"} for name, component in names.items()}


def _build_head(get: JsonObject) -> JsonObject:
    """Return the operation HEAD of a health check, which monitors use. Other paths have it, too, but few clients need it."""
    responses = {
        status: {name: value for name, value in response.items() if name != "content"}
        for status, response in get["responses"].items()
    }
    description = f"{get['description']}\n\nThe answer is that of GET without its body."
    return get | {"operationId": f"{get['operationId']}Head", "description": description, "responses": responses}
