"""The HTTP API, from the OpenAPI document that the api serves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

import httpx
from docs.generator.markdown import GENERATED, code, table
from prometheus_client import CollectorRegistry

from vidflow.infra.process.stopping import Stop
from vidflow.roles.api.app import create_app
from vidflow.roles.api.context import Context
from vidflow.roles.api.hosts import parse_allowed_hosts
from vidflow.settings import ApiOptions

_METHODS: Final = ("get", "post")
_ANYWHERE: Final = (408, 421, 431, 500)
"""Statuses with which any request may be answered."""
_INTRODUCTION: Final = """# HTTP API

{download}`openapi.json` is the OpenAPI document from which this page is made. A running api serves it at `/docs/openapi.json`, and
a page to try each endpoint at `/docs`. Bodies are JSON. Lists come in pages: pass `next` as `after` to read on
([](api-limits.md) has the limits).

A request that fails is answered with a problem (RFC 9457, `application/problem+json`). Its `code` is for programs, its `detail` says
what to do: [](errors.md). A 429 or 503 has the header `Retry-After`. Any request may also be answered with 408, 421, 431 or 500.

Parameters of the query that a path does not have, and repeated ones, are refused. All faults of a request are listed together, in
`errors`.

Each response has the header `X-Request-Id`, each problem the same `request_id`, and so has each line in the api's log that concerns the
request. A client may give the id in the same header: 1 to 128 letters, digits, `.`, `_` and `-`; any other is replaced.

The answers with the state or the results of a scenario have an `ETag`. Give it in `If-None-Match`: the answer is 304, without a body, as
long as nothing has changed.

`HEAD` works on each path that has a `GET`: the answer has the same status and headers, without the body. `OPTIONS` is answered with 204
and the path's methods in `Allow`.
"""

Schema = Mapping[str, Any]


def build_document() -> str:
    """Return the OpenAPI document as a running api serves it."""
    return json.dumps(read_document(), indent=1, ensure_ascii=False) + "\n"


def build_page() -> str:
    """Return the page of all endpoints and the objects that they exchange."""
    document = read_document()
    parts = [GENERATED, _INTRODUCTION]
    for path, operations in document["paths"].items():
        for method in _METHODS:
            if method in operations:
                parts += _operation(method.upper(), path, operations[method])
    parts.append("\n## Objects\n")
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts += _object(name, schema)
    return "".join(parts)


def read_document() -> Any:  # noqa: ANN401 - JSON
    """Return the document that the app serves. Its handlers are not called, so it needs no database."""
    options = ApiOptions(inbox=False)
    app = create_app(
        Context(options, cast("Any", None), cast("Any", None)),
        parse_allowed_hosts(options),
        Stop(),
        CollectorRegistry(),
    )

    async def fetch() -> Any:  # noqa: ANN401
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(cast("Any", app)), base_url="http://localhost"
        ) as client:
            response = await client.get("/docs/openapi.json")
            return response.raise_for_status().json()

    return asyncio.run(fetch())


def _operation(method: str, path: str, operation: Schema) -> Iterator[str]:
    yield f"\n## {method} {path}\n\n{operation.get('description') or operation.get('summary', '')}\n"
    if parameters := [one for one in operation["parameters"] if "name" in one]:  # the others are in the introduction
        rows = [
            (code(one["name"]), one["in"], _type(one["schema"]), "yes" if one.get("required") else "", _meaning(one))
            for one in parameters
        ]
        yield "\n" + table(("parameter", "in", "type", "required", "meaning"), rows)
    if body := operation.get("requestBody"):
        yield f"\nBody: {_type(_json_schema(body))}\n"
        for example in _json_schema(body).get("examples", []):
            yield f"\n```json\n{json.dumps(example)}\n```\n"
    responses = [
        (status, _type(_body_schema(one)), ", ".join(code(name) for name in _find_codes(one)) or one["description"])
        for status, one in operation["responses"].items()
        if int(status) not in _ANYWHERE
    ]
    yield "\n" + table(("status", "body", "meaning"), responses)


def _body_schema(response: Schema) -> Schema:
    """Return the schema of a response. That of a problem is named without its codes."""
    schema = _json_schema(response)
    return cast("Schema", schema["allOf"][0]) if "allOf" in schema else schema


def _find_codes(response: Schema) -> list[str]:
    """Return the codes that the problem of a response may have."""
    parts = _json_schema(response).get("allOf", ())
    return [name for part in parts for name in part.get("properties", {}).get("code", {}).get("enum", ())]


def _meaning(parameter: Schema) -> str:
    schema = parameter["schema"]
    default = schema.get("default")
    meaning = parameter.get("description") or ""
    return f"{meaning} (default: {code(default)})".strip() if default is not None else meaning


def _json_schema(message: Schema) -> Schema:
    content = message.get("content", {})
    return cast("Schema", next((one["schema"] for one in content.values() if "schema" in one), {}))


def _object(name: str, schema: Schema) -> Iterator[str]:
    yield f"\n### {name}\n"
    if meaning := schema.get("description"):
        yield f"\n{meaning}\n"
    if values := schema.get("enum"):
        yield f"\nOne of {', '.join(code(value) for value in values)}.\n"
        return
    required = schema.get("required", [])
    rows = [
        (code(field), _type(one), "yes" if field in required else "", _description(one))
        for field, one in schema.get("properties", {}).items()
    ]
    if rows:
        yield "\n" + table(("field", "type", "required", "meaning"), rows)


def _description(schema: Schema) -> str:
    parts = [schema, *schema.get("oneOf", []), *schema.get("anyOf", [])]
    return next((one["description"] for one in parts if "description" in one), "")


def _type(schema: Schema) -> str:
    """Return the type of a value, with links to the objects in it."""
    if not schema:
        return ""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if alternatives := schema.get("oneOf") or schema.get("anyOf") or schema.get("allOf"):
        return " or ".join(dict.fromkeys(_type(one) for one in alternatives))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}" if schema.get("items") else "list"
    if values := schema.get("enum"):
        return " or ".join(code(value) for value in values)
    kind = schema.get("type", "any")
    kinds = kind if isinstance(kind, list) else [kind]
    return " or ".join(f"{one} ({schema['format']})" if "format" in schema else str(one) for one in kinds)
