"""Shell completion, asked for as a shell does: by environment variables, and by bash itself."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.cli_process import LIMIT_S, build_environment, run_command


def complete(*words: str) -> list[str]:
    """Return what bash is offered for the last of these words."""
    variables = {
        "_VIDFLOW_COMPLETE": "complete_bash",
        "COMP_WORDS": shlex.join(["vidflow", *words]) if words[-1] else f"{shlex.join(['vidflow', *words[:-1]])} ",
        "COMP_CWORD": str(len(words)),
    }
    end = run_command(variables=variables)
    assert (end.returncode, end.stderr) == (0, "")
    return end.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["r"], ["relay", "runner", "run"]),
        (["dlq", ""], ["list", "show", "replay", "drop"]),
        (["run", "clip.mp4", "--mod"], ["--model", "--models-dir"]),
        (["run", "clip.mp4", "--output", ""], ["table", "ndjson", "json", "csv"]),
        (["dlq", "list", "--output", ""], ["table", "json"]),
        (["relay", "--log-format", "t"], ["text"]),
        (["inbox", "--group-protocol", "c"], ["consumer", "classic"]),
        (["db", "migrate", "--phase", "p"], ["pre", "post"]),
        (["run", "clip.mp4", "--model", "mo"], ["motion"]),
        (["models", "show", "yo"], ["yolox_nano"]),
        (["run", ""], []),  # bash completes a file name
    ],
)
def test_commands_options_and_choices_are_completed(words: list[str], offered: list[str]) -> None:
    assert complete(*words) == offered


def test_models_of_the_models_folder_are_completed(tmp_path: Path) -> None:
    (tmp_path / "yard_cats.toml").write_text('kind = "motion"\n')
    assert complete("run", "clip.mp4", "--models-dir", str(tmp_path), "--model", "yard") == ["yard_cats"]


def test_bash_completes_by_the_script_that_the_program_shows(tmp_path: Path) -> None:
    program = tmp_path / "vidflow"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m vidflow "$@"\n')
    program.chmod(0o755)
    script = """
        set -e
        shown=$(vidflow --show-completion)
        eval "$shown"
        COMP_WORDS=(vidflow run clip.mp4 --output n); COMP_CWORD=4
        $(complete -p vidflow | sed 's/.*-F \\([^ ]*\\).*/\\1/') vidflow
        echo "${COMPREPLY[@]}"
    """
    environment = build_environment() | {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    end = subprocess.run(
        ["bash", "--norc", "-c", script], env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert (end.returncode, end.stdout, end.stderr) == (0, "ndjson\n", "")
