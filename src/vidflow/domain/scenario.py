"""The lifecycle of a scenario: its states, the table of its transitions, and what an event makes of a scenario. Nothing else.

Two rules stand on top. A state moves only along TRANSITIONS. An event that carries an epoch decides nothing about a scenario
of another epoch: what is older than the table's epoch is late, and late changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import msgspec

from vidflow.domain.errors import ErrorInfo, IllegalTransition

DEFAULT_POOL: Final = "default"
"""The pool of runners that serves a scenario whose client names none."""


class State(StrEnum):
    """Where a scenario stands, in the brief's names. `inactive` is for ever."""

    INIT_STARTUP = "init_startup"
    IN_STARTUP_PROCESSING = "in_startup_processing"
    ACTIVE = "active"
    INIT_SHUTDOWN = "init_shutdown"
    IN_SHUTDOWN_PROCESSING = "in_shutdown_processing"
    INACTIVE = "inactive"


DEPLOYED: Final = frozenset({State.IN_STARTUP_PROCESSING, State.ACTIVE})
"""The states in which a runner is meant to work on the scenario."""

SHUTTING_DOWN: Final = frozenset({State.INIT_SHUTDOWN, State.IN_SHUTDOWN_PROCESSING})
"""The states of a scenario whose outcome is decided, and of which something may still come."""


class Outcome(StrEnum):
    """How a scenario ended; unknown until init_shutdown."""

    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"


class Kind(StrEnum):
    """The kinds of event that the lifecycle knows."""

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
    """The message that goes with a step, in its transaction."""

    START = "start"
    SHUTDOWN = "shutdown"
    DEPLOY = "deploy"
    STOP = "stop"


class Step(msgspec.Struct, frozen=True):
    """One row of the table: where the step leads and what goes with it."""

    to: State
    when: str
    sends: Send | None = None
    outcome: Outcome | None = None


_TABLE: dict[tuple[State, Kind], Step] = {
    (State.INIT_STARTUP, Kind.ASSIGNED): Step(
        State.IN_STARTUP_PROCESSING, "due, and a runner has a free slot", Send.DEPLOY
    ),
    (State.IN_STARTUP_PROCESSING, Kind.FIRST_FRAME): Step(State.ACTIVE, "a frame of this deployment is done"),
    (State.INIT_SHUTDOWN, Kind.TAKEN): Step(State.IN_SHUTDOWN_PROCESSING, "the orchestrator takes it", Send.STOP),
    (State.IN_SHUTDOWN_PROCESSING, Kind.DRAINED): Step(State.INACTIVE, "drained: nothing more will be stored"),
}
for _state in (State.IN_STARTUP_PROCESSING, State.ACTIVE):
    _TABLE |= {
        (_state, Kind.RETURNED): Step(
            State.INIT_STARTUP, "not taken, stopped, refused, handed over or cut off: nothing failed"
        ),
        (_state, Kind.LOST): Step(State.INIT_STARTUP, "lost, attempts left"),
        (_state, Kind.SKIPPED): Step(
            State.INIT_STARTUP, "lost, attempts used up at one frame, which is skipped on request"
        ),
        (_state, Kind.FAILED): Step(
            State.INIT_SHUTDOWN, "attempts used up, or an error that no retry mends", None, Outcome.FAILED
        ),
        (_state, Kind.COMPLETED): Step(State.INIT_SHUTDOWN, "whole: all frames are stored", None, Outcome.COMPLETED),
    }
for _state in (State.INIT_STARTUP, State.IN_STARTUP_PROCESSING, State.ACTIVE):
    _TABLE[_state, Kind.SHUTDOWN_REQUESTED] = Step(
        State.INIT_SHUTDOWN, "shutdown requested", Send.SHUTDOWN, Outcome.STOPPED
    )

TRANSITIONS: Final[Mapping[tuple[State, Kind], Step]] = MappingProxyType(_TABLE)
"""Every step that there is. What is not in it is illegal."""

SHUTDOWN_NOOP_STATES: Final = frozenset({State.INIT_SHUTDOWN, State.IN_SHUTDOWN_PROCESSING, State.INACTIVE})
"""Where a request for a shutdown finds one under way or done: no error, nothing to do."""


class Skip(msgspec.Struct, frozen=True):
    """Frames that are passed over since they felled every attempt: how many kept frames behind which stored pts.

    `after_pts` is None where no frame was stored before them.
    """

    after_pts: int | None
    frames: int


class Scenario(msgspec.Struct, frozen=True):
    """A scenario as the lifecycle sees it.

    `attempt` counts the losses since a frame was last stored; `returns` the ways back in a row that do not count.
    `resume_frame` is where the deployment resumed, and after it where the scenario was when it came back. `runner` and
    `epoch` stay those of the last deployment; epoch 0 was never deployed. Only runners of `pool` may work on it.
    """

    scenario_uuid: str
    state: State = State.INIT_STARTUP
    outcome: Outcome | None = None
    error: ErrorInfo | None = None
    epoch: int = 0
    attempt: int = 0
    returns: int = 0
    runner: str | None = None
    resume_frame: int = 0
    skips: tuple[Skip, ...] = ()
    skips_poison: bool = False
    pool: str = DEFAULT_POOL


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a scenario.

    `epoch` is that of the deployment that it speaks of; None (a client's request) speaks of any. The other values are the
    event's own: `runner` and `new_epoch` of an assignment, `resume_frame` and `attempt` as they are after it, `delay_s` until
    the next one, `error` of a failure, `skip` of a skip. `reason` and `detail` go to the history.
    """

    kind: Kind
    reason: str
    epoch: int | None = None
    detail: str | None = None
    runner: str | None = None
    new_epoch: int | None = None
    resume_frame: int | None = None
    attempt: int | None = None
    returns: int | None = None
    delay_s: float = 0.0
    error: ErrorInfo | None = None
    skip: Skip | None = None


class Decision(msgspec.Struct, frozen=True):
    """What follows from an event: the scenario as it is then, and what goes with it. `after` is None where nothing follows."""

    before: Scenario
    event: Event
    after: Scenario | None = None
    send: Send | None = None
    delay_s: float = 0.0
    ignored_reason: str | None = None


def decide(scenario: Scenario, event: Event) -> Decision:
    """What `event` makes of `scenario`: its next state and the message that goes with it.

    Raises IllegalTransition where the lifecycle has no such step; an event of another epoch decides nothing, and neither
    does a second request for a shutdown.
    """
    if event.epoch is not None and event.epoch != scenario.epoch:
        return Decision(scenario, event, ignored_reason="another epoch")
    if event.kind is Kind.SHUTDOWN_REQUESTED and scenario.state in SHUTDOWN_NOOP_STATES:
        return Decision(scenario, event, ignored_reason="shutting down already")
    step = TRANSITIONS.get((scenario.state, event.kind))
    if step is None:
        raise IllegalTransition(
            f"scenario {scenario.scenario_uuid} is {scenario.state}, where {event.kind} has no meaning"
        )
    send = step.sends
    if send is Send.STOP and scenario.epoch == 0:
        send = None  # never deployed: no runner may have it
    return Decision(scenario, event, _apply(scenario, step, event), send, event.delay_s)


def _apply(scenario: Scenario, step: Step, event: Event) -> Scenario:
    given = {
        "epoch": event.new_epoch,
        "runner": event.runner,
        "resume_frame": event.resume_frame,
        "attempt": event.attempt,
        "returns": event.returns,
        "outcome": step.outcome,
        "error": event.error,
        "skips": None if event.skip is None else add_skip(scenario.skips, event.skip),
    }
    return msgspec.structs.replace(
        scenario, state=step.to, **{name: value for name, value in given.items() if value is not None}
    )


def next_epoch(epoch: int, database_ms: int) -> int:
    """The epoch of a new deployment: above the last one and not below the database clock's milliseconds.

    The clock makes it unique across a restore: a database that went back to an earlier moment knows a lower `epoch`, but
    its clock has gone on.
    """
    return max(epoch + 1, database_ms)


def add_skip(skips: tuple[Skip, ...], skip: Skip) -> tuple[Skip, ...]:
    """The skips with one more: frames behind the same pts are added up."""
    if skips and skips[-1].after_pts == skip.after_pts:
        return (*skips[:-1], Skip(skip.after_pts, skips[-1].frames + skip.frames))
    return (*skips, skip)


MAX_SKIPS: Final = 1000
"""A deploy carries all skips, and must fit into one message."""


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often and how soon work is given again."""

    max_attempts: int = 5
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    requeue_backoff_s: float = 1.0
    max_requeue_backoff_s: float = 10.0


def is_due(due_in_s: float) -> bool:
    """Whether what becomes due in `due_in_s` seconds, by the database's clock, may be given to a runner.

    No pause is longer than the longest backoff: more is left only where the clock has gone back since.
    """
    return not 0 < due_in_s <= RetryPolicy().max_backoff_s


class Loss(msgspec.Struct, frozen=True):
    """How a deployment was lost: where the scenario's rows end, and what is known of the reason.

    `at_frame` says that the worker fell while it worked on frames (not in its start, nor with its runner), so that a frame
    may be the culprit.
    """

    reason: str
    next_frame: int
    last_pts: int | None = None
    at_frame: int | None = None
    error: ErrorInfo | None = None
    detail: str | None = None


def build_loss_event(scenario: Scenario, loss: Loss, limits: RetryPolicy, jitter: float) -> Event:
    """The event that a loss amounts to: LOST while attempts are left, then SKIPPED or FAILED.

    The count starts again only where this deployment has stored a frame (next_frame passed its resume_frame): a long stream
    may be redeployed for ever, a poisonous frame may not. `jitter` in [0, 1) spreads the backoff over its upper half.
    """
    attempt = 1 if loss.next_frame > scenario.resume_frame else scenario.attempt + 1
    if attempt < limits.max_attempts:
        delay_s = _compute_backoff_s(limits.backoff_s, attempt, limits.max_backoff_s) * (0.5 + jitter / 2)
        return Event(
            kind=Kind.LOST,
            reason=loss.reason,
            epoch=scenario.epoch,
            detail=loss.detail,
            resume_frame=loss.next_frame,
            attempt=attempt,
            returns=0,
            delay_s=delay_s,
        )
    if scenario.skips_poison and loss.at_frame is not None and len(scenario.skips) < MAX_SKIPS:
        return Event(
            kind=Kind.SKIPPED, reason=loss.reason, epoch=scenario.epoch, detail=loss.detail, attempt=0, returns=0,
            skip=Skip(loss.last_pts, 1),
        )  # fmt: skip
    return Event(
        kind=Kind.FAILED, reason=loss.reason, epoch=scenario.epoch, detail=loss.detail, attempt=attempt,
        error=_build_attempts_error(attempt, loss),
    )  # fmt: skip


def _compute_backoff_s(first_s: float, times: int, most_s: float) -> float:
    """`first_s`, doubled each time but the first, to `most_s`. Ways back have no end, and a float has: hence the bound."""
    return min(first_s * 2.0 ** min(times - 1, 60), most_s)


def _build_attempts_error(attempt: int, loss: Loss) -> ErrorInfo:
    cause = loss.error.message if loss.error else loss.reason
    return ErrorInfo(
        code=loss.error.code if loss.error else "attempts_used_up",
        message=f"gave up after {attempt} attempts in a row at frame {loss.next_frame}: {cause}",
        frame_number=loss.next_frame,
    )


def build_requeue_event(scenario: Scenario, reason: str, next_frame: int, limits: RetryPolicy) -> Event:
    """The event of a way back that does not count: nothing failed, so the attempt stays; soon again, then less soon."""
    returns = 1 if next_frame > scenario.resume_frame else scenario.returns + 1
    attempt = 0 if next_frame > scenario.resume_frame else None
    delay_s = _compute_backoff_s(limits.requeue_backoff_s, returns, limits.max_requeue_backoff_s)
    return Event(
        kind=Kind.RETURNED, reason=reason, epoch=scenario.epoch, resume_frame=next_frame, attempt=attempt, returns=returns,
        delay_s=delay_s,
    )  # fmt: skip


def build_failure_event(scenario: Scenario, error: ErrorInfo, detail: str | None) -> Event:
    """The event of an error that no retry mends."""
    return Event(kind=Kind.FAILED, reason=error.code, epoch=scenario.epoch, detail=detail, error=error)
