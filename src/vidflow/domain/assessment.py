"""The leader's assessment of a single scenario, which yields at most one event.

A scenario is taken from its runner only after the inbox has caught up past the moment at which the leader learned of the
cause. By then everything that the worker sent is stored, so the resume point is right and inbox lag never turns finished work
into a failure. A hole is the exception, since nothing after it is stored anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from vidflow.domain.errors import ErrorInfo, sanitize_text
from vidflow.domain.leader import Cause, Finding, RunnerView, ScenarioView, TickContext
from vidflow.domain.messages import NON_FAILURE_REASONS, EndReason, Entry, WorkerWait
from vidflow.domain.progress import Progress, has_end_marker, has_hole, is_complete
from vidflow.domain.reason_codes import ReasonCode
from vidflow.domain.scenario import (
    DEPLOYED,
    Event,
    Kind,
    Loss,
    Scenario,
    State,
    build_failure_event,
    build_loss_event,
    build_requeue_event,
)  # fmt: skip


class Assessment(msgspec.Struct, frozen=True):
    """The result for one scenario: an event, a finding to remember, and whether to mark its runner or resend its deploy."""

    event: Event | None = None
    finding: Finding | None = None
    marks_runner: bool = False
    resend_deploy: bool = False


NO_CHANGE: Final = Assessment()

END_CODES: Final[Mapping[EndReason, ReasonCode]] = MappingProxyType(
    {
        EndReason.STOPPED: ReasonCode.WORKER_STOPPED,
        EndReason.REFUSED: ReasonCode.RUNNER_REFUSED,
        EndReason.HANDED_OVER: ReasonCode.HANDED_OVER,
        EndReason.CUT_OFF: ReasonCode.CUT_OFF,
        EndReason.FINISHED: ReasonCode.FINISHED_INCOMPLETE,
        EndReason.ERROR: ReasonCode.WORKER_ERROR,
        EndReason.CRASHED: ReasonCode.WORKER_CRASHED,
        EndReason.HUNG: ReasonCode.WORKER_HUNG,
        EndReason.MEMORY: ReasonCode.WORKER_OUT_OF_MEMORY,
    }
)
"""The code of a deployed scenario whose worker ended before all frames were stored."""
DRAIN_CODES: Final[Mapping[Cause, ReasonCode]] = MappingProxyType(
    {
        Cause.ENDED: ReasonCode.WORKER_ENDED,
        Cause.LEASE_OVER: ReasonCode.RUNNER_LOST,
        Cause.LEFT: ReasonCode.HANDED_OVER,
        Cause.NOT_TAKEN: ReasonCode.DEPLOY_NOT_TAKEN,
    }
)
"""The code of a shutdown that is complete because the runner is done with the scenario."""


def assess_scenario(scenario_view: ScenarioView, previous: Finding | None, tick: TickContext) -> Assessment:
    """Assess one scenario. `previous` is its finding of the last tick.

    The first match of a deployed scenario counts: complete, deploy refused by Kafka, non-retryable error, hole, loss, requeue,
    not taken.
    """
    state = scenario_view.scenario.state
    previous = previous and previous.clamp_to(tick.snapshot.now_db_s)
    if state is State.INIT_SHUTDOWN:
        return Assessment(_build_event(Kind.TAKEN, ReasonCode.SHUTDOWN_STARTED, "taken", scenario_view.scenario))
    if state is State.IN_SHUTDOWN_PROCESSING:
        return _assess_shutdown(scenario_view, previous, tick)
    if state in DEPLOYED:
        return _assess_deployed(scenario_view, previous, tick)
    return NO_CHANGE


# --- a scenario that a runner should work on


def _assess_deployed(scenario_view: ScenarioView, previous: Finding | None, tick: TickContext) -> Assessment:
    scenario, progress = scenario_view.scenario, scenario_view.progress
    if is_complete(progress):
        return Assessment(_build_event(Kind.COMPLETED, ReasonCode.ALL_FRAMES_STORED, "whole", scenario))
    runner_view = tick.runners[scenario.runner or ""]
    entry = _own_entry(tick, scenario)
    if scenario_view.deploy_refused is not None and entry is None:
        error = _build_refusal_error(scenario_view.deploy_refused)
        return Assessment(build_failure_event(scenario, ReasonCode.DEPLOY_REFUSED, error))
    finding = _update_finding(scenario_view, runner_view, entry, previous, tick)
    settled = finding is not None and tick.is_caught_up(finding)
    if settled and entry and entry.fatal and entry.error:
        return Assessment(build_failure_event(scenario, ReasonCode.NON_RETRYABLE_ERROR, entry.error, entry.detail))
    if has_hole(progress):
        return Assessment(
            _declare_loss(scenario_view, tick, ReasonCode.RESULTS_MISSING, "hole", at_frame=progress.next_frame)
        )
    if finding is None:
        return Assessment(_build_first_frame_event(scenario, progress, entry))
    if not settled or finding.cause is Cause.UNLISTED:
        return Assessment(finding=finding, resend_deploy=_is_resend_due(scenario_view, finding, runner_view, tick))
    event = _choose_removal_event(scenario_view, entry, finding, tick)
    return Assessment(event, marks_runner=finding.cause is Cause.NOT_TAKEN)


def _build_refusal_error(error: str) -> ErrorInfo:
    return ErrorInfo(
        "deploy_refused",
        f"Kafka refused this scenario's deploy command ({sanitize_text(error)}). Request fewer labels, or raise "
        "max.message.bytes of the pool's topic to 1048588, then submit the scenario again.",
    )


def _choose_removal_event(
    scenario_view: ScenarioView, entry: Entry | None, finding: Finding, tick: TickContext
) -> Event:
    if finding.cause is Cause.LEASE_OVER:
        return _declare_loss(scenario_view, tick, ReasonCode.RUNNER_LOST, "runner lost")
    if finding.cause is Cause.LEFT:
        return _declare_requeue(scenario_view, tick, ReasonCode.HANDED_OVER, EndReason.HANDED_OVER)
    if finding.cause is Cause.NOT_TAKEN or entry is None or entry.reason is None:
        return _declare_requeue(scenario_view, tick, ReasonCode.DEPLOY_NOT_TAKEN, Cause.NOT_TAKEN)
    if entry.reason in NON_FAILURE_REASONS:
        return _declare_requeue(scenario_view, tick, END_CODES[entry.reason], entry.reason)
    at_frame = scenario_view.progress.next_frame if entry.waits_for is WorkerWait.INFERENCE else None
    reason = "ended without being whole" if entry.reason is EndReason.FINISHED else str(entry.reason)
    return _declare_loss(scenario_view, tick, END_CODES[entry.reason], reason, at_frame=at_frame, entry=entry)


def _declare_loss(
    scenario_view: ScenarioView,
    tick: TickContext,
    reason_code: ReasonCode,
    reason: str,
    *,
    at_frame: int | None = None,
    entry: Entry | None = None,
) -> Event:
    progress = scenario_view.progress
    error, detail = (entry.error, entry.detail) if entry else (None, None)
    loss = Loss(reason_code, reason, progress.next_frame, progress.last_pts, at_frame, error, detail)
    return build_loss_event(scenario_view.scenario, loss, tick.retry_policy, _jitter(scenario_view.scenario))


def _declare_requeue(scenario_view: ScenarioView, tick: TickContext, reason_code: ReasonCode, reason: str) -> Event:
    next_frame = scenario_view.progress.next_frame
    return build_requeue_event(scenario_view.scenario, reason_code, reason, next_frame, tick.retry_policy)


def _build_first_frame_event(scenario: Scenario, progress: Progress, entry: Entry | None) -> Event | None:
    if scenario.state is not State.IN_STARTUP_PROCESSING:
        return None
    if max(progress.next_frame, entry.next_frame if entry else 0) <= scenario.resume_frame:
        return None
    return _build_event(Kind.FIRST_FRAME, ReasonCode.FIRST_FRAME, "first frame", scenario)


def _is_resend_due(scenario_view: ScenarioView, finding: Finding, runner_view: RunnerView, tick: TickContext) -> bool:
    """Return whether to send the deploy again. It is never sent again while a copy waits in the outbox."""
    is_overdue = tick.reported_for_s(finding, runner_view) >= tick.timing.resend_deploy_s
    return finding.cause is Cause.UNLISTED and is_overdue and not scenario_view.deploy_waits


def _jitter(scenario: Scenario) -> float:
    """Return a number in [0, 1) from the random end of the uuid, so that scenarios lost together are not retried together."""
    return int(scenario.scenario_uuid[-6:], 16) / 0x1000000


# --- a scenario that is shutting down


def _assess_shutdown(scenario_view: ScenarioView, previous: Finding | None, tick: TickContext) -> Assessment:
    """Return DRAINED once no more results of the scenario can arrive, so that it may become inactive."""
    scenario = scenario_view.scenario
    if scenario.epoch == 0:
        return _build_drained(scenario, ReasonCode.NEVER_DEPLOYED, "never assigned")
    if has_end_marker(scenario_view.progress):
        return _build_drained(scenario, ReasonCode.END_MARKER_STORED, "end marker stored")
    runner_view = tick.runners[scenario.runner or ""]
    entry = _own_entry(tick, scenario)
    if entry is not None and entry.is_running and not tick.is_silent(runner_view):
        return _assess_still_running(scenario, runner_view, previous, tick)
    finding = _update_finding(scenario_view, runner_view, entry, previous, tick)
    if finding is None or finding.cause is Cause.UNLISTED or not tick.is_caught_up(finding):
        return Assessment(finding=finding)
    return _build_drained(scenario, DRAIN_CODES[finding.cause], f"{finding.cause}, inbox caught up")


def _assess_still_running(
    scenario: Scenario, runner_view: RunnerView, previous: Finding | None, tick: TickContext
) -> Assessment:
    is_same = previous is not None and previous.epoch == scenario.epoch and previous.cause is Cause.RUNS_ON
    finding = previous if is_same and previous else tick.build_finding(scenario.epoch, Cause.RUNS_ON)
    timeout_s = tick.timing.stop_timeout_s
    if tick.reported_for_s(finding, runner_view) < timeout_s:
        return Assessment(finding=finding)
    drained = _build_drained(scenario, ReasonCode.STOP_TIMED_OUT, f"still running after {timeout_s:.0f} s of stops")
    return msgspec.structs.replace(drained, marks_runner=True)


def _build_drained(scenario: Scenario, reason_code: ReasonCode, reason: str) -> Assessment:
    return Assessment(_build_event(Kind.DRAINED, reason_code, reason, scenario))


def _build_event(kind: Kind, reason_code: ReasonCode, reason: str, scenario: Scenario) -> Event:
    return Event(kind=kind, reason_code=reason_code, reason=reason, epoch=scenario.epoch)


# --- findings


def _own_entry(tick: TickContext, scenario: Scenario) -> Entry | None:
    entry = tick.entry(scenario.runner, scenario.scenario_uuid)
    return entry if entry and entry.epoch == scenario.epoch else None


def _update_finding(
    scenario_view: ScenarioView,
    runner_view: RunnerView,
    entry: Entry | None,
    previous: Finding | None,
    tick: TickContext,
) -> Finding | None:
    """Return the present finding. It keeps the time of the previous one if the cause is the same."""
    cause = _find_cause(runner_view, entry, tick)
    if cause is None:
        return None
    known = previous if previous and previous.epoch == scenario_view.scenario.epoch else None
    if known and cause is Cause.UNLISTED:
        if known.cause in {Cause.ENDED, Cause.NOT_TAKEN}:
            return known  # the runner forgot an ended entry, whose epoch never runs again
        if known.cause is Cause.UNLISTED:
            return _update_unlisted_finding(scenario_view, known, runner_view, tick)
    if known and known.cause is cause:
        return known
    return tick.build_finding(scenario_view.scenario.epoch, cause)


def _find_cause(runner_view: RunnerView, entry: Entry | None, tick: TickContext) -> Cause | None:
    if entry is not None and not entry.is_running:
        return Cause.ENDED
    if runner_view.report is not None and runner_view.report.draining and entry is None:
        return Cause.LEFT  # a draining runner exits after its empty report: its silence afterwards is not a failure
    if tick.is_silent(runner_view):
        return Cause.LEASE_OVER
    if entry is None and runner_view.report is not None:
        return Cause.UNLISTED
    return None


def _update_unlisted_finding(
    scenario_view: ScenarioView, finding: Finding, runner_view: RunnerView, tick: TickContext
) -> Finding:
    """Start the time of an unlisted scenario when its deploy is published. Later copies of the deploy do not restart it."""
    timing, reported_s = tick.timing, tick.reported_for_s(finding, runner_view)
    if scenario_view.deploy_waits and reported_s < timing.resend_deploy_s:
        return tick.build_finding(finding.epoch, Cause.UNLISTED)
    if not scenario_view.deploy_waits and reported_s >= timing.resend_deploy_s + timing.take_timeout_s:
        return tick.build_finding(finding.epoch, Cause.NOT_TAKEN)
    return finding
