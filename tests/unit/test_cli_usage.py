"""Usage errors: the problem and the next step in one sentence each."""

from __future__ import annotations

import re

import pytest

from vidflow.cli import PROGRAM
from vidflow.cli.app import app
from vidflow.cli.errors import raise_usage_errors
from vidflow.domain.errors import UserError

ERRORS: dict[str, tuple[list[str], str]] = {
    "no command of a group": (["dlq"], "Missing command. Commands: list, show, replay, drop. See: vidflow dlq --help$"),
    "an unknown command": (["dance"], "No such command 'dance'. Commands: api, .* See: vidflow --help$"),
    "a misspelt command": (["db", "migrat"], "No such command 'migrat'. Did you mean 'migrate'.* See: vidflow db --help$"),
    "an option without its value": (["run", "clip.mp4", "--fps"], "'--fps' requires an argument. See: vidflow --help$"),
    "run without a video": (["run"], "Missing argument 'video'. See: vidflow run --help$"),
    "run, unknown output": (["run", "clip.mp4", "--output", "yaml"], "'yaml' is not one of 'table', 'ndjson', 'json', 'csv'."),
    "run, score is a word": (["run", "clip.mp4", "--score", "high"], "Invalid --score: .* valid number"),
    "run, score too large": (["run", "clip.mp4", "--score", "7"], "Invalid --score: .* less than or equal to 1"),
    "outbox, an id is a word": (["outbox", "drop", "x"], "Invalid ids: .* valid integer.* See: vidflow outbox drop --help$"),
    "no workers": (["runner", "--max-workers", "0"], "Invalid --max-workers: .* 1"),
    "an invalid port": (["api", "--port", "99999"], "Invalid --port: .* 65535"),
    "a pool without connections": (["api", "--pool-size", "0"], "Invalid --pool-size: .* 1"),
    "an invalid log format": (["relay", "--log-format", "xml"], "Invalid --log-format: 'xml' is not one of 'text', 'json'."),
    "an invalid group protocol": (["inbox", "--group-protocol", "x"], "not one of 'consumer', 'classic'"),
}  # fmt: skip


def usage_error(*arguments: str) -> str:
    """Return the message of the error that a command line ends with."""
    with pytest.raises(UserError) as caught, raise_usage_errors():
        app(arguments, prog_name=PROGRAM, standalone_mode=False)
    return caught.value.message


@pytest.mark.parametrize("name", ERRORS)
def test_a_usage_error_names_the_problem_and_the_next_step(name: str) -> None:
    arguments, pattern = ERRORS[name]
    message = usage_error(*arguments)
    assert re.search(pattern, message), message
    assert re.search(r"See: vidflow [a-z ]*--help$", message)
    assert "\n" not in message


def test_an_invalid_environment_variable_is_named_before_its_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDFLOW_INBOX", "maybe")
    assert usage_error("api").startswith("Invalid VIDFLOW_INBOX (--inbox): ")
    assert usage_error("api", "--inbox", "--port", "x").startswith("Invalid --port: ")
