"""Run many vidflow command lines, each in a forked process, so that the command line is imported only once.

Usage: python -m tests.integration.many_commands FOLDER. Standard input has a JSON object of commands by number. The output of command
N is written to FOLDER/N.out and FOLDER/N.err; standard output has the exit codes by number.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

import vidflow.commands.dlq
import vidflow.commands.run
import vidflow.infra.kafka.topics
import vidflow.infra.postgres.backup
import vidflow.roles.api
import vidflow.roles.inbox
import vidflow.roles.orchestrator
import vidflow.roles.relay
import vidflow.roles.runner  # noqa: F401 - all imported once, before the forks
from vidflow.__main__ import main
from vidflow.cli.app import app
from vidflow.domain.errors import VidflowError

MAX_PROCESSES = 4


class Command(msgspec.Struct, frozen=True):
    """The arguments of `vidflow`, and all environment variables of its process."""

    arguments: list[str]
    variables: dict[str, str]


def run_all(folder: Path, commands: dict[int, Command]) -> dict[int, int]:
    """Return the exit codes by number."""
    codes: dict[int, int] = {}
    running: dict[int, int] = {}
    waiting = sorted(commands, reverse=True)
    while running or waiting:
        while waiting and len(running) < MAX_PROCESSES:
            number = waiting.pop()
            running[start(folder / str(number), commands[number])] = number
        pid, status = os.wait()
        codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)
    return codes


def start(output: Path, command: Command) -> int:
    """Return the pid of the command's process. In that process, never return."""
    if pid := os.fork():
        return pid
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(output.with_suffix(suffix), os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    os.environ.clear()
    os.environ.update(command.variables)
    sys.argv = ["vidflow", *command.arguments]
    main()
    sys.exit()


if __name__ == "__main__":
    with suppress(VidflowError):
        app(["dlq", "list"], standalone_mode=False)  # Typer imports half of itself at the first command
    requested = msgspec.json.decode(sys.stdin.buffer.read(), type=dict[int, Command])
    sys.stdout.buffer.write(msgspec.json.encode(run_all(Path(sys.argv[1]), requested)))
