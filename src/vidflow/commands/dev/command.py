"""What `vidflow dev` does with a stack: shows its lines, tells when it is ready and what to type next, ends it at Ctrl-C."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from vidflow.commands.dev.lines import LastLines, PrefixedOutput
from vidflow.commands.dev.stack import Stack
from vidflow.infra.embedded.child_process import Notify, StartCancelled
from vidflow.infra.process.stopping import Stop
from vidflow.settings import DevOptions, read_environment_variable

READY_TIMEOUT_S: Final = 120.0
NAME: Final = "dev"


def run(options: DevOptions, stop: Stop) -> None:
    """Runs a whole vidflow until Ctrl-C or SIGTERM.

    Raises what `Stack.start` and `Stack.wait_until_ready` raise, but for a stop, which is what was asked for.
    """
    lines = PrefixedOutput(colour=sys.stderr.isatty() and not read_environment_variable("NO_COLOR"))

    def say(sentence: str) -> None:
        lines.show(NAME, sentence)

    began_s = time.monotonic()
    stack = Stack(options, say, lines.show, stop)
    try:
        stack.start()
        stack.wait_until_ready(READY_TIMEOUT_S)
        for line in _startup_lines(stack, time.monotonic() - began_s, options):
            say(line)
        stop.wait()
    except StartCancelled:
        if stop.error is not None:
            raise stop.error from None
    finally:
        say("stopping")
        stack.stop()
        say("stopped")


@contextmanager
def running_stack(options: DevOptions, stop: Stop, say: Notify) -> Iterator[str]:
    """A whole vidflow for as long as the block lasts: the URL of its api. The roles' lines are kept to themselves.

    Raises what `Stack.start` and `Stack.wait_until_ready` raise.
    """
    stack = Stack(options, say, LastLines().keep, stop)
    try:
        stack.start()
        stack.wait_until_ready(READY_TIMEOUT_S)
        yield stack.url
    finally:
        stack.stop()


def _startup_lines(stack: Stack, took_s: float, options: DevOptions) -> Iterator[str]:
    url = stack.url
    yield f"ready after {took_s:.1f} s: {url}"
    if stack.external_roles:
        yield f"  not run here:   {', '.join(stack.external_roles)}; a scenario waits until they run"
    for kind in stack.external_roles:
        # A runner needs no database and runs models of others.
        unset = "unset VIDFLOW_DATABASE_URL; " if kind == "runner" else ""
        yield f"  {kind + ':':<16}(set -a; . {shlex.quote(str(stack.environment_file))}; {unset}vidflow {kind})"
    yield f"  run a video:    vidflow run sample:bikes --fps 2 --url {url}"
    yield f"  look:           curl {url}/scenario"
    yield f"  try the API:    {url}/docs"
    if options.data_dir is None:
        yield "  the data go when this ends; keep them with: vidflow dev --data-dir FOLDER"
    yield "  stop:           Ctrl-C"
