"""What must hold in every state, by the numbers of the invariants, and which states are the end of all work."""

from __future__ import annotations

from tests.explorer.state import ScenarioRow, WorldConfig, WorldState
from tests.invariants.simulation_checks import SHUTDOWN_STATES, violation

from vidflow.domain.runner import is_empty
from vidflow.domain.scenario import Outcome
from vidflow.domain.scenario import State as Stage


def check_invariants(before: WorldState, state: WorldState, world: WorldConfig) -> None:
    """Raises Broken where an invariant does not hold. Looks only at what the step has changed."""
    for row, was in zip(state.rows, before.rows, strict=True):
        if row is not was:
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
    if scenario.outcome is Outcome.COMPLETED and (source.live or progress.next_frame != frames):
        raise violation(6, f"completed with {progress.next_frame} of {frames} frames")
    if progress.closed != (scenario.state is Stage.INACTIVE):
        raise violation(6, "closed and inactive are one")
    healthy = not source.poison and source.fatal is None
    if (
        healthy
        and scenario.outcome is Outcome.FAILED
        and world.attempts > world.max_faults + ("restore" in world.faults)
    ):
        raise violation(8, f"a healthy scenario failed: {scenario.error}")


def is_done(state: WorldState) -> bool:
    """Whether all is at its end: everything inactive, every list empty, and nothing under way."""
    return (
        all(row.scenario.state is Stage.INACTIVE for row in state.rows)
        and not any(state.logs)
        and not state.outbox
        and state.delayed_copy is None
        and state.pending_plan is None
        and all(
            runner.never_recovers or (is_empty(runner.charge) and not runner.commands and not any(runner.workers))
            for runner in state.runners
        )
    )


def has_stored_stream(state: WorldState, world: WorldConfig) -> bool:
    """Whether all frames that a live stream has shown are stored, or nobody wants them any more."""
    return all(
        row.scenario.state in SHUTDOWN_STATES or row.progress.next_frame == world.source.frames for row in state.rows
    )
