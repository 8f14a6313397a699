"""What a leader makes of one scenario: at most one event. Not what it makes of the runners, nor where it places work.

Whatever takes a scenario away from its runner is acted on only once the inbox has caught up past the moment at which the
leader learned of it: what the worker had sent is then stored, the resume point is right, and a lag never turns finished work
into a failure. A hole is the exception, since nothing behind it is stored anyway.
"""

from __future__ import annotations

from typing import Final

import msgspec

from vidflow.domain.errors import ErrorInfo, storable
from vidflow.domain.leader import Cause, Finding, Known, RunnerView, Tick
from vidflow.domain.messages import UNCOUNTED, EndReason, Entry, Waiting
from vidflow.domain.progress import Progress, ended, has_hole, whole
from vidflow.domain.scenario import (
    DEPLOYED,
    Event,
    Kind,
    Loss,
    Scenario,
    State,
    after_fatal,
    after_loss,
    after_return,
)  # fmt: skip


class Judgement(msgspec.Struct, frozen=True):
    """What is made of one scenario: at most one event, what was found, and whether its runner is to be marked."""

    event: Event | None = None
    finding: Finding | None = None
    marks: bool = False
    deploy_again: bool = False


NOTHING: Final = Judgement()


def judge(known: Known, before: Finding | None, tick: Tick) -> Judgement:
    """What is made of one scenario, of which `before` was found, in the order: whole, error without retry, hole, lost, ways
    back, not taken."""
    state = known.scenario.state
    before = before and before.at_latest(tick.world.now_db_s)
    if state is State.INIT_SHUTDOWN:
        return Judgement(Event(kind=Kind.TAKEN, reason="taken", epoch=known.scenario.epoch))
    if state is State.IN_SHUTDOWN_PROCESSING:
        return _judge_shutdown(known, before, tick)
    if state in DEPLOYED:
        return _judge_deployed(known, before, tick)
    return NOTHING


# --- a scenario that a runner is meant to work on


def _judge_deployed(known: Known, before: Finding | None, tick: Tick) -> Judgement:
    scenario, progress = known.scenario, known.progress
    if whole(progress):
        return Judgement(Event(kind=Kind.COMPLETED, reason="whole", epoch=scenario.epoch))
    view = tick.runners[scenario.runner or ""]
    entry = _own_entry(tick, scenario)
    if known.deploy_refused is not None and entry is None:
        return Judgement(after_fatal(scenario, _refused(known.deploy_refused), None))
    finding = _find(known, view, entry, before, tick)
    settled = finding is not None and tick.is_caught_up(finding)
    if settled and entry and entry.fatal and entry.error:
        return Judgement(after_fatal(scenario, entry.error, entry.detail))
    if has_hole(progress):
        return Judgement(_lost(known, tick, "hole", at_frame=progress.next_frame))
    if finding is None:
        return Judgement(_first_frame(scenario, progress, entry))
    if not settled or finding.cause is Cause.UNLISTED:
        return Judgement(finding=finding, deploy_again=_is_again_due(known, finding, view, tick))
    return Judgement(_taken_away(known, entry, finding, tick), marks=finding.cause is Cause.NOT_TAKEN)


def _refused(error: str) -> ErrorInfo:
    return ErrorInfo(
        "deploy_refused",
        f"Kafka does not take the command that deploys this scenario ({storable(error)}); ask for fewer labels, or raise "
        "max.message.bytes of the pool's topic to 1048588, then ask for the scenario again",
    )


def _taken_away(known: Known, entry: Entry | None, finding: Finding, tick: Tick) -> Event:
    if finding.cause is Cause.LEASE_OVER:
        return _lost(known, tick, "runner lost")
    if finding.cause is Cause.LEFT:
        return _returned(known, tick, EndReason.HANDED_OVER)
    if finding.cause is Cause.NOT_TAKEN or entry is None or entry.reason is None:
        return _returned(known, tick, Cause.NOT_TAKEN)
    if entry.reason in UNCOUNTED:
        return _returned(known, tick, entry.reason)
    at_frame = known.progress.next_frame if entry.waits_for is Waiting.INFERENCE else None
    reason = "ended without being whole" if entry.reason is EndReason.FINISHED else str(entry.reason)
    return _lost(known, tick, reason, at_frame=at_frame, entry=entry)


def _lost(
    known: Known, tick: Tick, reason: str, *, at_frame: int | None = None, entry: Entry | None = None
) -> Event:  # fmt: skip
    progress = known.progress
    error, detail = (entry.error, entry.detail) if entry else (None, None)
    loss = Loss(reason, progress.next_frame, progress.last_pts, at_frame, error, detail)
    return after_loss(known.scenario, loss, tick.limits, _jitter(known.scenario))


def _returned(known: Known, tick: Tick, reason: str) -> Event:
    return after_return(known.scenario, reason, known.progress.next_frame, tick.limits)


def _first_frame(scenario: Scenario, progress: Progress, entry: Entry | None) -> Event | None:
    if scenario.state is not State.IN_STARTUP_PROCESSING:
        return None
    if max(progress.next_frame, entry.next_frame if entry else 0) <= scenario.resume_frame:
        return None
    return Event(kind=Kind.FIRST_FRAME, reason="first frame", epoch=scenario.epoch)


def _is_again_due(known: Known, finding: Finding, view: RunnerView, tick: Tick) -> bool:
    """Whether the deploy is to be given again: never while a copy of it waits unpublished."""
    is_told = tick.told_s(finding, view) >= tick.timing.deploy_again_s
    return finding.cause is Cause.UNLISTED and is_told and not known.deploy_waits


def _jitter(scenario: Scenario) -> float:
    """A number in [0, 1) from the random end of the uuid: scenarios that fall together do not come back together."""
    return int(scenario.scenario_uuid[-6:], 16) / 0x1000000


# --- a scenario in its shutdown


def _judge_shutdown(known: Known, before: Finding | None, tick: Tick) -> Judgement:
    """Drained: nothing more of the scenario can come, so it may become inactive."""
    scenario = known.scenario
    if scenario.epoch == 0:
        return _drained(scenario, "never assigned")
    if ended(known.progress):
        return _drained(scenario, "end marker stored")
    view = tick.runners[scenario.runner or ""]
    entry = _own_entry(tick, scenario)
    if entry is not None and entry.running and not tick.is_silent(view):
        return _judge_runs_on(scenario, view, before, tick)
    finding = _find(known, view, entry, before, tick)
    if finding is None or finding.cause is Cause.UNLISTED or not tick.is_caught_up(finding):
        return Judgement(finding=finding)
    return _drained(scenario, f"{finding.cause}, inbox caught up")


def _judge_runs_on(scenario: Scenario, view: RunnerView, before: Finding | None, tick: Tick) -> Judgement:
    same = before is not None and before.epoch == scenario.epoch and before.cause is Cause.RUNS_ON
    finding = before if same and before else tick.found(scenario.epoch, Cause.RUNS_ON)
    stops_s = tick.timing.stops_s
    if tick.told_s(finding, view) < stops_s:
        return Judgement(finding=finding)
    return msgspec.structs.replace(_drained(scenario, f"still running after {stops_s:.0f} s of stops"), marks=True)


def _drained(scenario: Scenario, reason: str) -> Judgement:
    return Judgement(Event(kind=Kind.DRAINED, reason=reason, epoch=scenario.epoch))


# --- what is found


def _own_entry(tick: Tick, scenario: Scenario) -> Entry | None:
    entry = tick.entry(scenario.runner, scenario.scenario_uuid)
    return entry if entry and entry.epoch == scenario.epoch else None


def _find(known: Known, view: RunnerView, entry: Entry | None, before: Finding | None, tick: Tick) -> Finding | None:
    """What is found now; known since before where it was found before."""
    cause = _cause(view, entry, tick)
    if cause is None:
        return None
    since = before if before and before.epoch == known.scenario.epoch else None
    if since and cause is Cause.UNLISTED:
        if since.cause in {Cause.ENDED, Cause.NOT_TAKEN}:
            return since  # an entry that had ended was forgotten: its epoch never runs again
        if since.cause is Cause.UNLISTED:
            return _still_unlisted(known, since, view, tick)
    if since and since.cause is cause:
        return since
    return tick.found(known.scenario.epoch, cause)


def _cause(view: RunnerView, entry: Entry | None, tick: Tick) -> Cause | None:
    if entry is not None and not entry.running:
        return Cause.ENDED
    if view.report is not None and view.report.draining and entry is None:
        return Cause.LEFT  # a runner that drains leaves with its empty report: its silence afterwards is no death
    if tick.is_silent(view):
        return Cause.LEASE_OVER
    if entry is None and view.report is not None:
        return Cause.UNLISTED
    return None


def _still_unlisted(known: Known, since: Finding, view: RunnerView, tick: Tick) -> Finding:
    """Its time begins once the deploy is published; copies given again later do not start it anew, however long they wait."""
    timing, told_s = tick.timing, tick.told_s(since, view)
    if known.deploy_waits and told_s < timing.deploy_again_s:
        return tick.found(since.epoch, Cause.UNLISTED)
    if not known.deploy_waits and told_s >= timing.deploy_again_s + timing.not_taken_s:
        return tick.found(since.epoch, Cause.NOT_TAKEN)
    return since
