"""The command `vidflow run`: create a scenario, follow it, print its results, and report its outcome."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Final, TypeVar

import msgspec

from vidflow.commands.run.display import Display, open_display
from vidflow.commands.run.labelled_model import labelled_model
from vidflow.commands.run.output import WRITERS, Writer
from vidflow.commands.run.request import build_request, check_labels_file, check_model
from vidflow.commands.run.source import is_camera_path
from vidflow.contract import InitScenario, ScenarioResponse
from vidflow.domain.errors import InternalError, Unavailable, UserError, build_error_from_code
from vidflow.domain.scenario import Outcome
from vidflow.domain.source_access import parse_devices
from vidflow.infra.api_client import ApiClient
from vidflow.infra.embedded.child_process import StartCancelled
from vidflow.infra.process.pipes import discard_output
from vidflow.infra.process.stopping import Stop
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
    check_labels_file(options)
    with labelled_model(options.model, options.labels_file) as model:
        return _run_model(msgspec.structs.replace(options, model=model))


def _run_model(options: RunOptions) -> int:
    request = build_request(options)
    write = WRITERS[options.output]
    if not options.url:
        check_model(options)
    stop = Stop()
    stop.request_on_signals()
    with open_display(sys.stderr) as display:
        try:
            with (
                _api_url(options, request.source, stop, display) as url,
                ApiClient(url, options.token if options.url else None) as client,
            ):
                return _run(client, request, write, display, stop)
        except StartCancelled:
            if stop.error is not None:
                raise stop.error from None
            display.print("cancelled before the scenario was created")
            return EXIT_INTERRUPTED


def _run(client: ApiClient, request: InitScenario, write: Writer, display: Display, stop: Stop) -> int:
    scenario_uuid = _request_scenario(client, request)
    display.begin(f"scenario {scenario_uuid}: {request.model} on {request.source}")
    try:
        write(_frames(client, scenario_uuid, display, stop), sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output(sys.stdout)
        return _request_shutdown(client, scenario_uuid, display, EXIT_BROKEN_PIPE)
    if stop.error is not None:
        raise stop.error
    if stop.requested:
        return _request_shutdown(client, scenario_uuid, display, EXIT_INTERRUPTED)
    return _report_outcome(client.get_scenario(scenario_uuid), client, display)


def _request_scenario(client: ApiClient, request: InitScenario) -> str:
    try:
        return client.init_scenario(request).scenario_uuid
    except UserError as error:
        if client.is_local or not error.code.startswith(_FILE_ERROR_PREFIXES):
            raise
        hint = "The vidflow at --url must be able to read the file, under its media root or models folder."
        raise UserError(f"{error.message} {hint}", code=error.code) from error


def _api_url(options: RunOptions, source: str, stop: Stop, display: Display) -> AbstractContextManager[str]:
    if options.url:
        return nullcontext(options.url)
    from vidflow.commands.dev import running_stack  # noqa: PLC0415 - needs an extra that `--url` does not need

    devices = parse_devices([source]) if is_camera_path(source) else ()  # whoever types its name may open it
    dev_options = DevOptions(
        port=0, max_workers=options.max_workers, any_file=True, models_dir=options.models_dir, device=options.device,
        inference=options.inference, sources=msgspec.structs.replace(options.sources, devices=devices), sandbox=options.sandbox,
    )  # fmt: skip
    return running_stack(dev_options, stop, display.step)


def _frames(client: ApiClient, scenario_uuid: str, display: Display, stop: Stop) -> Iterator[msgspec.Raw]:
    """Yield all frames in order, as they arrive, until the list is complete or a stop is requested.

    The progress is shown only while this waits for frames, not while the caller prints them.
    """
    cursor: str | None = None
    try:
        while not stop.requested:
            page = _retry_unavailable(partial(client.get_predictions, scenario_uuid, cursor), display, stop)
            if page is None:
                return
            if page.items:
                display.hide()
                yield from page.items
            if page.complete:
                return
            cursor = page.next
            scenario = _retry_unavailable(partial(client.get_scenario, scenario_uuid), display, stop)
            if scenario is not None:
                display.update(scenario)
            if not page.items:
                stop.wait(POLL_INTERVAL_S)
    finally:
        display.hide()


def _retry_unavailable(request: Callable[[], T], display: Display, stop: Stop) -> T | None:
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
                display.print(f"trying again for up to {MAX_OUTAGE_S:.0f} s: {error.message}")
            if time.monotonic() - since_s > MAX_OUTAGE_S:
                raise
            stop.wait(POLL_INTERVAL_S)
    return None


def _request_shutdown(client: ApiClient, scenario_uuid: str, display: Display, exit_code: int) -> int:
    client.shut_down(scenario_uuid)
    display.print(f"scenario {scenario_uuid}: shutdown requested")
    return exit_code


def _report_outcome(scenario: ScenarioResponse, client: ApiClient, display: Display) -> int:
    """Return the exit code of an ended scenario. Raises the error of a failed one."""
    for warning in scenario.warnings:
        display.print(f"warning: {warning.message}")
    if scenario.outcome is Outcome.COMPLETED:
        display.print(f"completed: {scenario.frames_stored} frames")
        return 0
    if scenario.error is not None:
        error = build_error_from_code(
            f"Scenario {scenario.scenario_uuid} failed: {scenario.error.message}", scenario.error.code
        )
        if isinstance(error, InternalError) and (detail := client.last_detail(scenario.scenario_uuid)):
            display.print(detail)  # its history is lost when the servers of `vidflow run` end
        raise error
    display.print(f"scenario {scenario.scenario_uuid} ended {scenario.outcome}")
    return 1
