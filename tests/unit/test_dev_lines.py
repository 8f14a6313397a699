"""Output of the roles on the terminal of `vidflow dev`."""

from __future__ import annotations

import io

import pytest

from vidflow.commands.dev.lines import LastLines, PrefixedOutput, forward_lines


def test_a_line_is_prefixed_with_its_role(capsys: pytest.CaptureFixture[str]) -> None:
    PrefixedOutput(colour=False).show("relay", "published rows=12")
    assert capsys.readouterr().err == "relay         │ published rows=12\n"


def test_a_hostile_line_is_escaped_into_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    PrefixedOutput(colour=False).show("runner", "label \x1b]0;title\x07\x9b2J\r\u202e http://h/?token=hidden")
    assert capsys.readouterr().err == r"runner        │ label \x1b]0;title\x07\x9b2J\r\u202e http://h/?token=***" + "\n"


def test_on_a_terminal_each_role_keeps_its_own_colour(capsys: pytest.CaptureFixture[str]) -> None:
    lines = PrefixedOutput(colour=True)
    for name in ("relay", "api", "relay"):
        lines.show(name, "hello")
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == third
    assert first.startswith("\x1b[")
    assert first.split("relay")[0] != second.split("api")[0]


def test_the_last_error_of_a_role_is_found_among_later_lines() -> None:
    lines = LastLines()
    for line in ("12:00 info hello", "vidflow: the extra is missing", "bye"):
        lines.keep("runner", line)
    assert lines.find_error("runner") == "the extra is missing"


def test_without_a_vidflow_error_the_last_lines_of_a_role_are_reported() -> None:
    lines = LastLines()
    for number in range(30):
        lines.keep("runner", f"line {number}")
    assert lines.find_error("runner") == "line 25 | line 26 | line 27 | line 28 | line 29"
    assert lines.find_error("silent") == ""


def test_the_output_of_a_child_is_forwarded_line_by_line_even_if_it_is_not_utf_8() -> None:
    forwarded: list[tuple[str, str]] = []
    forward_lines(
        "api",
        io.BytesIO(b"first\r\nsec\xffond\nlast without an end"),
        lambda name, line: forwarded.append((name, line)),
    )
    assert forwarded == [("api", "first"), ("api", "sec\N{REPLACEMENT CHARACTER}ond"), ("api", "last without an end")]
