"""The flow of `vidflow run`: ask for a scenario, follow it, print what it sees, say how it ended."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import msgspec

from vidflow.domain.errors import ParameterError, UserError
from vidflow.infra.api_client import ApiClient, ScenarioState
from vidflow.infra.stopping import Stop
from vidflow.roles.run.output import writer_of
from vidflow.roles.run.source import source_of
from vidflow.settings import DevOptions, RunOptions

LOOK_S: Final = 0.1
INTERRUPTED: Final = 130


def run(options: RunOptions) -> int:
    """Runs it to its end; the exit code: 0 for outcome completed, 130 after Ctrl-C, 1 otherwise."""
    body = _body(options)
    write = writer_of(options.output)
    stop = Stop()
    stop.on_signals()
    with _server(options, stop) as url, ApiClient(url) as client:
        scenario = client.init(body)
        _say(f"scenario {scenario.scenario_uuid}: {options.model} on {options.video}")
        write(_frames(client, scenario.scenario_uuid, stop), sys.stdout)
        if stop.requested:
            return _interrupted(client, scenario.scenario_uuid)
        return _told(client.scenario(scenario.scenario_uuid))


def _body(options: RunOptions) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    if options.score_threshold is not None:
        parameters["score_threshold"] = options.score_threshold
    if options.labels:
        parameters["labels"] = options.labels
    fps = options.fps if options.fps == "all" else _number(options.fps)
    return {"source": source_of(options.video), "model": options.model, "fps": fps, "parameters": parameters}


def _number(fps: str) -> float:
    try:
        return float(fps)
    except ValueError as error:
        raise ParameterError(f"--fps is a number or all, not {fps}") from error


def _server(options: RunOptions, stop: Stop) -> AbstractContextManager[str]:
    if options.url:
        return nullcontext(options.url)
    from vidflow.roles.dev import started  # noqa: PLC0415 - needs an extra that a client of a running vidflow has no use for

    return started(DevOptions(port=0, max_workers=options.max_workers, any_file=True), stop, _say)


def _frames(client: ApiClient, scenario_uuid: str, stop: Stop) -> Iterator[msgspec.Raw]:
    """All frames in their order, as they come, until none can follow."""
    cursor: str | None = None
    progress = _Progress()
    while not stop.requested:
        page = client.predictions(scenario_uuid, cursor)
        yield from page.items
        if page.complete:
            progress.end()
            return
        cursor = page.next
        if not page.items:
            progress.show(client.scenario(scenario_uuid))
            stop.wait(LOOK_S)


class _Progress:
    """One line on standard error that tells how far it is: rewritten on a terminal, a line a change elsewhere."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, scenario: ScenarioState) -> None:
        of = f" of {scenario.frames_expected}" if scenario.frames_expected else ""
        waits = f", waits for {scenario.waiting_for}" if scenario.waiting_for else ""
        line = f"{scenario.state}: {scenario.frames_stored}{of} frames{waits}"
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


def _interrupted(client: ApiClient, scenario_uuid: str) -> int:
    client.shutdown(scenario_uuid)
    _say(f"scenario {scenario_uuid}: shutdown requested")
    return INTERRUPTED


def _told(scenario: ScenarioState) -> int:
    if scenario.outcome == "completed":
        _say(f"completed: {scenario.frames_stored} frames")
        return 0
    if scenario.error is not None:
        raise UserError(f"scenario {scenario.scenario_uuid} failed: {scenario.error.message}", code=scenario.error.code)
    _say(f"scenario {scenario.scenario_uuid} ended {scenario.outcome}")
    return 1


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
