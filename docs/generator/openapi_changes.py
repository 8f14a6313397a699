"""Compare two OpenAPI documents: which changes break clients that were written for the older one.

    python -m docs.generator.openapi_changes            print what breaks clients of the last release
    python -m docs.generator.openapi_changes --release  record the present document as that of a release

Additions pass: a path, an optional parameter or field of a request, a field of a response, a wider limit, a further value.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

RELEASED: Final = Path(__file__).parents[1] / "reference" / "openapi-released.json"
CURRENT: Final = RELEASED.with_name("openapi.json")

_LOWER_LIMITS: Final = ("minimum", "exclusiveMinimum", "minLength", "minItems")
_UPPER_LIMITS: Final = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
_MAX_DEPTH: Final = 30
"""Deeper than any schema is, unless it contains itself."""

JsonObject = Mapping[str, Any]


def find_breaking_changes(old: JsonObject, new: JsonObject) -> list[str]:
    """Return a sentence for each change that breaks a client of the old document."""
    return list(dict.fromkeys(_Comparison(old, new).compare()))


class _Comparison:
    """The comparison of two documents."""

    def __init__(self, old: JsonObject, new: JsonObject) -> None:
        self._old = old
        self._new = new

    def compare(self) -> Iterator[str]:
        """Yield the changes of all operations."""
        for path, old_item in self._old["paths"].items():
            new_item = self._new["paths"].get(path)
            if new_item is None:
                yield f"{path}: the path was removed."
                continue
            for method, old_operation in old_item.items():
                where = f"{method.upper()} {path}"
                if method in new_item:
                    yield from self._compare_operations(where, old_operation, new_item[method])
                else:
                    yield f"{where}: the method was removed."

    def _compare_operations(self, where: str, old: JsonObject, new: JsonObject) -> Iterator[str]:
        if old.get("operationId") != new.get("operationId"):
            yield f"{where}: the operationId changed, after which generated clients name their functions."
        yield from self._compare_parameters(where, old, new)
        yield from self._compare_request_bodies(where, old.get("requestBody"), new.get("requestBody"))
        for status, old_response in old.get("responses", {}).items():
            new_response = new.get("responses", {}).get(status)
            if new_response is not None:
                yield from self._compare_responses(f"{where}, response {status}", old_response, new_response)
            elif int(status) < 400:
                yield f"{where}: the response {status} was removed."

    def _compare_parameters(self, where: str, old: JsonObject, new: JsonObject) -> Iterator[str]:
        old_parameters, new_parameters = self._read_parameters(self._old, old), self._read_parameters(self._new, new)
        for place, name in old_parameters:
            if (place, name) not in new_parameters:
                yield f"{where}: the {place} parameter {name} was removed."
        for (place, name), parameter in new_parameters.items():
            before = old_parameters.get((place, name))
            if before is None:
                if parameter.get("required"):
                    yield f"{where}: the new {place} parameter {name} is required."
                continue
            if parameter.get("required") and not before.get("required"):
                yield f"{where}: the {place} parameter {name} became required."
            yield from self._compare_given(
                f"{where}, {place} parameter {name}", before["schema"], parameter["schema"], 0
            )

    @staticmethod
    def _read_parameters(document: JsonObject, operation: JsonObject) -> dict[tuple[str, str], JsonObject]:
        parameters = [resolve_reference(document, one) for one in operation.get("parameters", ())]
        return {(one["in"], one["name"]): one for one in parameters}

    def _compare_request_bodies(self, where: str, old: JsonObject | None, new: JsonObject | None) -> Iterator[str]:
        if old is None:
            if new is not None and new.get("required"):
                yield f"{where}: a body became required."
            return
        if new is None:
            yield f"{where}: the body of the request was removed."
            return
        if new.get("required") and not old.get("required"):
            yield f"{where}: a body became required."
        for media_type, content in old["content"].items():
            if media_type in new["content"]:
                yield from self._compare_given(
                    f"{where}, request", content["schema"], new["content"][media_type]["schema"], 0
                )
            else:
                yield f"{where}: requests of type {media_type} are no longer accepted."

    def _compare_responses(self, where: str, old: JsonObject, new: JsonObject) -> Iterator[str]:
        old, new = resolve_reference(self._old, old), resolve_reference(self._new, new)
        for name in old.get("headers", {}):
            if name not in new.get("headers", {}):
                yield f"{where}: the header {name} was removed."
        for media_type, content in old.get("content", {}).items():
            if media_type in new.get("content", {}):
                yield from self._compare_received(where, content["schema"], new["content"][media_type]["schema"], 0)
            else:
                yield f"{where}: the content type {media_type} was removed."

    # --- what clients send: everything that was accepted must be accepted

    def _compare_given(self, where: str, old: JsonObject, new: JsonObject, depth: int) -> Iterator[str]:
        if depth > _MAX_DEPTH:
            return
        old_alternatives, new_alternatives = _alternatives(self._old, old), _alternatives(self._new, new)
        for before in old_alternatives:
            after = _find_wider(before, new_alternatives)
            if after is None:
                yield f"{where}: {_describe(before)} is no longer accepted."
            else:
                yield from _compare_limits(where, before, after)
                yield from self._compare_given_parts(where, before, after, depth)

    def _compare_given_parts(self, where: str, old: JsonObject, new: JsonObject, depth: int) -> Iterator[str]:
        old_fields, new_fields = old.get("properties", {}), new.get("properties", {})
        is_closed = new.get("additionalProperties") is False
        if is_closed and old.get("type") == "object" and old.get("additionalProperties") is not False:
            yield f"{where}: unknown fields are no longer accepted."
        for name, field in old_fields.items():
            if name in new_fields:
                yield from self._compare_given(f"{where}, field {name}", field, new_fields[name], depth + 1)
            elif is_closed:
                yield f"{where}: the field {name} was removed."
        for name in new.get("required", ()):
            if name not in old.get("required", ()):
                yield f"{where}: the field {name} {'became' if name in old_fields else 'is new and'} required."
        if isinstance(old.get("items"), dict) and isinstance(new.get("items"), dict):
            yield from self._compare_given(f"{where}, item", old["items"], new["items"], depth + 1)

    # --- what clients receive: everything that was promised must be there

    def _compare_received(self, where: str, old: JsonObject, new: JsonObject, depth: int) -> Iterator[str]:
        if depth > _MAX_DEPTH:
            return
        old_alternatives, new_alternatives = _alternatives(self._old, old), _alternatives(self._new, new)
        for after in new_alternatives:
            before = _find_wider(after, old_alternatives)
            if before is None:
                yield f"{where}: {_describe(after)} may now be received."
            else:
                yield from self._compare_received_parts(where, before, after, depth)

    def _compare_received_parts(self, where: str, old: JsonObject, new: JsonObject, depth: int) -> Iterator[str]:
        new_fields = new.get("properties", {})
        for name, field in old.get("properties", {}).items():
            if name not in new_fields:
                yield f"{where}: the field {name} was removed."
                continue
            if name in old.get("required", ()) and name not in new.get("required", ()):
                yield f"{where}: the field {name} may now be missing."
            yield from self._compare_received(f"{where}, field {name}", field, new_fields[name], depth + 1)
        if isinstance(old.get("items"), dict) and isinstance(new.get("items"), dict):
            yield from self._compare_received(f"{where}, item", old["items"], new["items"], depth + 1)
        for number, (before, after) in enumerate(
            zip(old.get("prefixItems", ()), new.get("prefixItems", ()), strict=False)
        ):
            yield from self._compare_received(f"{where}, item {number}", before, after, depth + 1)
        if len(old.get("prefixItems", ())) != len(new.get("prefixItems", ())):
            yield f"{where}: the number of items changed."


def _compare_limits(where: str, old: JsonObject, new: JsonObject) -> Iterator[str]:
    """Yield the limits of a given value that became narrower."""
    for name in _LOWER_LIMITS:
        if name in new and (name not in old or new[name] > old[name]):
            yield f"{where}: {name} became narrower ({old.get(name, 'none')} to {new[name]})."
    for name in _UPPER_LIMITS:
        if name in new and (name not in old or new[name] < old[name]):
            yield f"{where}: {name} became narrower ({old.get(name, 'none')} to {new[name]})."
    for name in ("pattern", "format"):
        if name in new and new[name] != old.get(name):
            yield f"{where}: {name} changed ({old.get(name, 'none')} to {new[name]})."
    if "enum" in new:
        removed = [value for value in old["enum"] if value not in new["enum"]] if "enum" in old else ["any other"]
        yield from (f"{where}: the value {value} is no longer accepted." for value in removed)


def resolve_reference(document: JsonObject, value: JsonObject) -> JsonObject:
    """Follow references."""
    while "$ref" in value:
        target: Any = document
        for step in value["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        value = target
    return value


def _alternatives(document: JsonObject, schema: JsonObject) -> list[JsonObject]:
    """Return the alternatives of a schema, without references, and with all parts of an `allOf` in one."""
    schema = resolve_reference(document, schema)
    for name in ("anyOf", "oneOf"):
        if name in schema:
            return [inner for one in schema[name] for inner in _alternatives(document, one)]
    if "allOf" not in schema:
        return [schema]
    merged: dict[str, Any] = {name: value for name, value in schema.items() if name != "allOf"}
    for part in schema["allOf"]:
        resolved = dict(resolve_reference(document, part))
        fields = dict(merged.get("properties", {}))
        for name, field in resolved.pop("properties", {}).items():
            fields[name] = {**fields.get(name, {}), **field}
        merged = {**merged, **resolved, "properties": fields}
    return [merged]


def _kind(schema: JsonObject) -> str:
    """Return the JSON type of a schema's values, or `anything`."""
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
    return str(schema.get("type") or (kinds.get(type(values[0]), "anything") if values else "anything"))


def _find_wider(schema: JsonObject, others: Sequence[JsonObject]) -> JsonObject | None:
    """Return the alternative that may have this schema's values. An integer is also a number."""
    kind = _kind(schema)
    kinds = {kind, "anything"} | ({"number"} if kind == "integer" else set())
    found = [one for one in others if _kind(one) in kinds]
    same = [one for one in found if "const" in one and one["const"] == schema.get("const")]
    return next(iter([*same, *(one for one in found if "const" not in one)]), None)


def _describe(schema: JsonObject) -> str:
    return f"the value {schema['const']}" if "const" in schema else f"a value of type {_kind(schema)}"


def main() -> None:
    if "--release" in sys.argv[1:]:
        RELEASED.write_text(json.dumps(json.loads(CURRENT.read_text()), ensure_ascii=False) + "\n")
        return
    changes = find_breaking_changes(json.loads(RELEASED.read_text()), json.loads(CURRENT.read_text()))
    print("\n".join(changes) or "No client of the last release breaks.")  # noqa: T201
    sys.exit(bool(changes))


if __name__ == "__main__":
    main()
