"""compose.yaml names only commands, options and environment variables that vidflow has, and starts every role."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
import yaml

from vidflow.cli import app

ROOT = Path(__file__).parents[2]
ROLES = {"api", "inbox", "relay", "orchestrator", "runner"}


def services() -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load((ROOT / "compose.yaml").read_text())["services"])


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def variables(command: Any) -> set[str]:
    named: set[str] = set()
    for parameter in command.params:
        envvar = parameter.envvar
        named.update([envvar] if isinstance(envvar, str) else envvar or [])
    return named


def test_every_role_is_a_service_of_its_own() -> None:
    assert {service["command"][0] for service in services().values() if "command" in service} == ROLES


def test_a_service_gives_its_role_only_options_that_it_has() -> None:
    for service in services().values():
        if "command" not in service:
            continue
        role, *options = service["command"]
        known = {word for parameter in commands()[role].params for word in (*parameter.opts, *parameter.secondary_opts)}
        assert set(options) <= known


def test_each_environment_variable_is_one_of_some_command() -> None:
    named = {
        name
        for service in services().values()
        for name in service.get("environment", {})
        if name.startswith("VIDFLOW_")
    }
    known = set().union(*(variables(command) for command in commands().values()))
    assert named
    assert named <= known


def test_only_the_api_is_reachable_and_from_this_machine_alone() -> None:
    published = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:8000:8000"]}
