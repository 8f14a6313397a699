"""What a leader makes of one scenario: at most one event. Not what it makes of the runners, nor where it places work.

Whatever takes a scenario away from its runner is acted on only once the inbox has caught up past the moment at which the
leader learned of it: what the worker had sent is then stored, the resume point is right, and a lag never turns finished work
into a failure. A hole is the exception, since nothing behind it is stored anyway.
"""

from __future__ import annotations

from typing import Final

import msgspec

from vidflow.domain.errors import ErrorInfo, sanitize_text
from vidflow.domain.leader import Cause, Finding, RunnerView, ScenarioView, TickContext
from vidflow.domain.messages import NON_FAILURE_REASONS, EndReason, Entry, WorkerWait
from vidflow.domain.progress import Progress, has_end_marker, has_hole, is_complete
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
    """What is made of one scenario: at most one event, what was found, and whether its runner is to be marked."""

    event: Event | None = None
    finding: Finding | None = None
    marks_runner: bool = False
    resend_deploy: bool = False


NO_CHANGE: Final = Assessment()


def assess_scenario(known: ScenarioView, previous: Finding | None, tick: TickContext) -> Assessment:
    """What is made of one scenario, of which `previous` was found, in the order: whole, error without retry, hole, lost, ways
    back, not taken."""
    state = known.scenario.state
    previous = previous and previous.clamp_to(tick.snapshot.now_db_s)
    if state is State.INIT_SHUTDOWN:
        return Assessment(Event(kind=Kind.TAKEN, reason="taken", epoch=known.scenario.epoch))
    if state is State.IN_SHUTDOWN_PROCESSING:
        return _assess_shutdown(known, previous, tick)
    if state in DEPLOYED:
        return _assess_deployed(known, previous, tick)
    return NO_CHANGE


# --- a scenario that a runner is meant to work on


def _assess_deployed(known: ScenarioView, before: Finding | None, tick: TickContext) -> Assessment:
    scenario, progress = known.scenario, known.progress
    if is_complete(progress):
        return Assessment(Event(kind=Kind.COMPLETED, reason="whole", epoch=scenario.epoch))
    view = tick.runners[scenario.runner or ""]
    entry = _own_entry(tick, scenario)
    if known.deploy_refused is not None and entry is None:
        return Assessment(build_failure_event(scenario, _build_refusal_error(known.deploy_refused), None))
    finding = _update_finding(known, view, entry, before, tick)
    settled = finding is not None and tick.is_caught_up(finding)
    if settled and entry and entry.fatal and entry.error:
        return Assessment(build_failure_event(scenario, entry.error, entry.detail))
    if has_hole(progress):
        return Assessment(_declare_loss(known, tick, "hole", at_frame=progress.next_frame))
    if finding is None:
        return Assessment(_build_first_frame_event(scenario, progress, entry))
    if not settled or finding.cause is Cause.UNLISTED:
        return Assessment(finding=finding, resend_deploy=_is_resend_due(known, finding, view, tick))
    return Assessment(_choose_removal_event(known, entry, finding, tick), marks_runner=finding.cause is Cause.NOT_TAKEN)


def _build_refusal_error(error: str) -> ErrorInfo:
    return ErrorInfo(
        "deploy_refused",
        f"Kafka does not take the command that deploys this scenario ({sanitize_text(error)}); ask for fewer labels, or raise "
        "max.message.bytes of the pool's topic to 1048588, then ask for the scenario again",
    )


def _choose_removal_event(known: ScenarioView, entry: Entry | None, finding: Finding, tick: TickContext) -> Event:
    if finding.cause is Cause.LEASE_OVER:
        return _declare_loss(known, tick, "runner lost")
    if finding.cause is Cause.LEFT:
        return _declare_requeue(known, tick, EndReason.HANDED_OVER)
    if finding.cause is Cause.NOT_TAKEN or entry is None or entry.reason is None:
        return _declare_requeue(known, tick, Cause.NOT_TAKEN)
    if entry.reason in NON_FAILURE_REASONS:
        return _declare_requeue(known, tick, entry.reason)
    at_frame = known.progress.next_frame if entry.waits_for is WorkerWait.INFERENCE else None
    reason = "ended without being whole" if entry.reason is EndReason.FINISHED else str(entry.reason)
    return _declare_loss(known, tick, reason, at_frame=at_frame, entry=entry)


def _declare_loss(
    known: ScenarioView, tick: TickContext, reason: str, *, at_frame: int | None = None, entry: Entry | None = None
) -> Event:  # fmt: skip
    progress = known.progress
    error, detail = (entry.error, entry.detail) if entry else (None, None)
    loss = Loss(reason, progress.next_frame, progress.last_pts, at_frame, error, detail)
    return build_loss_event(known.scenario, loss, tick.retry_policy, _jitter(known.scenario))


def _declare_requeue(known: ScenarioView, tick: TickContext, reason: str) -> Event:
    return build_requeue_event(known.scenario, reason, known.progress.next_frame, tick.retry_policy)


def _build_first_frame_event(scenario: Scenario, progress: Progress, entry: Entry | None) -> Event | None:
    if scenario.state is not State.IN_STARTUP_PROCESSING:
        return None
    if max(progress.next_frame, entry.next_frame if entry else 0) <= scenario.resume_frame:
        return None
    return Event(kind=Kind.FIRST_FRAME, reason="first frame", epoch=scenario.epoch)


def _is_resend_due(known: ScenarioView, finding: Finding, view: RunnerView, tick: TickContext) -> bool:
    """Whether the deploy is to be given again: never while a copy of it waits unpublished."""
    is_told = tick.reported_for_s(finding, view) >= tick.timing.resend_deploy_s
    return finding.cause is Cause.UNLISTED and is_told and not known.deploy_waits


def _jitter(scenario: Scenario) -> float:
    """A number in [0, 1) from the random end of the uuid: scenarios that fall together do not come back together."""
    return int(scenario.scenario_uuid[-6:], 16) / 0x1000000


# --- a scenario in its shutdown


def _assess_shutdown(known: ScenarioView, before: Finding | None, tick: TickContext) -> Assessment:
    """Drained: nothing more of the scenario can come, so it may become inactive."""
    scenario = known.scenario
    if scenario.epoch == 0:
        return _build_drained(scenario, "never assigned")
    if has_end_marker(known.progress):
        return _build_drained(scenario, "end marker stored")
    view = tick.runners[scenario.runner or ""]
    entry = _own_entry(tick, scenario)
    if entry is not None and entry.is_running and not tick.is_silent(view):
        return _assess_still_running(scenario, view, before, tick)
    finding = _update_finding(known, view, entry, before, tick)
    if finding is None or finding.cause is Cause.UNLISTED or not tick.is_caught_up(finding):
        return Assessment(finding=finding)
    return _build_drained(scenario, f"{finding.cause}, inbox caught up")


def _assess_still_running(
    scenario: Scenario, view: RunnerView, before: Finding | None, tick: TickContext
) -> Assessment:
    same = before is not None and before.epoch == scenario.epoch and before.cause is Cause.RUNS_ON
    finding = before if same and before else tick.build_finding(scenario.epoch, Cause.RUNS_ON)
    stops_s = tick.timing.stop_timeout_s
    if tick.reported_for_s(finding, view) < stops_s:
        return Assessment(finding=finding)
    return msgspec.structs.replace(
        _build_drained(scenario, f"still running after {stops_s:.0f} s of stops"), marks_runner=True
    )


def _build_drained(scenario: Scenario, reason: str) -> Assessment:
    return Assessment(Event(kind=Kind.DRAINED, reason=reason, epoch=scenario.epoch))


# --- what is found


def _own_entry(tick: TickContext, scenario: Scenario) -> Entry | None:
    entry = tick.entry(scenario.runner, scenario.scenario_uuid)
    return entry if entry and entry.epoch == scenario.epoch else None


def _update_finding(
    known: ScenarioView, view: RunnerView, entry: Entry | None, before: Finding | None, tick: TickContext
) -> Finding | None:
    """What is found now; known since before where it was found before."""
    cause = _find_cause(view, entry, tick)
    if cause is None:
        return None
    since = before if before and before.epoch == known.scenario.epoch else None
    if since and cause is Cause.UNLISTED:
        if since.cause in {Cause.ENDED, Cause.NOT_TAKEN}:
            return since  # an entry that had ended was forgotten: its epoch never runs again
        if since.cause is Cause.UNLISTED:
            return _update_unlisted_finding(known, since, view, tick)
    if since and since.cause is cause:
        return since
    return tick.build_finding(known.scenario.epoch, cause)


def _find_cause(view: RunnerView, entry: Entry | None, tick: TickContext) -> Cause | None:
    if entry is not None and not entry.is_running:
        return Cause.ENDED
    if view.report is not None and view.report.draining and entry is None:
        return Cause.LEFT  # a runner that drains leaves with its empty report: its silence afterwards is no death
    if tick.is_silent(view):
        return Cause.LEASE_OVER
    if entry is None and view.report is not None:
        return Cause.UNLISTED
    return None


def _update_unlisted_finding(known: ScenarioView, since: Finding, view: RunnerView, tick: TickContext) -> Finding:
    """Its time begins once the deploy is published; copies given again later do not start it anew, however long they wait."""
    timing, told_s = tick.timing, tick.reported_for_s(since, view)
    if known.deploy_waits and told_s < timing.resend_deploy_s:
        return tick.build_finding(since.epoch, Cause.UNLISTED)
    if not known.deploy_waits and told_s >= timing.resend_deploy_s + timing.take_timeout_s:
        return tick.build_finding(since.epoch, Cause.NOT_TAKEN)
    return since
