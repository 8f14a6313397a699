"""The invariants that must hold in every state, by their numbers, and the states in which all work is done."""

from __future__ import annotations

from tests.explorer.state import ScenarioRow, WorldConfig, WorldState
from tests.invariants.simulation_checks import SHUTDOWN_STATES, violation

from vidflow.domain.runner import is_empty
from vidflow.domain.scenario import Outcome, State


def check_invariants(before: WorldState, state: WorldState, world: WorldConfig) -> None:
    """Raise InvariantViolation if an invariant does not hold. Only the parts that the step has changed are checked."""
    for row, row_before in zip(state.rows, before.rows, strict=True):
        if row is not row_before:
            _check_row(row, world)
    if state.runners is not before.runners:
        for runner in state.runners:
            if sum(worker is not None for worker in runner.workers) > world.capacity:
                raise violation(4, "more workers than slots")
        running = [
            (index, worker.epoch)
            for runner in state.runners
            for index, worker in enumerate(runner.workers)
            if worker is not None
        ]
        if len(running) != len(set(running)):
            raise violation(4, f"two workers of one epoch: {running}")


def _check_row(row: ScenarioRow, world: WorldConfig) -> None:
    scenario, progress, source = row.scenario, row.progress, world.source
    if (scenario.outcome is not None) != (scenario.state in SHUTDOWN_STATES):
        raise violation(3, f"outcome {scenario.outcome} in {scenario.state}")
    if (scenario.error is not None) != (scenario.outcome is Outcome.FAILED):
        raise violation(3, f"error {scenario.error} with outcome {scenario.outcome}")
    if scenario.epoch != progress.epoch:
        raise violation(4, f"scenario at epoch {scenario.epoch}, progress at {progress.epoch}")
    frames = source.frames - sum(skip.frames for skip in scenario.skips)
    missing = row.covered != source.frames or (progress.next_frame != frames and not source.passes_over)
    if scenario.outcome is Outcome.COMPLETED and (source.live or missing):
        raise violation(6, f"completed with {progress.next_frame} of {frames} frames, covered up to {row.covered}")
    if progress.closed != (scenario.state is State.INACTIVE):
        raise violation(6, f"progress.closed is {progress.closed} in {scenario.state}")
    healthy = not source.poison and source.fatal is None
    if (
        healthy
        and scenario.outcome is Outcome.FAILED
        and world.attempts > world.max_faults + ("restore" in world.faults)
    ):
        raise violation(8, f"a healthy scenario failed: {scenario.error}")


def is_done(state: WorldState) -> bool:
    """Return whether all work is done: every scenario inactive, every runner's list empty, nothing on its way."""
    return (
        all(row.scenario.state is State.INACTIVE for row in state.rows)
        and not any(state.logs)
        and not state.outbox
        and state.delayed_copy is None
        and state.pending_plan is None
        and all(
            runner.never_recovers or (is_empty(runner.state) and not runner.commands and not any(runner.workers))
            for runner in state.runners
        )
    )


def has_stored_stream(state: WorldState, world: WorldConfig) -> bool:
    """Return whether all frames of each live stream are stored, or its scenario is shutting down."""
    return all(
        row.scenario.state in SHUTDOWN_STATES or row.progress.next_frame == world.source.frames for row in state.rows
    )
