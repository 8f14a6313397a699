"""A way through the states, written for a person: after each step what it changed, in the words of the glossary."""

from __future__ import annotations

from collections.abc import Iterator

from tests.explorer.search import Failure
from tests.explorer.state import RUNNER_NAMES, ScenarioRow, WorldState

from vidflow.domain.leader import RunnerView
from vidflow.domain.messages import Command, Deploy, End, Entry, Frame, Gap, Report, Result
from vidflow.domain.scenario import State as Stage


def format_trace(failure: Failure) -> Iterator[str]:
    """The steps of the way to a failure, numbered, each with what it changed."""
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
    """What there is, part by part; what is empty is left out."""
    parts: dict[str, str] = {}
    for index, row in enumerate(state.rows):
        parts[f"scenario {index}"] = _row(row)
        parts[f"results of {index} in Kafka"] = ", ".join(_result(message) for message in state.logs[index])
    parts["outbox"] = ", ".join(f"{_command(command)} for {name}" for name, command in state.outbox)
    for name, runner in zip(RUNNER_NAMES, state.runners, strict=False):
        workers = [
            f"{worker.epoch} before frame {worker.next_frame}"
            + (f", to finish: {worker.finishing}" if worker.finishing else "")
            for worker in runner.workers
            if worker
        ]
        parts[f"runner {name}"] = f"{runner.mode}{', draining' if runner.charge.draining else ''}"
        parts[f"runner {name} lists"] = _entries(runner.charge.entries)
        parts[f"workers of {name}"] = "; ".join(workers)
        parts[f"commands for {name}"] = ", ".join(map(_command, runner.commands))
    for name, view in state.leader.views:
        parts[f"the leader knows of {name}"] = _view(view)
    for index, found in enumerate(state.leader.findings):
        if found:
            text = f"{found.finding.cause} (epoch {found.finding.epoch}), {sum(found.results_left)} results to be caught up with"
            parts[f"the leader found of {index}"] = text
    if state.probes_heard_since_s is None:
        parts["Kafka"] = "away"
    if state.pending_plan:
        parts["the leader will write"] = ", ".join(event.kind for _, event in state.pending_plan.events)
    if state.delayed_copy:
        copy = state.delayed_copy.copy
        parts["a copy is kept"] = f"{_entries(copy.entries) if isinstance(copy, Report) else _command(copy)}"
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
    if scenario.state is Stage.INIT_STARTUP and not row.due:
        text += ", not due"
    if progress.end_epoch is not None:
        text += f", end of {progress.end_epoch}: {progress.end_reason}"
    if progress.hole_epoch is not None:
        text += f", hole in {progress.hole_epoch}"
    return text


def _result(message: Result) -> str:
    match message:
        case Frame():
            return f"frame {message.frame_number} of {message.epoch}"
        case End():
            return f"end of {message.epoch} ({message.reason})"
        case Gap():
            return f"gap of {message.epoch} behind {message.after_frame}"
        case _:
            return "opened"


def _command(command: Command) -> str:
    name = type(command).__name__.lower().removesuffix("work")
    if isinstance(command, Deploy):
        return f"deploy {command.epoch} from frame {command.resume.next_frame}"
    return f"{name} {getattr(command, 'epoch', '')}".strip()


def _entries(entries: tuple[Entry, ...]) -> str:
    return ", ".join(f"{one.epoch} {'running' if one.is_running else f'ended: {one.reason}'}" for one in entries)


def _view(view: RunnerView) -> str:
    text = "nothing yet" if view.report is None else _entries(view.report.entries) or "an empty list"
    if view.report is not None and view.report.draining:
        text += ", draining"
    if view.last_seen_s < 0:
        text += f", silent for {-view.last_seen_s:.0f}"
    return text + (", marked" if view.mark is not None else "")
