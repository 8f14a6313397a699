"""Usage errors of the command line (an unknown option, an invalid value) as errors of vidflow, which are one line each."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from vidflow.cli import PROGRAM
from vidflow.domain.errors import UserError
from vidflow.settings import read_environment_variable

_PREFIX: Final = "Value error, "
"""Added by Typer to some messages."""


@contextmanager
def raise_usage_errors() -> Iterator[None]:
    """Raise a UserError instead of Typer's usage errors."""
    try:
        yield
    except TyperException as error:
        raise UserError(describe_usage_error(error)) from error


def describe_usage_error(error: TyperException) -> str:
    """Return the problem, the commands to choose from if one was expected, and how to get help."""
    context: typer.Context | None = getattr(error, "ctx", None)
    problem = " ".join(_describe_problem(error, context).split())
    sentences = [problem if problem.endswith((".", "?")) else f"{problem}."]
    if context is not None and isinstance(context.command, TyperGroup):
        sentences.append(f"Commands: {', '.join(context.command.commands)}.")
    sentences.append(f"See: {context.command_path if context is not None else PROGRAM} --help")
    return " ".join(sentences)


def refuse_options(context: typer.Context, names: Collection[str], reason: str) -> None:
    """Raise UserError if any of these parameters is given in the command line. A variable may be there for other commands."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in names and _is_from(context, parameter, "COMMANDLINE")
    ]
    if given:
        raise UserError(f"{', '.join(given)}: {reason}. Leave it out. See: {context.command_path} --help")


def _describe_problem(error: TyperException, context: typer.Context | None) -> str:
    if isinstance(error, typer.BadParameter) and error.param is not None and context is not None and error.message:
        return f"Invalid {_name_source(error.param, context)}: {error.message.removeprefix(_PREFIX)}"
    return error.format_message()


def _name_source(parameter: Any, context: typer.Context) -> str:  # noqa: ANN401 - not exported by Typer
    """Return the option, after the environment variable that its value came from."""
    name = "/".join(parameter.opts)
    if not _is_from(context, parameter, "ENVIRONMENT"):
        return name
    return f"{next(filter(read_environment_variable, parameter.envvar))} ({name})"


def _is_from(context: typer.Context, parameter: Any, source: str) -> bool:  # noqa: ANN401
    """Return whether the parameter's value comes from there: COMMANDLINE, ENVIRONMENT or DEFAULT."""
    found = context.get_parameter_source(parameter.name)
    return found is not None and found.name == source
