"""README.md, CONTRIBUTING.md and docs/ name only commands, options, environment variables, files, API paths and extras that exist."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from litestar import Router
from tests.cli_commands import all_commands
from tests.docs.pages import PAGES, README, ROOT, code_snippets, page_name

from vidflow.roles.api import health, models, predictions, scenarios

SPAN = re.compile(r"`([^`]+)`")
COMMAND = re.compile(r"(?:^|[\s/(])vidflow((?: +[\w:./=|*-]+)+)", re.MULTILINE)
VARIABLE = re.compile(r"\b(?:VIDFLOW_[A-Z0-9_]+|MAX_WORKERS|VIDEO_FPS)\b")
KAFKA_PROPERTY = "VIDFLOW_KAFKA_"
"""Prefix of the variables of librdkafka's properties."""
API_PATH = re.compile(r"(?:localhost:\d+|(?:GET|POST) )(/[\w/$-]+)")
PLACEHOLDER = re.compile(r"/(?:UUID|\$uuid|[0-9a-f-]{36})(?=/|$)")
EXTRA = re.compile(r"^\| (`[\w-]+`|\(none\)) \| .*? \| (.*?) \|$", re.MULTILINE)
FOLDERS = ("bench", "docs", "locks", "sql", "src", "tests", "domain", "infra", "roles")
"""Folders that file names may start with, in the repository or in the package."""


def command_lines(text: str) -> list[list[str]]:
    """Return the words of each `vidflow …` on a page; `vidflow api | relay` counts as two."""
    lines = [words.split() for code in code_snippets(text) for words in COMMAND.findall(code)]
    alternatives = [[word] for words in lines if "|" in words for word in words if word != "|"]
    return [words for words in lines if "|" not in words] + alternatives


def options(command: Any) -> set[str]:
    return {"--help"} | {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


@cache
def variables() -> set[str]:
    """Return the variables of all options, and those read by `settings.read_environment_variable`."""
    parameters = [parameter for command in all_commands().values() for parameter in command.params]
    envvars = [parameter.envvar for parameter in parameters if parameter.envvar]
    sources = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    names = {name for envvar in envvars for name in ([envvar] if isinstance(envvar, str) else envvar)}
    return names | set(re.findall(r'read_environment_variable\("(\w+)"\)', sources))


@cache
def api_paths() -> set[str]:
    handlers: list[Any] = [scenarios.router(), health.router(), predictions.get_predictions, models.list_models]
    paths = {route.path for route in Router("/", route_handlers=handlers).routes}
    return {re.sub(r"\{[^}]*\}", "UUID", path).rstrip("/") for path in paths} | {"/docs", "/metrics"}


def exists(name: str) -> bool:
    return any((folder / name).exists() for folder in (ROOT, ROOT / "src" / "vidflow"))


pages = pytest.mark.parametrize("page", PAGES, ids=page_name)


@pages
def test_each_command_on_a_page_exists_with_its_options(page: Path) -> None:
    known = all_commands()
    for words in command_lines(page.read_text()):
        if words[0] == "ROLE":
            continue
        names = [" ".join(words[:count]) for count in (1, 2) if " ".join(words[:count]) in known]
        names = [""] if words[0].startswith("--") else names
        assert names, words
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= options(known[names[-1]]), words


def test_the_readme_shows_each_role_and_the_first_commands() -> None:
    shown = {words[0] for words in command_lines(README.read_text())}
    assert {"api", "inbox", "relay", "orchestrator", "runner", "dev", "run", "db", "topics"} <= shown


@pages
def test_each_option_on_a_page_exists(page: Path) -> None:
    known = {option for command in all_commands().values() for option in options(command)}
    alone = {code.split()[0].partition("=")[0] for code in code_snippets(page.read_text()) if re.match("--[a-z]", code)}
    assert alone <= known


@pages
def test_each_environment_variable_on_a_page_exists(page: Path) -> None:
    names = {name for name in VARIABLE.findall(page.read_text()) if not name.startswith(KAFKA_PROPERTY)}
    assert names <= variables()


@pages
def test_each_file_on_a_page_exists(page: Path) -> None:
    files = [
        code for code in code_snippets(page.read_text()) if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*", code)
    ]
    assert [name for name in files if not exists(name)] == []


@pages
def test_each_api_path_on_a_page_exists(page: Path) -> None:
    shown = {PLACEHOLDER.sub("/UUID", path).rstrip("/") for path in API_PATH.findall(page.read_text())}
    assert shown <= api_paths()


def test_the_readme_lists_the_extras_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    documented = {name.strip("`"): contents for name, contents in EXTRA.findall(README.read_text())}
    assert set(documented) == {"(none)", *extras}
    for name in ("video", "runner", "torch"):
        packages = {re.split(r"[\[=><]", requirement)[0] for requirement in extras[name]} - {project["name"]}
        assert set(re.sub(r"\(.*\)|`\w+`", "", documented[name]).replace(",", " ").split()) == packages
    assert set(SPAN.findall(documented["demo"])) == set(extras["demo"][0].partition("[")[2].rstrip("]").split(","))
