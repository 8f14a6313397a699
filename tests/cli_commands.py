"""The commands of the program, by their names."""

from __future__ import annotations

from functools import cache
from typing import Any

import typer

from vidflow.cli.app import app


@cache
def all_commands() -> dict[str, Any]:
    """Return all commands and groups by their names, such as `db migrate`. The program itself has an empty name."""
    group: Any = typer.main.get_command(app)
    by_name: dict[str, Any] = {"": group}
    for name, command in group.commands.items():
        by_name[name] = command
        by_name |= {f"{name} {subname}": sub for subname, sub in getattr(command, "commands", {}).items()}
    return by_name
