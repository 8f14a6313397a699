"""The lifecycle: every pair of a state and an event, the effects of each step, losses and requeues."""

from __future__ import annotations

import msgspec
import pytest

from vidflow.domain.errors import ErrorInfo, IllegalTransition
from vidflow.domain.reason_codes import ReasonCode
from vidflow.domain.scenario import (
    MAX_SKIPS,
    TRANSITIONS,
    Event,
    Kind,
    Loss,
    Outcome,
    RetryPolicy,
    Scenario,
    Skip,
    State,
    add_skip,
    build_failure_event,
    build_loss_event,
    build_requeue_event,
    decide,
    is_due,
    next_epoch,
)

UUID = "01930000-0000-7000-8000-000000000001"
ERROR = ErrorInfo("source_changed", "it is another file now")
POLICY = RetryPolicy()

# The lifecycle, written out independently of TRANSITIONS.
LEGAL: dict[tuple[str, str], tuple[str, str | None, str | None]] = {
    ("init_startup", "assigned"): ("in_startup_processing", "deploy", None),
    ("init_startup", "shutdown_requested"): ("init_shutdown", "shutdown", "stopped"),
    ("in_startup_processing", "first_frame"): ("active", None, None),
    ("in_startup_processing", "returned"): ("init_startup", None, None),
    ("in_startup_processing", "lost"): ("init_startup", None, None),
    ("in_startup_processing", "skipped"): ("init_startup", None, None),
    ("in_startup_processing", "failed"): ("init_shutdown", None, "failed"),
    ("in_startup_processing", "completed"): ("init_shutdown", None, "completed"),
    ("in_startup_processing", "shutdown_requested"): ("init_shutdown", "shutdown", "stopped"),
    ("active", "returned"): ("init_startup", None, None),
    ("active", "lost"): ("init_startup", None, None),
    ("active", "skipped"): ("init_startup", None, None),
    ("active", "failed"): ("init_shutdown", None, "failed"),
    ("active", "completed"): ("init_shutdown", None, "completed"),
    ("active", "shutdown_requested"): ("init_shutdown", "shutdown", "stopped"),
    ("init_shutdown", "taken"): ("in_shutdown_processing", "stop", None),
    ("in_shutdown_processing", "drained"): ("inactive", None, None),
}
PAIRS = [(state, kind) for state in State for kind in Kind]
DECIDED = {State.INIT_SHUTDOWN, State.IN_SHUTDOWN_PROCESSING, State.INACTIVE}


def scenario(
    state: State = State.ACTIVE, *, attempt: int = 0, requeues: int = 0, skips_poison: bool = False
) -> Scenario:
    outcome = Outcome.STOPPED if state in DECIDED else None
    return Scenario(
        UUID, state, outcome, None, epoch=5, attempt=attempt, requeues=requeues, runner="r1", resume_frame=10,
        skips_poison=skips_poison,
    )  # fmt: skip


def event(kind: Kind, epoch: int | None = 5) -> Event:
    return Event(kind=kind, reason_code=ReasonCode.ASSIGNED, reason="because", epoch=epoch)


@pytest.mark.parametrize(("state", "kind"), PAIRS)
def test_exactly_the_steps_of_the_lifecycle_are_legal(state: State, kind: Kind) -> None:
    before = scenario(state)
    if (state, kind) in LEGAL:
        decision = decide(before, event(kind))
        to, sends, outcome = LEGAL[state, kind]
        assert decision.after is not None
        assert (decision.after.state, decision.send) == (to, sends)
        assert decision.after.outcome == (outcome or before.outcome)
    elif kind is Kind.SHUTDOWN_REQUESTED:
        decision = decide(before, event(kind))
        assert (decision.after, decision.send) == (None, None)
    else:
        with pytest.raises(IllegalTransition, match=f"{UUID} is {state}"):
            decide(before, event(kind))


def test_the_table_has_no_other_steps() -> None:
    assert {(state.value, kind.value) for state, kind in TRANSITIONS} == set(LEGAL)


def test_inactive_is_final() -> None:
    assert not [kind for state, kind in TRANSITIONS if state is State.INACTIVE]


@pytest.mark.parametrize(("state", "kind"), PAIRS)
@pytest.mark.parametrize("epoch", [0, 4, 6])
def test_an_event_of_another_epoch_has_no_effect_in_any_state(state: State, kind: Kind, epoch: int) -> None:
    decision = decide(scenario(state), event(kind, epoch))
    assert (decision.after, decision.send) == (None, None)


@pytest.mark.parametrize("state", [State.INIT_STARTUP, State.IN_STARTUP_PROCESSING, State.ACTIVE])
def test_a_shutdown_request_of_a_client_applies_to_any_epoch(state: State) -> None:
    after = decide(scenario(state), event(Kind.SHUTDOWN_REQUESTED, epoch=None)).after
    assert after is not None
    assert (after.state, after.outcome) == (State.INIT_SHUTDOWN, Outcome.STOPPED)


def test_an_assignment_sets_the_epoch_the_runner_and_the_resume_frame() -> None:
    assigned = msgspec.structs.replace(event(Kind.ASSIGNED), runner="r2", new_epoch=6, resume_frame=12)
    after = decide(scenario(State.INIT_STARTUP, attempt=2), assigned).after
    assert after is not None
    assert (after.epoch, after.runner, after.resume_frame, after.attempt) == (6, "r2", 12, 2)


def test_a_requeue_keeps_the_runner_and_the_epoch_of_the_last_deployment() -> None:
    after = decide(scenario(), event(Kind.RETURNED)).after
    assert after is not None
    assert (after.runner, after.epoch, after.resume_frame) == ("r1", 5, 10)


def test_no_stop_is_sent_for_a_scenario_that_was_never_deployed() -> None:
    decision = decide(Scenario(UUID, State.INIT_SHUTDOWN, Outcome.STOPPED), event(Kind.TAKEN, epoch=0))
    assert decision.send is None
    assert decision.after is not None
    assert decision.after.state is State.IN_SHUTDOWN_PROCESSING


def test_a_failure_sets_the_error() -> None:
    after = decide(
        scenario(), build_failure_event(scenario(), ReasonCode.NON_RETRYABLE_ERROR, ERROR, "last words")
    ).after
    assert after is not None
    assert (after.outcome, after.error) == (Outcome.FAILED, ERROR)


def test_a_skip_is_added_to_the_scenario() -> None:
    skipped = msgspec.structs.replace(event(Kind.SKIPPED), skip=Skip(90, 1))
    after = decide(scenario(), skipped).after
    assert after is not None
    assert after.skips == (Skip(90, 1),)


# --- epochs


def test_an_epoch_is_the_database_clock_in_milliseconds() -> None:
    assert next_epoch(5, 1_700_000_000_000) == 1_700_000_000_000


def test_an_epoch_increases_even_if_the_clock_stepped_back() -> None:
    assert next_epoch(1_700_000_000_000, 1_600_000_000_000) == 1_700_000_000_001


def test_an_epoch_increases_within_one_millisecond() -> None:
    assert next_epoch(1_700_000_000_000, 1_700_000_000_000) == 1_700_000_000_001


# --- losses


def loss(next_frame: int = 10, *, at_frame: bool = False, error: ErrorInfo | None = None) -> Loss:
    at = next_frame if at_frame else None
    return Loss(ReasonCode.WORKER_CRASHED, "crashed", next_frame, last_pts=90, at_frame=at, error=error)


@pytest.mark.parametrize(
    ("attempt", "kind", "counted"),
    [(0, Kind.LOST, 1), (3, Kind.LOST, 4), (4, Kind.FAILED, 5), (7, Kind.FAILED, 8)],
)
def test_the_last_attempt_fails(attempt: int, kind: Kind, counted: int) -> None:
    result = build_loss_event(scenario(attempt=attempt), loss(), POLICY, 0.0)
    assert (result.kind, result.attempt, result.epoch) == (kind, counted, 5)
    assert result.reason_code is ReasonCode.WORKER_CRASHED


def test_a_frame_stored_since_the_resume_restarts_the_count_of_attempts() -> None:
    result = build_loss_event(scenario(attempt=4), loss(next_frame=11), POLICY, 0.0)
    assert (result.kind, result.attempt) == (Kind.LOST, 1)


def test_a_loss_and_a_requeue_set_the_resume_frame_to_the_end_of_the_rows() -> None:
    assert build_loss_event(scenario(), loss(next_frame=12), POLICY, 0.0).resume_frame == 12
    assert build_requeue_event(scenario(), ReasonCode.RUNNER_REFUSED, "refused", 12, POLICY).resume_frame == 12


def test_a_loss_resets_the_count_of_requeues() -> None:
    assert build_loss_event(scenario(requeues=7), loss(), POLICY, 0.0).requeues == 0


@pytest.mark.parametrize(("attempt", "delay_s"), [(0, 1.0), (1, 2.0), (2, 4.0), (3, 8.0), (8, 60.0), (5000, 60.0)])
def test_the_backoff_doubles_up_to_a_minute_and_jitter_at_most_halves_it(attempt: int, delay_s: float) -> None:
    many = RetryPolicy(max_attempts=10_000)
    assert build_loss_event(scenario(attempt=attempt), loss(), many, 1.0).delay_s == delay_s
    assert build_loss_event(scenario(attempt=attempt), loss(), many, 0.0).delay_s == delay_s / 2


def test_the_first_loss_of_a_runner_has_no_backoff() -> None:
    runner_lost = Loss(ReasonCode.RUNNER_LOST, "runner lost", 10)
    assert build_loss_event(scenario(attempt=0), runner_lost, POLICY, 1.0).delay_s == 0.0
    assert build_loss_event(scenario(attempt=1), runner_lost, POLICY, 1.0).delay_s == 2.0


def test_a_frame_that_used_up_all_attempts_is_skipped_on_request() -> None:
    result = build_loss_event(scenario(attempt=4, skips_poison=True), loss(at_frame=True), POLICY, 0.0)
    assert (result.kind, result.skip, result.attempt, result.requeues) == (Kind.SKIPPED, Skip(90, 1), 0, 0)
    assert result.reason_code is ReasonCode.WORKER_CRASHED


def test_a_scenario_with_the_maximum_number_of_skips_fails() -> None:
    skips = tuple(Skip(number, 1) for number in range(MAX_SKIPS))
    poisoned = msgspec.structs.replace(scenario(attempt=4, skips_poison=True), skips=skips)
    assert build_loss_event(poisoned, loss(at_frame=True), POLICY, 0.0).kind is Kind.FAILED
    fewer = msgspec.structs.replace(poisoned, skips=skips[1:])
    assert build_loss_event(fewer, loss(at_frame=True), POLICY, 0.0).kind is Kind.SKIPPED


def test_a_loss_that_no_frame_caused_fails_even_if_skips_are_requested() -> None:
    assert build_loss_event(scenario(attempt=4, skips_poison=True), loss(), POLICY, 0.0).kind is Kind.FAILED


def test_a_failure_names_the_frame_and_the_cause() -> None:
    error = build_loss_event(scenario(attempt=4), loss(at_frame=True), POLICY, 0.0).error
    assert error == ErrorInfo(
        "attempts_used_up", "Gave up after 5 consecutive attempts at frame 10: crashed", frame_number=10
    )


def test_a_failure_keeps_the_code_of_the_last_error() -> None:
    error = build_loss_event(
        scenario(attempt=4), loss(error=ErrorInfo("extra_missing", "install it")), POLICY, 0.0
    ).error
    assert error is not None
    assert (error.code, "install it" in error.message) == ("extra_missing", True)


# --- requeues


def test_a_requeue_counts_no_attempt() -> None:
    result = build_requeue_event(scenario(attempt=3), ReasonCode.RUNNER_REFUSED, "refused", 10, POLICY)
    assert (result.kind, result.attempt, result.requeues) == (Kind.RETURNED, None, 1)
    returned = decide(scenario(attempt=3), result).after
    assert returned is not None
    assert returned.attempt == 3


def test_a_requeue_after_a_stored_frame_restarts_both_counts() -> None:
    result = build_requeue_event(scenario(attempt=3, requeues=6), ReasonCode.HANDED_OVER, "handed_over", 11, POLICY)
    assert (result.attempt, result.requeues) == (0, 1)


@pytest.mark.parametrize(
    ("requeues", "delay_s"), [(0, 1.0), (1, 2.0), (2, 4.0), (3, 8.0), (4, 10.0), (50, 10.0), (100_000, 10.0)]
)
def test_consecutive_requeues_back_off_up_to_ten_seconds(requeues: int, delay_s: float) -> None:
    assert (
        build_requeue_event(scenario(requeues=requeues), ReasonCode.RUNNER_REFUSED, "refused", 10, POLICY).delay_s
        == delay_s
    )


# --- skips


def test_skips_after_the_same_frame_are_merged() -> None:
    assert add_skip((Skip(None, 1),), Skip(None, 1)) == (Skip(None, 2),)


def test_skips_after_different_frames_are_separate() -> None:
    assert add_skip((Skip(None, 1),), Skip(40, 1)) == (Skip(None, 1), Skip(40, 1))


def test_a_scenario_is_due_after_its_backoff() -> None:
    assert [is_due(due_in_s) for due_in_s in (60.0, 0.1, 0.0, -5.0)] == [False, False, True, True]


def test_a_scenario_due_later_than_the_longest_backoff_is_due_since_the_clock_stepped_back() -> None:
    assert is_due(3600.0)
