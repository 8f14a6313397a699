"""Log lines: their contents, the masking of secrets, and hostile values."""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vidflow
from vidflow.infra.telemetry.logs import EventLog, configure_logs

anything = st.recursive(
    st.text(st.characters(exclude_categories=())) | st.integers() | st.floats() | st.none() | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
same_capsys = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def _logs() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("vidflow")
    handlers, level, our_level = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level = handlers, level
    ours.setLevel(our_level)


def written(capsys: pytest.CaptureFixture[str], log_format: str, event: str, **fields: object) -> str:
    configure_logs(log_format)
    EventLog("test").info(event, **fields)
    return capsys.readouterr().err


@same_capsys
@given(event=st.text(st.characters(exclude_categories=())), value=anything)
def test_a_text_entry_is_one_line_of_printable_characters(
    capsys: pytest.CaptureFixture[str], event: str, value: object
) -> None:
    output = written(capsys, "text", event, value=value)
    assert output.endswith("\n")
    assert output[:-1].isprintable()


@same_capsys
@given(event=st.text(st.characters(exclude_categories=())), value=anything)
def test_a_json_entry_is_one_object_per_line(capsys: pytest.CaptureFixture[str], event: str, value: object) -> None:
    output = written(capsys, "json", event, value=value)
    assert output.count("\n") == 1
    entry = json.loads(output)
    assert list(entry) == ["at", "level", "part", "event", "value"]
    assert (entry["level"], entry["part"]) == ("info", "test")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_secrets_are_masked_in_fields_nested_values_and_events(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    output = written(
        capsys, log_format, "rtsp://a:hidden@camera", url="http://h/?token=hidden", error='password="hidden", next',
        nested={"a": ["rtsp://a:hidden@camera"]},
    )  # fmt: skip
    assert "hidden" not in output
    assert output.count("***") == 4


def test_json_stays_valid_if_a_secret_ends_at_a_quote(capsys: pytest.CaptureFixture[str]) -> None:
    entry = json.loads(written(capsys, "json", "failed", error="password=abc", rows=3))
    assert (entry["error"], entry["rows"]) == ("password=***", 3)


def test_a_value_keeps_its_type_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    entry = json.loads(
        written(capsys, "json", "e", i=3, f=0.5, b=True, n=None, m=[1, "x"], huge=2**70, path=Path("/a"))
    )
    assert entry | {"at": ""} == {
        "at": "", "level": "info", "part": "test", "event": "e", "i": 3, "f": 0.5, "b": True, "n": None, "m": [1, "x"],
        "huge": str(2**70), "path": "/a",
    }  # fmt: skip


def test_a_traceback_is_readable_and_cannot_forge_an_entry(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs()
    try:
        fail("a\n12:00:00.000 error relay forged\x1b[2J password=hidden")
    except ValueError:
        EventLog("test").exception("failed")
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.endswith(" error test failed")
    assert rest[0] == "    | Traceback (most recent call last):"
    assert all(line.startswith("    | ") for line in rest)
    assert rest[-1] == r"    | 12:00:00.000 error relay forged\x1b[2J password=***"


def fail(message: str) -> None:
    raise ValueError(message)


def test_an_error_that_was_caught_elsewhere_is_logged_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("json")
    EventLog("test").exception("failed", cause=ValueError("of long ago"))
    assert json.loads(capsys.readouterr().err)["traceback"] == "ValueError: of long ago"


def test_no_event_has_a_field_of_a_reserved_name() -> None:
    """`at`, `level`, `part` and `event` belong to the entry itself; the formatter would rename such a field."""
    reserved, found = {"at", "level", "part", "event", "traceback"}, []
    for path in Path(vidflow.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and ast.unparse(node.func).startswith("_log.")
            ):
                found += [f"{path.name}: {keyword.arg}" for keyword in node.keywords if keyword.arg in reserved]
    assert found == []


def test_events_are_constants_in_snake_case() -> None:
    """Entries are counted by event, so variable parts belong in fields."""
    levels = {f"_log.{level}" for level in ("debug", "info", "warning", "error", "exception")}
    events = {
        node.args[0].value if isinstance(node.args[0], ast.Constant) else f"{path.name}: {ast.unparse(node.args[0])}"
        for path in Path(vidflow.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in levels
    }
    variable_event = "outage.py: kind"  # away, topic_missing or disk_full
    assert [event for event in events if event != variable_event and not re.fullmatch("[a-z_]+", str(event))] == []
