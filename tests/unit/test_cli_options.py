"""The help of all commands: nothing is cut, and an option has the same meaning in every command."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from tests.cli_commands import all_commands
from typer.testing import CliRunner

from vidflow.cli import PROGRAM
from vidflow.cli.app import app

COMMANDS = all_commands()
OPTIONS = [
    (command, option)
    for command, definition in COMMANDS.items()
    for option in definition.params
    if option.param_type_name == "option" and option.envvar
]


def first_sentence(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split()).partition(". ")[0].removesuffix(".")


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_shows_every_text_whole(name: str, columns: int) -> None:
    end = CliRunner(env={"COLUMNS": str(columns)}).invoke(app, [*name.split(), "--help"], prog_name=PROGRAM)
    assert end.exit_code == 0
    assert max(map(len, end.output.splitlines())) <= columns
    help_text = " ".join(end.output.split())
    texts = [COMMANDS[name].help]
    for parameter in COMMANDS[name].params:
        choices = parameter.type_descriptor.choices
        texts += [parameter.help, *parameter.opts, *(parameter.envvar or []), *(["|".join(choices)] if choices else [])]
    subcommands = getattr(COMMANDS[name], "commands", {})
    texts += [f"{subname} {first_sentence(sub.help)}." for subname, sub in subcommands.items()]
    assert [text for text in texts if " ".join(text.split()) not in help_text] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_and_option_is_described_in_sentences(name: str) -> None:
    texts = [COMMANDS[name].help, *(parameter.help for parameter in COMMANDS[name].params)]
    assert [text for text in texts if not (text[:1].isupper() or text.startswith("--")) or text[-1] not in ".*"] == []


def test_an_option_has_the_same_help_and_bounds_in_every_command() -> None:
    """The output formats of `run` and `dlq` differ."""
    meanings: dict[str, set[Any]] = defaultdict(set)
    for _, option in OPTIONS:
        meanings["/".join(option.opts)].add((option.help, option.min, option.max))
    assert {name for name, different in meanings.items() if len(different) > 1} == {"--output"}


def test_an_environment_variable_has_the_same_choices_in_every_command() -> None:
    choices: dict[str, set[Any]] = defaultdict(set)
    for _, option in OPTIONS:
        for variable in option.envvar:
            choices[variable].add((tuple(option.type_descriptor.choices or ()), option.min, option.max))
    assert [variable for variable, different in choices.items() if len(different) > 1] == []


def test_the_environment_variable_of_an_option_is_named_after_it() -> None:
    for command, option in OPTIONS:
        name = option.opts[0].strip("-").replace("-", "_").upper()
        group = command.partition(" ")[0].upper()
        assert {f"VIDFLOW_{name}", f"VIDFLOW_{group}_{name}"} & set(option.envvar)


def test_only_options_of_one_call_have_no_environment_variable() -> None:
    without = {
        name for command in COMMANDS.values() for option in command.params for name in option.opts if not option.envvar
    }
    assert {name for name in without if name.startswith("--")} == {
        "--all",
        "--version",
        "--write-spec",
        "--install-completion",
        "--show-completion",
    }
