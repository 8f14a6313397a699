"""Which changes of the OpenAPI document break clients: each kind of break is found, and additions pass."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from docs.generator.openapi_changes import CURRENT, RELEASED, find_breaking_changes

Document = dict[str, Any]

BASE: Document = {
    "paths": {
        "/job": {
            "get": {
                "operationId": "ListJobs",
                "parameters": [
                    {"name": "limit", "in": "query", "required": False, "schema": {"type": "integer", "minimum": 1, "maximum": 100}},
                    {"$ref": "#/components/parameters/State"},
                ],
                "responses": {
                    "200": {
                        "headers": {"ETag": {"schema": {"type": "string"}}},
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Job"}}},
                    },
                    "404": {"content": {"application/problem+json": {"schema": {
                        "allOf": [{"$ref": "#/components/schemas/Problem"}, {"properties": {"code": {"enum": ["unknown"]}}}]}}}},
                },
            },
            "post": {
                "operationId": "CreateJob",
                "parameters": [],
                "requestBody": {"required": False, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Init"}}}},
                "responses": {"201": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Job"}}}}},
            },
        },
        "/health": {"get": {"operationId": "Health", "responses": {"200": {}}}},
    },
    "components": {
        "parameters": {"State": {"name": "state", "in": "query", "schema": {"type": "string", "enum": ["on", "off"]}}},
        "schemas": {
            "Init": {
                "type": "object", "additionalProperties": False, "required": ["source"],
                "properties": {
                    "source": {"type": "string", "minLength": 1, "maxLength": 100},
                    "rate": {"oneOf": [{"type": "number", "exclusiveMinimum": 0}, {"const": "all"}, {"type": "null"}]},
                    "labels": {"anyOf": [{"type": "array", "items": {"type": "string"}, "maxItems": 9}, {"type": "null"}]},
                    "mode": {"type": "string", "enum": ["fail", "skip"]}, "pool": {"type": "string"},
                },
            },
            "Job": {
                "type": "object", "required": ["id", "frames", "box"],
                "properties": {
                    "id": {"type": "string"}, "frames": {"type": "integer"}, "error": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                    "box": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}]},
                    "items": {"type": "array", "items": {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}},
                },
            },
            "Problem": {"type": "object", "required": ["code"], "properties": {"code": {"type": "string"}, "detail": {"type": "string"}}},
        },
    },
}  # fmt: skip


def changed(change: Callable[[Document], object]) -> list[str]:
    document = copy.deepcopy(BASE)
    change(document)
    assert document != BASE
    return find_breaking_changes(BASE, document)


def init(document: Document) -> Document:
    schema: Document = document["components"]["schemas"]["Init"]
    return schema


def job(document: Document) -> Document:
    schema: Document = document["components"]["schemas"]["Job"]
    return schema


def get(document: Document) -> Document:
    operation: Document = document["paths"]["/job"]["get"]
    return operation


def post(document: Document) -> Document:
    operation: Document = document["paths"]["/job"]["post"]
    return operation


BREAKS: list[tuple[Callable[[Document], object], str]] = [
    (lambda new: new["paths"].pop("/health"), "/health: the path was removed."),
    (lambda new: new["paths"]["/job"].pop("post"), "POST /job: the method was removed."),
    (lambda new: get(new).update(operationId="Jobs"),
     "GET /job: the operationId changed, after which generated clients name their functions."),
    (lambda new: get(new)["parameters"].pop(0), "GET /job: the query parameter limit was removed."),
    (lambda new: get(new)["parameters"].append({"name": "x", "in": "query", "required": True, "schema": {}}),
     "GET /job: the new query parameter x is required."),
    (lambda new: get(new)["parameters"][0].update(required=True), "GET /job: the query parameter limit became required."),
    (lambda new: get(new)["parameters"][0]["schema"].update(maximum=50),
     "GET /job, query parameter limit: maximum became narrower (100 to 50)."),
    (lambda new: get(new)["parameters"][0]["schema"].update(minimum=2),
     "GET /job, query parameter limit: minimum became narrower (1 to 2)."),
    (lambda new: new["components"]["parameters"]["State"]["schema"]["enum"].remove("off"),
     "GET /job, query parameter state: the value off is no longer accepted."),
    (lambda new: get(new)["responses"].pop("200"), "GET /job: the response 200 was removed."),
    (lambda new: get(new)["responses"]["200"]["headers"].pop("ETag"), "GET /job, response 200: the header ETag was removed."),
    (lambda new: get(new)["responses"]["200"].update(content={"text/csv": {}}),
     "GET /job, response 200: the content type application/json was removed."),
    (lambda new: new["components"]["schemas"]["Problem"]["properties"].pop("detail"),
     "GET /job, response 404: the field detail was removed."),
    (lambda new: post(new).pop("requestBody"), "POST /job: the body of the request was removed."),
    (lambda new: post(new)["requestBody"].update(required=True), "POST /job: a body became required."),
    (lambda new: new["paths"]["/health"]["get"].update(requestBody={"required": True, "content": {}}),
     "GET /health: a body became required."),
    (lambda new: post(new)["requestBody"].update(content={}), "POST /job: requests of type application/json are no longer accepted."),
    (lambda new: init(new)["properties"].pop("pool"), "POST /job, request: the field pool was removed."),
    (lambda new: init(new)["required"].append("pool"), "POST /job, request: the field pool became required."),
    (lambda new: (init(new)["required"].append("key"), init(new)["properties"].update(key={})),
     "POST /job, request: the field key is new and required."),
    (lambda new: init(new)["properties"]["mode"]["enum"].remove("skip"),
     "POST /job, request, field mode: the value skip is no longer accepted."),
    (lambda new: init(new)["properties"]["pool"].update(enum=["a"]),
     "POST /job, request, field pool: the value any other is no longer accepted."),
    (lambda new: init(new)["properties"]["source"].update(maxLength=99),
     "POST /job, request, field source: maxLength became narrower (100 to 99)."),
    (lambda new: init(new)["properties"]["source"].update(minLength=2),
     "POST /job, request, field source: minLength became narrower (1 to 2)."),
    (lambda new: init(new)["properties"]["pool"].update(maxLength=9),
     "POST /job, request, field pool: maxLength became narrower (none to 9)."),
    (lambda new: init(new)["properties"]["pool"].update(pattern="^a$"), "POST /job, request, field pool: pattern changed (none to ^a$)."),
    (lambda new: init(new)["properties"]["pool"].update(format="uuid"), "POST /job, request, field pool: format changed (none to uuid)."),
    (lambda new: init(new)["properties"]["pool"].update(type="integer"),
     "POST /job, request, field pool: a value of type string is no longer accepted."),
    (lambda new: init(new)["properties"]["rate"]["oneOf"].pop(2),
     "POST /job, request, field rate: a value of type null is no longer accepted."),
    (lambda new: init(new)["properties"]["rate"]["oneOf"].pop(1), "POST /job, request, field rate: the value all is no longer accepted."),
    (lambda new: init(new)["properties"]["rate"]["oneOf"][0].update(exclusiveMinimum=1),
     "POST /job, request, field rate: exclusiveMinimum became narrower (0 to 1)."),
    (lambda new: init(new)["properties"]["labels"]["anyOf"][0].update(maxItems=8),
     "POST /job, request, field labels: maxItems became narrower (9 to 8)."),
    (lambda new: init(new)["properties"]["labels"]["anyOf"][0]["items"].update(maxLength=8),
     "POST /job, request, field labels, item: maxLength became narrower (none to 8)."),
    (lambda new: job(new)["properties"].pop("frames"), "GET /job, response 200: the field frames was removed."),
    (lambda new: job(new)["required"].remove("frames"), "GET /job, response 200: the field frames may now be missing."),
    (lambda new: job(new)["properties"]["frames"].update(type="number"),
     "GET /job, response 200, field frames: a value of type number may now be received."),
    (lambda new: job(new)["properties"].update(id={"anyOf": [{"type": "string"}, {"type": "null"}]}),
     "GET /job, response 200, field id: a value of type null may now be received."),
    (lambda new: job(new)["properties"]["items"]["items"]["properties"].pop("n"),
     "GET /job, response 200, field items, item: the field n was removed."),
    (lambda new: job(new)["properties"]["box"]["prefixItems"].pop(), "GET /job, response 200, field box: the number of items changed."),
    (lambda new: job(new)["properties"]["box"]["prefixItems"][0].update(type="string"),
     "GET /job, response 200, field box, item 0: a value of type string may now be received."),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), BREAKS, ids=[sentence for _, sentence in BREAKS])
def test_a_break_is_found_and_named(change: Callable[[Document], object], sentence: str) -> None:
    assert sentence in changed(change)


def test_fields_that_were_ignored_and_are_refused_now_are_a_break() -> None:
    old = copy.deepcopy(BASE)
    del init(old)["additionalProperties"]
    assert find_breaking_changes(old, BASE) == ["POST /job, request: unknown fields are no longer accepted."]


ADDITIONS: dict[str, Callable[[Document], object]] = {
    "path": lambda new: new["paths"].update({"/new": {"get": {}}}),
    "method": lambda new: new["paths"]["/job"].update(delete={}),
    "parameter": lambda new: get(new)["parameters"].append({"name": "x", "in": "query", "schema": {"type": "string"}}),
    "field of a request": lambda new: init(new)["properties"].update(key={"type": "string"}),
    "field of a response": lambda new: job(new)["properties"].update(key={"type": "string"}),
    "value of a request": lambda new: init(new)["properties"]["mode"]["enum"].append("wait"),
    "alternative of a request": lambda new: init(new)["properties"]["rate"]["oneOf"].append({"type": "boolean"}),
    "wider limit": lambda new: init(new)["properties"]["source"].update(maxLength=200),
    "no limit": lambda new: init(new)["properties"]["source"].pop("maxLength"),
    "optional now": lambda new: init(new)["required"].remove("source"),
    "integer for a number": lambda new: job(new)["properties"]["box"]["prefixItems"][0].update(type="integer"),
    "number for an integer": lambda new: get(new)["parameters"][0]["schema"].update(type="number"),
    "never null now": lambda new: job(new)["properties"].update(error={"type": "string"}),
    "required in a response": lambda new: job(new)["required"].append("error"),
    "header": lambda new: post(new)["responses"]["201"].update(headers={"Location": {}}),
    "response": lambda new: post(new)["responses"].update({"429": {}}),
    "refusal that no longer happens": lambda new: get(new)["responses"].pop("404"),
    "code of a problem": lambda new: get(new)["responses"]["404"]["content"]["application/problem+json"]["schema"][
        "allOf"
    ][1]["properties"]["code"]["enum"].append("gone"),
    "content type": lambda new: get(new)["responses"]["200"]["content"].update({"text/csv": {}}),
}


@pytest.mark.parametrize("name", ADDITIONS)
def test_an_addition_passes(name: str) -> None:
    assert changed(ADDITIONS[name]) == []


def test_no_client_of_the_last_release_breaks() -> None:
    """A break that is meant needs a new release: `python -m docs.generator.openapi_changes --release`."""
    assert find_breaking_changes(json.loads(RELEASED.read_text()), json.loads(CURRENT.read_text())) == []
