"""README.md and docs/ name only what there is: commands, options, environment variables, files, paths of the API, extras."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from litestar import Router

from vidflow.cli.app import app
from vidflow.roles.api import health, models, predictions, scenarios

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
COMMAND = re.compile(r"(?:^|[\s/(])vidflow((?: +[\w:./=|*-]+)+)", re.MULTILINE)
VARIABLE = re.compile(r"\b(?:VIDFLOW_[A-Z0-9_]+|MAX_WORKERS|VIDEO_FPS)\b")
KAFKA_PROPERTY = "VIDFLOW_KAFKA_"
"""Any property of librdkafka may stand behind it."""
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
API_PATH = re.compile(r"(?:localhost:\d+|(?:GET|POST) )(/[\w/-]+)")
PLACEHOLDER = re.compile(r"/(?:UUID|[0-9a-f-]{36})(?=/|$)")
EXTRA = re.compile(r"^\| (`\w+`|\(none\)) \| .*? \| (.*?) \|$", re.MULTILINE)
FOLDERS = ("bench", "docs", "locks", "sql", "src", "tests", "domain", "infra", "roles")
"""What a file is named from: the repository's folders, and those of the package."""


def codes(text: str) -> Iterator[str]:
    """What a page shows as code: blocks as they are, spans in one line."""
    yield from BLOCK.findall(text)
    yield from (" ".join(span.split()) for span in SPAN.findall(BLOCK.sub("", text)))


def typed(text: str) -> list[list[str]]:
    """Each `vidflow …` that a page shows, as its words; one for each of the alternatives in `vidflow api | relay`."""
    shown = [words.split() for code in codes(text) for words in COMMAND.findall(code)]
    alternatives = [[word] for words in shown if "|" in words for word in words if word != "|"]
    return [words for words in shown if "|" not in words] + alternatives


def commands() -> dict[str, Any]:
    """All commands by the words that are typed for them."""
    group: Any = typer.main.get_command(app)
    found: dict[str, Any] = {"": group}
    for name, command in group.commands.items():
        found[name] = command
        found |= {f"{name} {inner}": one for inner, one in getattr(command, "commands", {}).items()}
    return found


def options(command: Any) -> set[str]:
    return {"--help"} | {word for one in command.params for word in (*one.opts, *one.secondary_opts)}


def variables() -> set[str]:
    """Those of all commands, and those that the program reads otherwise (settings.environment)."""
    given = [one.envvar for command in commands().values() for one in command.params if one.envvar]
    sources = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    named = {name for one in given for name in ([one] if isinstance(one, str) else one)}
    return named | set(re.findall(r'read_environment_variable\("(\w+)"\)', sources))


def api_paths() -> set[str]:
    handlers: list[Any] = [scenarios.router(), health.router(), predictions.get_predictions, models.list_models]
    paths = {route.path for route in Router("/", route_handlers=handlers).routes}
    return {re.sub(r"\{[^}]*\}", "UUID", path).rstrip("/") for path in paths} | {"/docs", "/metrics"}


def exists(name: str) -> bool:
    return any((home / name).exists() for home in (ROOT, ROOT / "src" / "vidflow"))


pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pages
def test_each_command_that_a_page_shows_is_one_and_has_the_options_that_are_shown(page: Path) -> None:
    known = commands()
    for words in typed(page.read_text()):
        if words[0] == "ROLE":
            continue
        names = [" ".join(words[:count]) for count in (1, 2) if " ".join(words[:count]) in known]
        assert names, words
        shown = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert shown <= options(known[names[-1]]), words


def test_the_readme_shows_each_role_and_what_people_type_first() -> None:
    shown = {words[0] for words in typed(README.read_text())}
    assert {"api", "inbox", "relay", "orchestrator", "runner", "dev", "run", "db", "topics"} <= shown


@pages
def test_each_option_that_a_page_names_alone_is_one(page: Path) -> None:
    known = {option for command in commands().values() for option in options(command)}
    alone = {code.split()[0].partition("=")[0] for code in codes(page.read_text()) if code.startswith("--")}
    assert alone <= known


@pages
def test_each_environment_variable_that_a_page_names_is_one(page: Path) -> None:
    named = {name for name in VARIABLE.findall(page.read_text()) if not name.startswith(KAFKA_PROPERTY)}
    assert named <= variables()


@pages
def test_each_file_that_a_page_links_to_or_names_is_there(page: Path) -> None:
    text = page.read_text()
    links = [link for link in LINK.findall(text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    named = [code for code in codes(text) if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*", code)]
    assert [name for name in named if not exists(name)] == []


@pages
def test_each_path_of_the_api_that_a_page_shows_is_one(page: Path) -> None:
    shown = {PLACEHOLDER.sub("/UUID", path).rstrip("/") for path in API_PATH.findall(page.read_text())}
    assert shown <= api_paths()


def test_the_extras_of_the_readme_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    shown = {name.strip("`"): brings for name, brings in EXTRA.findall(README.read_text())}
    assert set(shown) == {"(none)", *extras}
    for name in ("runner", "torch"):
        packages = {re.split(r"[\[=><]", one)[0] for one in extras[name]} - {project["name"]}
        assert set(re.sub(r"\(.*\)", "", shown[name]).replace(",", " ").split()) == packages
    assert set(SPAN.findall(shown["demo"])) == set(extras["demo"][0].partition("[")[2].rstrip("]").split(","))
