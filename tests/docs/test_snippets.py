"""Every snippet in the documentation is at least parsed: commands by the real command line, code and data by their languages."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import yaml
from docs.generator.cli import commands
from tests.docs.pages import PAGES, ROOT, Block, all_blocks, blocks, code_snippets, page_name
from tests.pictures import picture_of

from vidflow.domain.messages import Parameters
from vidflow.infra.kafka.settings import KafkaSettings, parse_properties
from vidflow.infra.models.plugin import PluginModel

COMMANDS = dict(commands())
SHELL = blocks("sh", "console", "bash")
GENERATED_SQL = ROOT / "docs" / "reference" / "tables.md"
OPERATORS = {"|", "||", "&&", ";", "&", ">", ">>", "<", "(", ")"}
TOOL = re.compile(r"(?:^|[\s/])((?:pytest|python) [^`\n#;|&)]+)", re.MULTILINE)
INVARIANT = re.compile(r"def test_(invariant_\d+)_")


def name(block: Block) -> str:
    return block.name


def shell_text(block: Block) -> str:
    """Return the commands of a block; in a console session, the lines after the prompt."""
    if block.language != "console":
        return block.text
    joined = block.text.replace("\\\n", "")
    return "\n".join(line.removeprefix("$ ") for line in joined.splitlines() if line.startswith("$ "))


def vidflow_calls(text: str) -> list[list[str]]:
    """Return the arguments of each call of vidflow in a shell text."""
    calls: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        current: list[str] | None = None
        for word in words:
            if word in OPERATORS:
                current = None
            elif current is not None:
                current.append(word)
            elif Path(word).name == "vidflow" and not word.startswith("-"):
                current = []
                calls.append(current)
    return calls


def parse_call(arguments: list[str]) -> None:
    """Let the real command line parse the arguments, without running the command."""
    command_name = next(
        (" ".join(arguments[:count]) for count in (2, 1) if " ".join(arguments[:count]) in COMMANDS), None
    )
    assert command_name is not None, f"no such command: vidflow {' '.join(arguments)}"
    command: Any = COMMANDS[command_name]
    command.make_context(command_name, arguments[len(command_name.split()) :])


@pytest.mark.parametrize("block", SHELL, ids=name)
def test_a_shell_block_is_valid_and_its_vidflow_commands_are_accepted(block: Block) -> None:
    text = shell_text(block)
    assert text
    result = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    for call in vidflow_calls(text):
        parse_call(call)


def test_the_calls_in_shell_blocks_are_found() -> None:
    text = "time .venv/bin/vidflow run a.mp4 --fps 4 | head && vidflow db status  # vidflow nothing"
    assert vidflow_calls(text) == [["run", "a.mp4", "--fps", "4"], ["db", "status"]]
    assert sum(len(vidflow_calls(shell_text(block))) for block in SHELL) > 20


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("vidflow run", "video"),
        ("vidflow api --no-such-option", "no-such-option"),
        ("vidflow api --port x", "integer"),
        ("vidflow nothing", "no such command"),
    ],
)
def test_a_wrong_call_is_refused(wrong: str, reason: str) -> None:
    with pytest.raises(Exception) as refusal:  # noqa: PT011 - the library's usage errors have no public base class
        parse_call(vidflow_calls(wrong)[0])
    assert reason in getattr(refusal.value, "format_message", lambda: str(refusal.value))()


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_the_files_and_options_of_test_and_bench_commands_exist(page: Path) -> None:
    for snippet in code_snippets(page.read_text()):
        for call in TOOL.findall(snippet):
            check_tool_call(shlex.split(call))


def check_tool_call(words: list[str]) -> None:
    program, arguments = words[0], words[1:]
    if program == "python" and arguments[0] == "-m":
        module = arguments[1]
        folder = ROOT / module.replace(".", "/")
        assert module in {"vidflow.healthcheck", "sphinx"} or folder.is_dir() or folder.with_suffix(".py").is_file(), (
            words
        )
        return
    options = [word for word in arguments if word.startswith("--")]
    files = [word for word in arguments if "/" in word and not word.startswith("-")]
    assert all((ROOT / file.partition("::")[0]).exists() for file in files), words
    if program == "python":
        script = (ROOT / arguments[0]).read_text()
        assert all(f'"{option}"' in script for option in options), words
    if "-k" in arguments:
        assert arguments[arguments.index("-k") + 1] in invariants(), words


def invariants() -> set[str]:
    return {found for path in (ROOT / "tests").rglob("*.py") for found in INVARIANT.findall(path.read_text())}


def parse_kafka_properties(text: str) -> KafkaSettings:
    properties = parse_properties(text, "a page")
    return KafkaSettings(properties.pop("bootstrap.servers", ""), properties)


PARSERS: dict[str, Callable[[str], object]] = {
    "python": ast.parse,
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
    "properties": parse_kafka_properties,
}


@pytest.mark.parametrize("block", blocks(*PARSERS), ids=name)
def test_a_block_of_code_or_data_is_accepted_by_its_parser(block: Block) -> None:
    PARSERS[block.language](block.text)


def test_every_block_has_a_language_that_is_checked() -> None:
    """Directives of the site, generated SQL, and blocks without a language (drawings, excerpts of output) are the exceptions."""
    checked = {*PARSERS, "sh", "console", "bash", "postgresql", ""}
    found = {language for page in PAGES for language, _ in all_blocks(page)}
    assert {language for language in found if not language.startswith("{")} <= checked


def test_sql_blocks_and_spans_are_accepted_by_a_database_with_the_schema(database_url: str) -> None:
    statements = [block.text for block in blocks("postgresql") if block.page != GENERATED_SQL]
    spans = [snippet for page in PAGES for snippet in code_snippets(page.read_text()) if snippet.startswith("SELECT ")]
    assert statements
    with psycopg.connect(database_url) as connection:
        for statement in {*statements, *spans}:
            connection.execute(statement.replace("%s", "NULL").replace("…", "TRUE").encode())
            connection.rollback()


def test_the_model_in_python_is_a_model() -> None:
    [block] = [block for block in blocks("python") if block.page.name == "own-model.md"]
    namespace: dict[str, Any] = {}
    exec(compile(block.text, "own-model.md", "exec"), namespace)  # noqa: S102
    model = PluginModel("brightness", namespace["load"](None, Parameters()))
    white, black = (picture_of(np.full((48, 64, 3), grey, np.uint8)) for grey in (255, 0))
    [[bright], nothing] = model.infer([white, black])
    assert (bright.label, bright.box) == ("bright", (0.0, 0.0, 64.0, 48.0))
    assert nothing == ()
