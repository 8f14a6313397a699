"""The command line: every command with its options, their environment variables, defaults and bounds."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Final, Literal, get_args, get_origin

import typer
from docs.generator.markdown import GENERATED, code, table

from vidflow.cli.app import app

_INTRODUCTION: Final = """# Command line and settings

Every option can be set by an environment variable. An option on the command line overrides its variable. Where two variables are
listed, the first one overrides the second.

Exit codes: 0 success, 2 the request is at fault, 3 the set-up is at fault, 4 a server is unavailable, 130 after Ctrl-C, 1 any
other error. `vidflow run` exits with 0 only if the scenario is completed.

`vidflow --install-completion` adds completion of commands, options, choices and models to bash, zsh or fish;
`vidflow --show-completion` prints its script.

Properties of Kafka's clients have variables of their own: [](../how-to/kafka.md). Two variables have no option:
`VIDFLOW_CACHE_DIR` is the folder of the embedded Kafka's program files ([](footprint.md)), and `VIDFLOW_HEALTH_FILE` the file of
the health check ([](../how-to/containers.md)).
"""


def build_page() -> str:
    """Return the page of all commands."""
    parts = [GENERATED, _INTRODUCTION]
    for words, command in commands():
        parts.append(f"\n## vidflow {words}\n\n{inspect.cleandoc(command.help or '')}\n")
        rows = [_row(parameter) for parameter in command.params if _is_shown(parameter)]
        if rows:
            parts += ["\n", table(("option", "environment variable", "default", "meaning"), rows)]
    return "".join(parts)


def commands() -> Iterator[tuple[str, Any]]:
    """Yield each command with its name, such as `db migrate`."""
    yield from _commands(typer.main.get_command(app), ())


def _commands(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - typer's
    for name, subcommand in sorted(getattr(command, "commands", {}).items()):
        if getattr(subcommand, "commands", None):
            yield from _commands(subcommand, (*words, name))
        else:
            yield " ".join((*words, name)), subcommand


def _is_shown(parameter: Any) -> bool:  # noqa: ANN401 - typer's
    return not getattr(parameter, "hidden", False) and parameter.name != "help"


def _row(parameter: Any) -> tuple[str, str, str, str]:  # noqa: ANN401 - typer's
    is_option = parameter.param_type_name == "option"
    names = [*parameter.opts, *parameter.secondary_opts] if is_option else [parameter.name.upper()]
    variables = [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar or []
    return (
        ", ".join(map(code, names)),
        ", ".join(map(code, variables)),
        _default(parameter),
        (getattr(parameter, "help", None) or "").replace("*", r"\*") + _bounds(parameter),
    )


def _default(parameter: Any) -> str:  # noqa: ANN401 - typer's
    if parameter.required:
        return "required"
    default = parameter.default
    if default is None or callable(default) or default == "":
        return ""
    return code(str(default).lower() if isinstance(default, bool) else default)


def _bounds(parameter: Any) -> str:  # noqa: ANN401 - typer's
    low, high = parameter.min, parameter.max
    if low is not None and high is not None:
        return f" From {low:g} to {high:g}."
    if low is not None:
        return f" At least {low:g}."
    annotation = parameter.type_descriptor.annotation
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    return f" One of {', '.join(map(code, choices))}." if choices else ""
