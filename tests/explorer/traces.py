"""Format a trace for people: each step, and below it what the step changed."""

from __future__ import annotations

from collections.abc import Iterator

from tests.explorer.search import Failure
from tests.explorer.state import RUNNER_NAMES, ScenarioRow, WorldState

from vidflow.domain.leader import RunnerView
from vidflow.domain.messages import Command, Deploy, End, Entry, Frame, Report, Result
from vidflow.domain.scenario import State


def format_trace(failure: Failure) -> Iterator[str]:
    """Yield the lines of a failure's trace: the numbered steps, each with what it changed, then the failure."""
    before = summary(failure.trace[0][1])
    for number, (label, state) in enumerate(failure.trace):
        if number:
            yield f"{number:4}  {label}"
        after = summary(state)
        yield from (
            f"          {name}: {text}" for name, text in after.items() if number == 0 or before.get(name) != text
        )
        yield from (f"          {name}: gone" for name in before if name not in after)
        before = after
    yield f"      {failure.text}"


def summary(state: WorldState) -> dict[str, str]:
    """Return a description of each part of the state. Empty parts are left out."""
    parts: dict[str, str] = {}
    for index, row in enumerate(state.rows):
        parts[f"scenario {index}"] = _row(row)
        parts[f"results of scenario {index} in Kafka"] = ", ".join(_result(message) for message in state.logs[index])
    parts["outbox"] = ", ".join(f"{_command(command)} for runner {name}" for name, command in state.outbox)
    for name, runner in zip(RUNNER_NAMES, state.runners, strict=False):
        workers = [
            f"epoch {worker.epoch} before frame {worker.next_frame}"
            + (f", {worker.missed} missed" if worker.missed else "")
            + (f", finishing: {worker.finishing}" if worker.finishing else "")
            for worker in runner.workers
            if worker
        ]
        parts[f"runner {name}"] = f"{runner.mode}{', draining' if runner.state.draining else ''}"
        parts[f"runner {name} lists"] = _entries(runner.state.entries)
        parts[f"workers of runner {name}"] = "; ".join(workers)
        parts[f"commands for runner {name}"] = ", ".join(map(_command, runner.commands))
    for name, view in state.leader.views:
        parts[f"the leader's view of runner {name}"] = _view(view)
    for index, tracked in enumerate(state.leader.findings):
        if tracked:
            text = f"{tracked.finding.cause} (epoch {tracked.finding.epoch}), {sum(tracked.results_left)} results not stored yet"
            parts[f"the leader's finding for scenario {index}"] = text
    if state.probes_received_since_s is None:
        parts["Kafka"] = "unreachable"
    if state.pending_plan:
        parts["the leader will write"] = ", ".join(event.kind for _, event in state.pending_plan.events)
    if state.delayed_copy:
        copy = state.delayed_copy.copy
        parts["copy to be delivered"] = f"{_entries(copy.entries) if isinstance(copy, Report) else _command(copy)}"
    if state.backup and state.backup.rows:
        parts["backup"] = "; ".join(_row(row) for row in state.backup.rows)
    return {name: text for name, text in parts.items() if text}


def _row(row: ScenarioRow) -> str:
    scenario, progress = row.scenario, row.progress
    text = f"{scenario.state}, epoch {scenario.epoch}, attempt {scenario.attempt}, {progress.next_frame} frames stored"
    if scenario.runner:
        text += f", runner {scenario.runner}"
    if scenario.outcome:
        text += f", {scenario.outcome}"
    if scenario.state is State.INIT_STARTUP and not row.due:
        text += ", not due"
    if progress.end_epoch is not None:
        text += f", end of epoch {progress.end_epoch}: {progress.end_reason}"
    if progress.hole_epoch is not None:
        text += f", hole in epoch {progress.hole_epoch}"
    return text


def _result(message: Result) -> str:
    match message:
        case Frame():
            return f"frame {message.frame_number} of epoch {message.epoch}{' after a gap' if message.gaps else ''}"
        case End():
            return f"end of epoch {message.epoch} ({message.reason}){' after a gap' if message.gaps else ''}"
        case _:
            return "source opened"


def _command(command: Command) -> str:
    name = type(command).__name__.lower().removesuffix("work")
    if isinstance(command, Deploy):
        return f"deploy epoch {command.epoch} from frame {command.resume.next_frame}"
    epoch = getattr(command, "epoch", None)
    return name if epoch is None else f"{name} epoch {epoch}"


def _entries(entries: tuple[Entry, ...]) -> str:
    return ", ".join(
        f"epoch {entry.epoch} {'running' if entry.is_running else f'ended: {entry.reason}'}" for entry in entries
    )


def _view(view: RunnerView) -> str:
    text = "no report" if view.report is None else _entries(view.report.entries) or "no entries"
    if view.report is not None and view.report.draining:
        text += ", draining"
    if view.last_seen_s < 0:
        text += f", silent for {-view.last_seen_s:.0f}"
    return text + (", marked" if view.mark is not None else "")
