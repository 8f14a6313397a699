"""The flow of `vidflow run`: ask for a scenario, follow it, print what it sees, say how it ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from vidflow.commands.run.output import Writer, writer_of
from vidflow.commands.run.request import body_of, check_model
from vidflow.domain.errors import InternalError, Unavailable, UserError, error_of
from vidflow.infra.api_client import ApiClient, ScenarioState
from vidflow.infra.embedded.process import GivenUp
from vidflow.infra.process.pipes import let_go_of
from vidflow.infra.process.stopping import Stop
from vidflow.infra.telemetry.logs import safe_line
from vidflow.settings import DevOptions, RunOptions

LOOK_S: Final = 0.1
PATIENCE_S: Final = 30.0
"""How long an api that was there may be away: whoever keeps it running has it back by then."""
_FILES: Final = ("source_", "model_")
INTERRUPTED: Final = 130
NO_READER: Final = 141
"""What a shell shows for a program whose reader has gone (`vidflow run … | head`)."""

T = TypeVar("T")


def run(options: RunOptions) -> int:
    """Runs it to its end; the exit code: 0 for outcome completed, 130 after Ctrl-C, 141 without a reader, 1 otherwise."""
    body = body_of(options)
    write = writer_of(options.output)
    if not options.url:
        check_model(options)
    stop = Stop()
    stop.on_signals()
    try:
        with _server(options, stop) as url, ApiClient(url) as client:
            return _run(client, body, write, stop)
    except GivenUp:
        if stop.error is not None:
            raise stop.error from None
        _say("given up before the video was asked for")
        return INTERRUPTED


def _run(client: ApiClient, body: dict[str, Any], write: Writer, stop: Stop) -> int:
    scenario_uuid = _asked_for(client, body)
    _say(f"scenario {scenario_uuid}: {body['model']} on {body['source']}")
    try:
        write(_frames(client, scenario_uuid, stop), sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        let_go_of(sys.stdout)
        return _shut_down(client, scenario_uuid, NO_READER)
    if stop.error is not None:
        raise stop.error
    if stop.requested:
        return _shut_down(client, scenario_uuid, INTERRUPTED)
    return _told(client.scenario(scenario_uuid), client)


def _asked_for(client: ApiClient, body: dict[str, Any]) -> str:
    try:
        return client.init(body).scenario_uuid
    except UserError as error:
        if client.is_local or not error.code.startswith(_FILES):
            raise
        hint = "a file must lie where the vidflow at --url can read it, under its media root or models folder"
        raise UserError(f"{error.message}; {hint}", code=error.code) from error


def _server(options: RunOptions, stop: Stop) -> AbstractContextManager[str]:
    if options.url:
        return nullcontext(options.url)
    from vidflow.commands.dev import started  # noqa: PLC0415 - needs an extra that a client of a running vidflow has no use for

    own = DevOptions(port=0, max_workers=options.max_workers, any_file=True, models_dir=options.models_dir)
    return started(own, stop, _say)


def _frames(client: ApiClient, scenario_uuid: str, stop: Stop) -> Iterator[msgspec.Raw]:
    """All frames in their order, as they come, until none can follow, or a stop is requested."""
    cursor: str | None = None
    progress = _Progress()
    while not stop.requested:
        page = _patiently(partial(client.predictions, scenario_uuid, cursor), stop)
        if page is None:
            return
        yield from page.items
        if page.complete:
            progress.end()
            return
        cursor = page.next
        if not page.items:
            scenario = _patiently(partial(client.scenario, scenario_uuid), stop)
            if scenario is not None:
                progress.show(scenario)
            stop.wait(LOOK_S)


def _patiently(ask: Callable[[], T], stop: Stop) -> T | None:
    """The api's answer; one that is away for a while is waited for, and that is said once. None at a stop.

    Raises Unavailable where it stays away.
    """
    since_s: float | None = None
    while not stop.requested:
        try:
            return ask()
        except Unavailable as error:
            if since_s is None:
                since_s = time.monotonic()
                _say(f"{error.message}; waiting for its return")
            if time.monotonic() - since_s > PATIENCE_S:
                raise
            stop.wait(LOOK_S)
    return None


class _Progress:
    """One line on standard error that tells how far it is: rewritten on a terminal, a line a change elsewhere."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, scenario: ScenarioState) -> None:
        of = f" of {scenario.frames_expected}" if scenario.frames_expected else ""
        waits = f", waits for {scenario.waiting_for}" if scenario.waiting_for else ""
        line = safe_line(f"{scenario.state}: {scenario.frames_stored}{of} frames{waits}")
        if line == self._last:
            return
        self._last = line
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
        else:
            _say(line)

    def end(self) -> None:
        if self._last and sys.stderr.isatty():
            sys.stderr.write("\n")


def _shut_down(client: ApiClient, scenario_uuid: str, exit_code: int) -> int:
    client.shutdown(scenario_uuid)
    _say(f"scenario {scenario_uuid}: shutdown requested")
    return exit_code


def _told(scenario: ScenarioState, client: ApiClient) -> int:
    """Return the exit code of an ended scenario. Raises the error that a failed one ended by."""
    if scenario.outcome == "completed":
        _say(f"completed: {scenario.frames_stored} frames")
        return 0
    if scenario.error is not None:
        error = error_of(f"scenario {scenario.scenario_uuid} failed: {scenario.error.message}", scenario.error.code)
        if isinstance(error, InternalError) and (detail := client.last_detail(scenario.scenario_uuid)):
            _say(detail)  # the servers of `vidflow run` end with it, and their history too
        raise error
    _say(f"scenario {scenario.scenario_uuid} ended {scenario.outcome}")
    return 1


def _say(line: str) -> None:
    sys.stderr.write(safe_line(line) + "\n")
    sys.stderr.flush()
