"""The OpenAPI document says what is true: schemas, patterns, codes and headers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from docs.generator.__main__ import REFERENCE
from docs.generator.error_codes import TEXTS
from docs.generator.error_scan import find_codes
from docs.generator.openapi_changes import resolve_reference
from openapi_spec_validator import OpenAPIV31SpecValidator

from vidflow.contract import InitScenario
from vidflow.domain.scenario import State
from vidflow.roles.api.openapi import translate_pattern

DOCUMENT: dict[str, Any] = json.loads((REFERENCE / "openapi.json").read_text())
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
OPERATIONS = [
    (path, method, operation) for path, item in DOCUMENT["paths"].items() for method, operation in item.items()
]


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object within a JSON value."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts(inner)


def validator(name: str) -> jsonschema.Draft202012Validator:
    root = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return jsonschema.Draft202012Validator(root)


def codes_of(response: dict[str, Any]) -> set[str]:
    return {
        code
        for part in parts(response)
        for code in part.get("code", {}).get("enum", ())
        if isinstance(part.get("code"), dict)
    }


def test_the_document_follows_the_meta_schema_of_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_every_schema_follows_the_meta_schema_of_json_schema() -> None:
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("fps", [2, 0.5, 29.97, 1000, "30000/1001", "29.97", ".5", "all", None])
def test_an_accepted_rate_matches_exactly_one_alternative(fps: Any) -> None:
    alternatives = SCHEMAS["InitScenario"]["properties"]["fps"]["oneOf"]
    assert sum(jsonschema.Draft202012Validator(one).is_valid(fps) for one in alternatives) == 1
    validator("InitScenario").validate({"source": "x", "fps": fps})


@pytest.mark.parametrize("fps", [0, -1, 1001, "ALL", "fast", "1/", "1e3", "", "-1/2", True, [], {}, "9" * 65])
def test_a_refused_rate_matches_none(fps: Any) -> None:
    assert not validator("InitScenario").is_valid({"source": "x", "fps": fps})


@pytest.mark.parametrize(
    "change",
    [
        {"source": ""}, {"source": "x" * 4097}, {"extra": 1}, {"priority": 101}, {"priority": 1.5}, {"pool": "a b"}, {"pool": ""},
        {"parameters": {"score_threshold": -0.1}}, {"parameters": {"labels": [""]}}, {"parameters": {"duration_s": 0}},
        {"parameters": {"extra": 1}}, {"parameters": {"on_poison": "die"}}, {"parameters": {"stream": -1}}, {"source": None},
    ],
)  # fmt: skip
def test_the_limits_of_a_request_are_in_its_schema(change: dict[str, Any]) -> None:
    assert validator("InitScenario").is_valid({"source": "x"})
    assert not validator("InitScenario").is_valid({"source": "x"} | change)


def test_enumerations_keep_the_order_of_the_code() -> None:
    assert SCHEMAS["State"]["enum"] == [state.value for state in State]


def find_node() -> str | None:
    """Return Node.js: that of the machine, or the one that comes with playwright."""
    spec = find_spec("playwright")
    bundled = Path(spec.origin or "").parent / "driver" / "node" if spec else Path()
    return shutil.which("node") or (str(bundled) if bundled.is_file() else None)


def test_every_pattern_is_one_of_javascript() -> None:
    documents = [json.loads((REFERENCE / name).read_text()) for name in ("openapi.json", "asyncapi.json")]
    patterns = [part["pattern"] for part in parts(documents) if isinstance(part.get("pattern"), str)]
    assert len(patterns) >= 10
    for pattern in patterns:
        assert not re.search(r"\\[AZ]|\(\?[^:=!]|[*+?}]\+", pattern), f"only Python has this: {pattern}"
        assert (pattern[0], pattern[-1]) == ("^", "$")
    node = find_node()
    if node is None:
        pytest.skip("no Node.js on PATH, and playwright is not installed")
    program = "for (const one of JSON.parse(process.argv[1])) new RegExp(one, 'u')"
    compiled = subprocess.run([node, "-e", program, json.dumps(patterns)], capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr


def test_a_pattern_of_python_is_translated() -> None:
    assert translate_pattern(r"\A[^\x00]*\Z") == r"^[^\x00]*$"
    assert translate_pattern(r"^[a-z]+$(?!\n)") == "^[a-z]+$"


def test_the_server_refuses_a_line_break_at_the_end_of_a_text() -> None:
    for field in ({"pool": "gpu\n"}, {"pool": "gpu\r\n"}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"source": "x"} | field, InitScenario)


def test_each_problem_names_its_codes_and_each_code_is_explained() -> None:
    explained = {name for section in tomllib.loads(TEXTS.read_text()).values() for name in section}
    for path, method, operation in OPERATIONS:
        for status, response in operation["responses"].items():
            if int(status) >= 400 and method != "head":
                assert codes_of(response), (path, method, status)
                assert codes_of(response) <= explained


def test_each_code_of_a_refused_request_is_in_the_document_under_its_status() -> None:
    documented = {
        (code, int(status)) for _, _, operation in OPERATIONS for status, one in operation["responses"].items() for code in codes_of(one)
    } | {(code, status) for status, name in ((404, "NotFound"), (405, "MethodNotAllowed"))
         for code in codes_of(DOCUMENT["components"]["responses"][name])}  # fmt: skip
    requests = tomllib.loads(TEXTS.read_text())["requests"].keys() - {"refused"}
    found = {(code, status) for code, statuses in find_codes().items() if code in requests for status in statuses}
    assert found - documented == set()
    assert requests - {code for code, _ in documented} == set()


def test_each_response_names_its_headers() -> None:
    for path, method, operation in OPERATIONS:
        for status, response in operation["responses"].items():
            names = set(response["headers"])
            assert "X-Request-Id" in names
            assert ("Retry-After" in names) == (status in {"409", "429", "503"}), (path, method, status)
            assert ("Location" in names) == (status == "201")
            assert ("ETag" in names) == (
                status in {"200", "304"} and path in {"/scenario/{scenario_uuid}", "/prediction"}
            )
            for header in response["headers"].values():
                assert resolve_reference(DOCUMENT, header)["description"]
    assert "Allow" in DOCUMENT["components"]["responses"]["MethodNotAllowed"]["headers"]


def test_no_parameter_of_a_query_may_be_null() -> None:
    for _, _, operation in OPERATIONS:
        for parameter in operation["parameters"]:
            assert {"type": "null"} not in list(parts(resolve_reference(DOCUMENT, parameter)["schema"]))
