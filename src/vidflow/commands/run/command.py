"""The command `vidflow run`: create a scenario, follow it, print its results, and report its outcome."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from vidflow.commands.run.output import WRITERS, Writer
from vidflow.commands.run.request import build_body, check_model
from vidflow.domain.errors import InternalError, Unavailable, UserError, build_error_from_code
from vidflow.infra.api_client import ApiClient, ScenarioState
from vidflow.infra.embedded.child_process import StartCancelled
from vidflow.infra.process.pipes import discard_output
from vidflow.infra.process.stopping import Stop
from vidflow.infra.telemetry.logs import safe_line
from vidflow.settings import DevOptions, RunOptions

POLL_INTERVAL_S: Final = 0.1
MAX_OUTAGE_S: Final = 30.0
"""How long the api may be away in between. A supervisor restarts it within this time."""
_FILE_ERROR_PREFIXES: Final = ("source_", "model_")
EXIT_INTERRUPTED: Final = 130
EXIT_BROKEN_PIPE: Final = 141
"""The exit code that a shell reports for a program ended by SIGPIPE (`vidflow run … | head`)."""

T = TypeVar("T")


def run(options: RunOptions) -> int:
    """Run the video to its end. Return the exit code: 0 if completed, 130 after Ctrl-C, 141 if the reader is gone, otherwise 1."""
    body = build_body(options)
    write = WRITERS[options.output]
    if not options.url:
        check_model(options)
    stop = Stop()
    stop.request_on_signals()
    try:
        with _api_url(options, stop) as url, ApiClient(url) as client:
            return _run(client, body, write, stop)
    except StartCancelled:
        if stop.error is not None:
            raise stop.error from None
        _print_status("cancelled before the scenario was created")
        return EXIT_INTERRUPTED


def _run(client: ApiClient, body: dict[str, Any], write: Writer, stop: Stop) -> int:
    scenario_uuid = _request_scenario(client, body)
    _print_status(f"scenario {scenario_uuid}: {body['model']} on {body['source']}")
    try:
        write(_frames(client, scenario_uuid, stop), sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output(sys.stdout)
        return _request_shutdown(client, scenario_uuid, EXIT_BROKEN_PIPE)
    if stop.error is not None:
        raise stop.error
    if stop.requested:
        return _request_shutdown(client, scenario_uuid, EXIT_INTERRUPTED)
    return _report_outcome(client.get_scenario(scenario_uuid), client)


def _request_scenario(client: ApiClient, body: dict[str, Any]) -> str:
    try:
        return client.init_scenario(body).scenario_uuid
    except UserError as error:
        if client.is_local or not error.code.startswith(_FILE_ERROR_PREFIXES):
            raise
        hint = "The vidflow at --url must be able to read the file, under its media root or models folder."
        raise UserError(f"{error.message} {hint}", code=error.code) from error


def _api_url(options: RunOptions, stop: Stop) -> AbstractContextManager[str]:
    if options.url:
        return nullcontext(options.url)
    from vidflow.commands.dev import running_stack  # noqa: PLC0415 - needs an extra that `--url` does not need

    dev_options = DevOptions(port=0, max_workers=options.max_workers, any_file=True, models_dir=options.models_dir)
    return running_stack(dev_options, stop, _print_status)


def _frames(client: ApiClient, scenario_uuid: str, stop: Stop) -> Iterator[msgspec.Raw]:
    """Yield all frames in order, as they arrive, until the list is complete or a stop is requested."""
    cursor: str | None = None
    progress = _ProgressLine()
    while not stop.requested:
        page = _retry_unavailable(partial(client.get_predictions, scenario_uuid, cursor), stop)
        if page is None:
            return
        yield from page.items
        if page.complete:
            progress.end()
            return
        cursor = page.next
        if not page.items:
            scenario = _retry_unavailable(partial(client.get_scenario, scenario_uuid), stop)
            if scenario is not None:
                progress.show(scenario)
            stop.wait(POLL_INTERVAL_S)


def _retry_unavailable(request: Callable[[], T], stop: Stop) -> T | None:
    """Return the api's response, or None at a stop. An outage is waited for and printed once.

    Raises Unavailable if the outage is longer than MAX_OUTAGE_S.
    """
    since_s: float | None = None
    while not stop.requested:
        try:
            return request()
        except Unavailable as error:
            if since_s is None:
                since_s = time.monotonic()
                _print_status(f"trying again for up to {MAX_OUTAGE_S:.0f} s: {error.message}")
            if time.monotonic() - since_s > MAX_OUTAGE_S:
                raise
            stop.wait(POLL_INTERVAL_S)
    return None


class _ProgressLine:
    """The progress on standard error: one line rewritten on a terminal, otherwise a line per change."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, scenario: ScenarioState) -> None:
        total = f" of {scenario.frames_expected}" if scenario.frames_expected else ""
        waiting = f", waiting for {scenario.waiting_for}" if scenario.waiting_for else ""
        line = safe_line(f"{scenario.state}: {scenario.frames_stored}{total} frames{waiting}")
        if line == self._last:
            return
        self._last = line
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
        else:
            _print_status(line)

    def end(self) -> None:
        if self._last and sys.stderr.isatty():
            sys.stderr.write("\n")


def _request_shutdown(client: ApiClient, scenario_uuid: str, exit_code: int) -> int:
    client.shut_down(scenario_uuid)
    _print_status(f"scenario {scenario_uuid}: shutdown requested")
    return exit_code


def _report_outcome(scenario: ScenarioState, client: ApiClient) -> int:
    """Return the exit code of an ended scenario. Raises the error of a failed one."""
    if scenario.outcome == "completed":
        _print_status(f"completed: {scenario.frames_stored} frames")
        return 0
    if scenario.error is not None:
        error = build_error_from_code(
            f"Scenario {scenario.scenario_uuid} failed: {scenario.error.message}", scenario.error.code
        )
        if isinstance(error, InternalError) and (detail := client.last_detail(scenario.scenario_uuid)):
            _print_status(detail)  # its history is lost when the servers of `vidflow run` end
        raise error
    _print_status(f"scenario {scenario.scenario_uuid} ended {scenario.outcome}")
    return 1


def _print_status(line: str) -> None:
    sys.stderr.write(safe_line(line) + "\n")
    sys.stderr.flush()
