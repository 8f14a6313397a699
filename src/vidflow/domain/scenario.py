"""The lifecycle of a scenario: states, transitions and events.

Two rules hold everywhere. A state changes only along TRANSITIONS. An event with an epoch has no effect on a scenario of another
epoch, so late events of older deployments change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import msgspec

from vidflow.domain.errors import ErrorInfo, IllegalTransition
from vidflow.domain.reason_codes import ReasonCode

DEFAULT_POOL: Final = "default"
"""The pool of a scenario whose client names none."""
DEFAULT_MODEL: Final = "yolox_nano"
"""The model of a scenario whose client names none."""


class State(StrEnum):
    """The states of a scenario. `inactive` is final."""

    INIT_STARTUP = "init_startup"
    IN_STARTUP_PROCESSING = "in_startup_processing"
    ACTIVE = "active"
    INIT_SHUTDOWN = "init_shutdown"
    IN_SHUTDOWN_PROCESSING = "in_shutdown_processing"
    INACTIVE = "inactive"


DEPLOYED: Final = frozenset({State.IN_STARTUP_PROCESSING, State.ACTIVE})
"""The states in which a runner should work on the scenario."""

SHUTTING_DOWN: Final = frozenset({State.INIT_SHUTDOWN, State.IN_SHUTDOWN_PROCESSING})
"""The states in which the outcome is decided but results may still arrive."""


class Outcome(StrEnum):
    """How a scenario ended. Set from init_shutdown on."""

    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"


class Kind(StrEnum):
    """The kinds of events."""

    ASSIGNED = "assigned"
    FIRST_FRAME = "first_frame"
    RETURNED = "returned"
    LOST = "lost"
    SKIPPED = "skipped"
    FAILED = "failed"
    COMPLETED = "completed"
    SHUTDOWN_REQUESTED = "shutdown_requested"
    TAKEN = "taken"
    DRAINED = "drained"


class Send(StrEnum):
    """The message sent with a step, in the same transaction."""

    START = "start"
    SHUTDOWN = "shutdown"
    DEPLOY = "deploy"
    STOP = "stop"


class Step(msgspec.Struct, frozen=True):
    """A row of the transition table: the next state, when the step applies, the message to send and the outcome to set."""

    to: State
    when: str
    sends: Send | None = None
    outcome: Outcome | None = None


_TABLE: dict[tuple[State, Kind], Step] = {
    (State.INIT_STARTUP, Kind.ASSIGNED): Step(
        State.IN_STARTUP_PROCESSING, "due, and a runner has a free slot", Send.DEPLOY
    ),
    (State.IN_STARTUP_PROCESSING, Kind.FIRST_FRAME): Step(State.ACTIVE, "a frame of this deployment is done"),
    (State.INIT_SHUTDOWN, Kind.TAKEN): Step(State.IN_SHUTDOWN_PROCESSING, "taken by the orchestrator", Send.STOP),
    (State.IN_SHUTDOWN_PROCESSING, Kind.DRAINED): Step(State.INACTIVE, "drained: no more results will be stored"),
}
for _state in (State.IN_STARTUP_PROCESSING, State.ACTIVE):
    _TABLE |= {
        (_state, Kind.RETURNED): Step(
            State.INIT_STARTUP, "not taken, stopped, refused, handed over or cut off, without a failure"
        ),
        (_state, Kind.LOST): Step(State.INIT_STARTUP, "lost, with attempts left"),
        (_state, Kind.SKIPPED): Step(
            State.INIT_STARTUP, "lost, with all attempts used up at one frame, which is skipped on request"
        ),
        (_state, Kind.FAILED): Step(
            State.INIT_SHUTDOWN, "all attempts used up, or a non-retryable error", None, Outcome.FAILED
        ),
        (_state, Kind.COMPLETED): Step(State.INIT_SHUTDOWN, "complete: all frames are stored", None, Outcome.COMPLETED),
    }
for _state in (State.INIT_STARTUP, State.IN_STARTUP_PROCESSING, State.ACTIVE):
    _TABLE[_state, Kind.SHUTDOWN_REQUESTED] = Step(
        State.INIT_SHUTDOWN, "shutdown requested", Send.SHUTDOWN, Outcome.STOPPED
    )

TRANSITIONS: Final[Mapping[tuple[State, Kind], Step]] = MappingProxyType(_TABLE)
"""All legal steps."""

SHUTDOWN_NOOP_STATES: Final = frozenset({State.INIT_SHUTDOWN, State.IN_SHUTDOWN_PROCESSING, State.INACTIVE})
"""The states in which a shutdown request has no effect, since a shutdown is in progress or done."""


class Skip(msgspec.Struct, frozen=True):
    """Frames to skip because every attempt failed at them: the next `frames` kept frames after the stored `after_pts`.

    `after_pts` is None if no frame was stored before them.
    """

    after_pts: int | None
    frames: int


class Scenario(msgspec.Struct, frozen=True):
    """The part of a scenario that the lifecycle depends on.

    `attempt` counts the losses since a frame was last stored. `requeues` counts consecutive redeployments that were not failures.
    `resume_frame` is the frame at which the deployment resumed; after a loss or requeue, it is the next frame at that moment.
    `runner` and `epoch` are those of the last deployment; epoch 0 means never deployed. Only runners of `pool` may work on it.
    """

    scenario_uuid: str
    state: State = State.INIT_STARTUP
    outcome: Outcome | None = None
    error: ErrorInfo | None = None
    epoch: int = 0
    attempt: int = 0
    requeues: int = 0
    runner: str | None = None
    resume_frame: int = 0
    skips: tuple[Skip, ...] = ()
    skips_poison: bool = False
    pool: str = DEFAULT_POOL


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a scenario.

    `epoch` is the deployment that the event concerns; None (a client's request) concerns any. `reason_code`, `reason` (a
    sentence) and `detail` go to the history. The other fields depend on the kind: `runner` and `new_epoch` of an assignment,
    the new values of `resume_frame`, `attempt` and `requeues`, `delay_s` before the next deployment, `error` of a failure,
    `skip` of a skip.
    """

    kind: Kind
    reason_code: ReasonCode
    reason: str
    epoch: int | None = None
    detail: str | None = None
    runner: str | None = None
    new_epoch: int | None = None
    resume_frame: int | None = None
    attempt: int | None = None
    requeues: int | None = None
    delay_s: float = 0.0
    error: ErrorInfo | None = None
    skip: Skip | None = None


class Decision(msgspec.Struct, frozen=True):
    """The effect of an event: the scenario afterwards and the message to send. `after` is None if the event is ignored."""

    before: Scenario
    event: Event
    after: Scenario | None = None
    send: Send | None = None
    delay_s: float = 0.0


def decide(scenario: Scenario, event: Event) -> Decision:
    """Return the scenario after the event and the message to send.

    An event of another epoch and a repeated shutdown request are ignored. Raises IllegalTransition if the lifecycle has no such
    step.
    """
    if event.epoch is not None and event.epoch != scenario.epoch:
        return Decision(scenario, event)
    if event.kind is Kind.SHUTDOWN_REQUESTED and scenario.state in SHUTDOWN_NOOP_STATES:
        return Decision(scenario, event)
    step = TRANSITIONS.get((scenario.state, event.kind))
    if step is None:
        raise IllegalTransition(
            f"Scenario {scenario.scenario_uuid} is {scenario.state}, which does not allow the event {event.kind}."
        )
    send = step.sends
    if send is Send.STOP and scenario.epoch == 0:
        send = None  # never deployed, so no runner has it
    return Decision(scenario, event, _apply(scenario, step, event), send, event.delay_s)


def _apply(scenario: Scenario, step: Step, event: Event) -> Scenario:
    changes = {
        "epoch": event.new_epoch,
        "runner": event.runner,
        "resume_frame": event.resume_frame,
        "attempt": event.attempt,
        "requeues": event.requeues,
        "outcome": step.outcome,
        "error": event.error,
        "skips": None if event.skip is None else add_skip(scenario.skips, event.skip),
    }
    return msgspec.structs.replace(
        scenario, state=step.to, **{name: value for name, value in changes.items() if value is not None}
    )


def next_epoch(epoch: int, database_ms: int) -> int:
    """Return the epoch of a new deployment: above the last one and at least the database clock in milliseconds.

    The clock keeps epochs unique across a restore, after which the database knows a lower `epoch` but its clock has moved on.
    """
    return max(epoch + 1, database_ms)


def add_skip(skips: tuple[Skip, ...], skip: Skip) -> tuple[Skip, ...]:
    """Return the skips plus one more. Skips after the same pts are merged."""
    if skips and skips[-1].after_pts == skip.after_pts:
        return (*skips[:-1], Skip(skip.after_pts, skips[-1].frames + skip.frames))
    return (*skips, skip)


MAX_SKIPS: Final = 1000
"""A deploy lists all skips and must fit into one message."""


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often and how soon a scenario is deployed again. Backoffs double from the first value up to the maximum."""

    max_attempts: int = 5
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    requeue_backoff_s: float = 1.0
    max_requeue_backoff_s: float = 10.0


def is_due(due_in_s: float) -> bool:
    """Return whether a scenario that becomes due in `due_in_s` seconds by the database clock may be assigned now.

    More than the longest backoff can remain only if the clock has stepped back since, so such a scenario is due.
    """
    return not 0 < due_in_s <= RetryPolicy().max_backoff_s


class Loss(msgspec.Struct, frozen=True):
    """A lost deployment: its reason and where the stored rows end.

    `at_frame` is set if the worker failed while it processed frames, so that the frame may be the cause. It is None if the
    worker failed in its start or together with its runner.
    """

    reason_code: ReasonCode
    reason: str
    next_frame: int
    last_pts: int | None = None
    at_frame: int | None = None
    error: ErrorInfo | None = None
    detail: str | None = None


def build_loss_event(scenario: Scenario, loss: Loss, policy: RetryPolicy, jitter: float) -> Event:
    """Return the event for a loss: LOST while attempts are left, then SKIPPED or FAILED.

    The count restarts only if this deployment stored a frame (next_frame is above resume_frame). A long stream may thus be
    redeployed without limit, a poisonous frame may not. `jitter` in [0, 1) spreads the backoff over its upper half. The first
    loss of a runner has no backoff: it took the runner's lease to notice, and the scenario is probably not the cause.
    """
    attempt = 1 if loss.next_frame > scenario.resume_frame else scenario.attempt + 1
    if attempt < policy.max_attempts:
        delay_s = _compute_backoff_s(policy.backoff_s, attempt, policy.max_backoff_s) * (0.5 + jitter / 2)
        if attempt == 1 and loss.reason_code is ReasonCode.RUNNER_LOST:
            delay_s = 0.0
        return Event(
            kind=Kind.LOST,
            reason_code=loss.reason_code,
            reason=loss.reason,
            epoch=scenario.epoch,
            detail=loss.detail,
            resume_frame=loss.next_frame,
            attempt=attempt,
            requeues=0,
            delay_s=delay_s,
        )
    if scenario.skips_poison and loss.at_frame is not None and len(scenario.skips) < MAX_SKIPS:
        return Event(
            kind=Kind.SKIPPED, reason_code=loss.reason_code, reason=loss.reason, epoch=scenario.epoch, detail=loss.detail,
            attempt=0, requeues=0, skip=Skip(loss.last_pts, 1),
        )  # fmt: skip
    return Event(
        kind=Kind.FAILED, reason_code=loss.reason_code, reason=loss.reason, epoch=scenario.epoch, detail=loss.detail,
        attempt=attempt, error=_build_attempts_error(attempt, loss),
    )  # fmt: skip


def _compute_backoff_s(first_s: float, attempt: int, max_s: float) -> float:
    """Return `first_s` doubled `attempt - 1` times, at most `max_s`.

    The exponent is bounded, since requeues are not limited and a large one would overflow a float.
    """
    return min(first_s * 2.0 ** min(attempt - 1, 60), max_s)


def _build_attempts_error(attempt: int, loss: Loss) -> ErrorInfo:
    cause = loss.error.message if loss.error else loss.reason
    return ErrorInfo(
        code=loss.error.code if loss.error else "attempts_used_up",
        message=f"Gave up after {attempt} consecutive attempts at frame {loss.next_frame}: {cause}",
        frame_number=loss.next_frame,
    )


def build_requeue_event(
    scenario: Scenario, reason_code: ReasonCode, reason: str, next_frame: int, policy: RetryPolicy
) -> Event:
    """Return the event for a requeue, which is not a failure and counts no attempt. Consecutive requeues wait longer."""
    requeues = 1 if next_frame > scenario.resume_frame else scenario.requeues + 1
    attempt = 0 if next_frame > scenario.resume_frame else None
    delay_s = _compute_backoff_s(policy.requeue_backoff_s, requeues, policy.max_requeue_backoff_s)
    return Event(
        kind=Kind.RETURNED, reason_code=reason_code, reason=reason, epoch=scenario.epoch, resume_frame=next_frame,
        attempt=attempt, requeues=requeues, delay_s=delay_s,
    )  # fmt: skip


def build_failure_event(
    scenario: Scenario, reason_code: ReasonCode, error: ErrorInfo, detail: str | None = None
) -> Event:
    """Return the event for a non-retryable error."""
    return Event(
        kind=Kind.FAILED, reason_code=reason_code, reason=error.code, epoch=scenario.epoch, detail=detail, error=error
    )


def build_shutdown_request() -> Event:
    """Return the event for a client's shutdown request, which concerns any deployment."""
    return Event(kind=Kind.SHUTDOWN_REQUESTED, reason_code=ReasonCode.SHUTDOWN_REQUESTED, reason="shutdown requested")
