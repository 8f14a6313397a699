"""Strict parameters of queries and paths: unknown and repeated ones are refused, and all faults are reported together.

The framework itself ignores what it does not know, takes the last of repeated values, and reads `1.0` as a whole number.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, islice
from types import NoneType
from typing import Any, Final, NamedTuple, get_args

import msgspec
from litestar import Request
from litestar.enums import HttpMethod
from litestar.handlers import HTTPRouteHandler
from litestar.params import PathParameter, QueryParameter

from vidflow.contract import FieldProblem
from vidflow.roles.api.faults import MAX_FAULTS, Expected, describe_enum, fault, faults_problem, list_names

_INTEGER: Final = re.compile(r"-?[0-9]{1,20}", re.ASCII)
_MAX_HANDLERS: Final = 100
"""Far more than there are."""


class _Parameters(NamedTuple):
    """The parameters of a handler, by the names that clients use."""

    query: Mapping[str, Expected]
    path: Mapping[str, Expected]
    any_required: bool


async def require_valid_parameters(request: Request[Any, Any, Any]) -> None:
    """Raise a 400 problem that lists every fault of the request's query and path. Called before each handler.

    It awaits nothing, but Litestar would call a plain function in a thread.
    """
    if request.method == HttpMethod.OPTIONS:
        return
    expected = _read_parameters(request.route_handler)
    if not request.scope["query_string"] and not expected.any_required:
        return
    given = list(request.query_params.multi_items())
    found = chain(_check_path(request.path_params, expected), _check_query(given, expected))
    faults = list(islice(found, MAX_FAULTS))
    if faults:
        raise faults_problem(400, "request_malformed", faults)


def _check_path(given: Mapping[str, Any], expected: _Parameters) -> Iterator[FieldProblem]:
    for name, parameter in expected.path.items():
        yield from _check_value(name, given[name], parameter)


def _check_query(given: Sequence[tuple[str, str]], expected: _Parameters) -> Iterator[FieldProblem]:
    counts, values = Counter(name for name, _ in given), dict(given)
    for name, parameter in expected.query.items():
        if counts[name] > 1:
            yield fault(name, f"Given {counts[name]} times. Give it once.")
        elif name in values:
            yield from _check_value(name, values[name], parameter)
        elif parameter.is_required:
            yield fault(name, "Missing. This parameter is required.")
    for name in sorted(values.keys() - expected.query.keys()):
        yield fault(name, f"Unknown parameter. The parameters of this path: {list_names(expected.query)}.")


def _check_value(name: str, value: str, parameter: Expected) -> Iterator[FieldProblem]:
    """Yield the fault of a value. Texts that the framework would read leniently (`1.0`, `null`) are faults."""
    types = list(_find_types(parameter.annotation))
    if int in types and not _INTEGER.fullmatch(value):
        message = "Expected a whole number"
    elif NoneType in types and value.lower() == "null":
        message = "null is not a value. Leave the parameter out instead"
    else:
        try:
            msgspec.convert(value, parameter.annotation, strict=False)
        except msgspec.ValidationError as error:
            message = str(error)
        else:
            return
    yield fault(name, f"{message}. Allowed: {parameter.allowed}." if parameter.allowed else f"{message}.")


@lru_cache(_MAX_HANDLERS)
def _read_parameters(handler: HTTPRouteHandler) -> _Parameters:
    """Return the parameters in the handler's signature."""
    query: dict[str, Expected] = {}
    path: dict[str, Expected] = {}
    for name, field in handler.parsed_fn_signature.parameters.items():
        definition = field.kwarg_definition
        if not isinstance(definition, QueryParameter | PathParameter):
            continue
        annotation = handler.signature_model.__annotations__[name]
        found = query if isinstance(definition, QueryParameter) else path
        found[definition.name or name] = Expected(
            annotation, field.is_required, describe_enum(_find_types(annotation)) or definition.description or ""
        )
    return _Parameters(query, path, any(one.is_required for one in [*query.values(), *path.values()]))


def _find_types(annotation: Any) -> Iterator[Any]:  # noqa: ANN401 - any type
    """Yield the type and those within it: the alternatives of a union, and the type of an Annotated."""
    yield annotation
    for part in get_args(annotation):
        yield from _find_types(part)
