"""Strict decoding of a JSON body into a Struct. A body with faults is decoded again field by field, so that all of them are found."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from vidflow.contract import FieldProblem
from vidflow.roles.api.faults import MAX_FAULTS, Expected, describe_enum, fault, list_names
from vidflow.roles.api.problems import problem

T = TypeVar("T", bound=msgspec.Struct)

_LOCATION: Final = re.compile(r" - at `\$.*`$", re.DOTALL)
_MAX_TYPES: Final = 1000
_MAX_DEPTH: Final = 20
"""Deeper than any body is. Objects below it are unknown fields."""
_INVALID: Final = object()


class InvalidBody(NamedTuple):
    """A body whose fields have `faults`. `values`: the fields that have none, decoded."""

    faults: list[FieldProblem]
    values: dict[str, Any]


def decode_body(body: bytes, body_type: type[T]) -> T | None:
    """Return the decoded body, or None if it has faults: numbers in quotes, unknown fields, repeated ones.

    Raises a 400 problem if the body is not JSON.
    """
    try:
        decoded = msgspec.json.decode(body, type=body_type)
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(error) from error
    return None if _has_repeated_names(body) else decoded


def find_faults(body: bytes, body_type: type[msgspec.Struct]) -> InvalidBody:
    """Return the faults of a body for which `decode_body` returns None. A large body takes some time.

    Raises a 400 problem if the body is not JSON.
    """
    search = _FaultSearch(body)
    values = search.decode_object(msgspec.Raw(body), body_type, "")
    return InvalidBody(search.faults, values)


def _malformed(error: Exception) -> Exception:
    return problem(400, "body_malformed", f"The body is not valid JSON: {error}.")


class _FaultSearch:
    """The search for all faults of a body that is JSON. It ends at MAX_FAULTS."""

    def __init__(self, body: bytes) -> None:
        """Raises a 400 problem if the body is not JSON."""
        try:
            msgspec.json.decode(body)
        except msgspec.ValidationError:
            pass  # a number that is out of range is a fault of its field
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _malformed(error) from error
        self.faults: list[FieldProblem] = []
        for path in _find_repeated_names(body):
            self._add(path, "Given more than once. Give it once.")

    def decode_object(self, raw: msgspec.Raw, struct: type[msgspec.Struct], path: str) -> dict[str, Any]:
        """Return the valid fields of an object, and add the faults of the others."""
        try:
            given = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        except msgspec.ValidationError as error:
            self._add(path or "body", f"{_LOCATION.sub('', str(error))}.")
            return {}
        fields, prefix = _read_fields(struct), f"{path}." if path else ""
        values = {}
        for name, field in fields.items():
            if name in given:
                values[name] = self._decode(given[name], field.annotation, f"{prefix}{name}", field.allowed)
            elif field.is_required:
                self._add(f"{prefix}{name}", f"Missing. Allowed: {field.allowed}.")
        for name in given:
            if name not in fields:
                self._add(f"{prefix}{name}", f"Unknown field. The fields here: {list_names(fields)}.")
        return {name: value for name, value in values.items() if value is not _INVALID}

    def _decode(self, raw: msgspec.Raw, annotation: Any, path: str, allowed: str) -> Any:  # noqa: ANN401 - any JSON type
        """Return the decoded value, or _INVALID after its faults were added. A Struct has defaults for its invalid fields."""
        if len(self.faults) >= MAX_FAULTS:
            return _INVALID
        try:
            return msgspec.json.decode(raw, type=annotation)
        except msgspec.ValidationError as error:
            message = _LOCATION.sub("", str(error))
        first = bytes(raw).lstrip()[:1]
        if first == b"{" and (struct := _find_struct(annotation)) is not None:
            values = self.decode_object(raw, struct, path)
            return (
                struct(**values)
                if all(name in values for name, field in _read_fields(struct).items() if field.is_required)
                else _INVALID
            )
        if first == b"[" and (item := _find_item(annotation)) is not None and self._decode_items(raw, item, path):
            return _INVALID
        self._add(path, f"{message}. Allowed: {allowed}." if allowed else f"{message}.")
        return _INVALID

    def _decode_items(self, raw: msgspec.Raw, item: Any, path: str) -> bool:  # noqa: ANN401 - any JSON type
        """Add the faults of a list's items. Return whether there are any; if not, the list itself is at fault, as it is too long."""
        count = len(self.faults)
        for number, one in enumerate(msgspec.json.decode(raw, type=list[msgspec.Raw])):
            if len(self.faults) >= MAX_FAULTS or number > MAX_FAULTS * 10:
                break
            self._decode(one, item, f"{path}[{number}]", "")
        return len(self.faults) > count

    def _add(self, path: str, message: str) -> None:
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(fault(path, message))


# --- repeated names


class _Object(dict[str, Any]):
    """A JSON object with the names that occur more than once in it."""

    repeated: frozenset[str] = frozenset()


class _RepeatedName(Exception):
    """An object has a name twice."""


def _require_unique_names(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) != len(pairs):
        raise _RepeatedName


_UNIQUE_NAMES: Final = json.JSONDecoder(object_pairs_hook=_require_unique_names, parse_float=str, parse_int=str)


def _has_repeated_names(body: bytes) -> bool:
    """Return whether any object of a valid body has a name twice. msgspec takes the last one."""
    try:
        _UNIQUE_NAMES.decode(body.decode())
    except _RepeatedName:
        return True
    return False


def _find_repeated_names(body: bytes) -> list[str]:
    """Return the paths of the names that occur more than once in their object, none if the body is not JSON."""

    def read_object(pairs: list[tuple[str, Any]]) -> _Object:
        found = _Object(pairs)
        if len(found) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            found.repeated = frozenset(name for name, count in counts.items() if count > 1)
        return found

    try:
        content = json.JSONDecoder(object_pairs_hook=read_object, parse_float=str, parse_int=str).decode(body.decode())
    except (ValueError, RecursionError):
        return []
    return sorted(set(_walk(content, "", 0)))


def _walk(content: Any, path: str, depth: int) -> Iterator[str]:  # noqa: ANN401 - any JSON
    """Yield the paths of repeated names, down to the depth that a body can have."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(content, _Object):
        for name, value in content.items():
            inner = f"{path}.{name}" if path else name
            if name in content.repeated:
                yield inner
            yield from _walk(value, inner, depth + 1)
    elif isinstance(content, list):
        for number, value in enumerate(content):
            yield from _walk(value, f"{path}[{number}]", depth + 1)


# --- types


@lru_cache(_MAX_TYPES)
def _read_fields(struct: type[msgspec.Struct]) -> Mapping[str, Expected]:
    """Return the fields of a Struct, in their order."""
    types = get_type_hints(struct, include_extras=True)
    return {
        field.name: Expected(
            types[field.name],
            field.required,
            describe_enum(_find_parts(types[field.name])) or _describe(types[field.name]),
        )
        for field in msgspec.structs.fields(struct)
    }


def _find_parts(annotation: Any) -> Iterator[Any]:  # noqa: ANN401 - any type
    """Yield the type without metadata and the alternatives of a union."""
    if hasattr(annotation, "__metadata__"):
        yield from _find_parts(annotation.__origin__)
    elif type(None) in get_args(annotation):
        for part in get_args(annotation):
            yield from _find_parts(part)
    else:
        yield annotation


def _find_struct(annotation: Any) -> type[msgspec.Struct] | None:  # noqa: ANN401 - any type
    kinds = (part for part in _find_parts(annotation) if isinstance(part, type) and issubclass(part, msgspec.Struct))
    return next(kinds, None)


def _find_item(annotation: Any) -> Any:  # noqa: ANN401 - any type
    """Return the type of a list's items, or None if the type is no list."""
    return next((get_args(part)[0] for part in _find_parts(annotation) if get_origin(part) in {list, tuple}), None)


def _describe(annotation: Any) -> str:  # noqa: ANN401 - any type
    """Return the description in a field's type, or an empty text."""
    metas = (meta for meta in getattr(annotation, "__metadata__", ()) if isinstance(meta, Meta))
    return next((meta.description for meta in metas if meta.description), "")
