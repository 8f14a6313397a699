"""The command `vidflow dev`: run a stack until Ctrl-C, print its output and, once it is ready, how to use it."""

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
    """Run all of vidflow until Ctrl-C or SIGTERM.

    Raises what `Stack.start` and `Stack.wait_until_ready` raise, except StartCancelled.
    """
    lines = PrefixedOutput(colour=sys.stderr.isatty() and not read_environment_variable("NO_COLOR"))

    def notify(message: str) -> None:
        lines.show(NAME, message)

    started_s = time.monotonic()
    stack = Stack(options, notify, lines.show, stop)
    try:
        stack.start()
        stack.wait_until_ready(READY_TIMEOUT_S)
        for line in _startup_lines(stack, time.monotonic() - started_s, options):
            notify(line)
        stop.wait()
    except StartCancelled:
        if stop.error is not None:
            raise stop.error from None
    finally:
        notify("stopping")
        stack.stop()
        notify("stopped")


@contextmanager
def running_stack(options: DevOptions, stop: Stop, notify: Notify) -> Iterator[str]:
    """Run all of vidflow during the block, and yield the URL of its api. The roles' output is not printed.

    Raises what `Stack.start` and `Stack.wait_until_ready` raise.
    """
    stack = Stack(options, notify, LastLines().keep, stop)
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
        # A runner needs no database, and the models in it must not see the password.
        unset = "unset VIDFLOW_DATABASE_URL; " if kind == "runner" else ""
        yield f"  {kind + ':':<16}(set -a; . {shlex.quote(str(stack.environment_file))}; {unset}vidflow {kind})"
    yield f"  run a video:    vidflow run sample:bikes --fps 2 --url {url}"
    yield f"  look:           curl {url}/scenario"
    yield f"  try the API:    {url}/docs"
    if options.data_dir is None:
        yield "  the data are deleted at the end; to keep them: vidflow dev --data-dir FOLDER"
    yield "  stop:           Ctrl-C"
