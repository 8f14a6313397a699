"""The checks of the invariants, by number. Each checks one scenario and raises InvariantViolation."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from tests.invariants.simulation_state import PTS_STEP, SimulatedDatabase

from vidflow.domain.scenario import TRANSITIONS, Outcome, State

if TYPE_CHECKING:
    from tests.invariants.simulation import Simulation

SHUTDOWN_STATES: Final = frozenset({State.INIT_SHUTDOWN, State.IN_SHUTDOWN_PROCESSING, State.INACTIVE})


class InvariantViolation(AssertionError):
    """An invariant does not hold."""


def violation(number: int, text: str) -> InvariantViolation:
    return InvariantViolation(f"invariant {number}: {text}")


def check_simulation(simulation: Simulation) -> None:
    """Run all checks for all scenarios in the tables."""
    for uuid in simulation.tables.scenarios:
        check_3_transitions(simulation.tables, uuid)
        check_4_epochs(simulation.tables, uuid)
        check_5_rows(simulation, uuid)
        check_6_completed(simulation, uuid)
        check_8_losses(simulation, uuid)
    running = [
        (worker.uuid, worker.deploy.epoch)
        for runner in simulation.runners.values()
        for worker in runner.workers.values()
    ]
    if len(running) != len(set(running)):
        raise violation(4, f"two workers of one epoch: {running}")


def check_3_transitions(tables: SimulatedDatabase, uuid: str) -> None:
    """The history is a path along the transition table from init_startup to the current state, and outcome and error agree."""
    scenario, state = tables.scenarios[uuid], State.INIT_STARTUP
    for row in tables.history[uuid]:
        if row.before is not state or TRANSITIONS[row.before, row.kind].to is not row.after:
            raise violation(3, f"{row} from {state}")
        state = row.after
    if scenario.state is not state:
        raise violation(3, f"state {scenario.state}, but {state} by the history")
    if (scenario.outcome is not None) != (state in SHUTDOWN_STATES):
        raise violation(3, f"outcome {scenario.outcome} in {state}")
    if (scenario.error is not None) != (scenario.outcome is Outcome.FAILED):
        raise violation(3, f"error {scenario.error} with outcome {scenario.outcome}")


def check_4_epochs(tables: SimulatedDatabase, uuid: str) -> None:
    """The tables agree on the current epoch, and a scenario of epoch 0 never had a runner."""
    scenario, progress = tables.scenarios[uuid], tables.progress[uuid]
    if scenario.epoch != progress.epoch:
        raise violation(4, f"scenario at epoch {scenario.epoch}, progress at {progress.epoch}")
    if (scenario.epoch == 0) != (scenario.runner is None):
        raise violation(4, f"epoch {scenario.epoch} with runner {scenario.runner}")
    epochs = [row.epoch for row in tables.history[uuid]]
    if epochs != sorted(epochs):
        raise violation(4, f"epochs decrease: {epochs}")


def check_5_rows(simulation: Simulation, uuid: str) -> None:
    """Rows are only added, their number is next_frame, and they follow the order of the source without a hole."""
    rows, source = simulation.tables.rows[uuid], simulation.sources[uuid]
    previous = simulation.last_rows.get(uuid, ())
    if rows[: len(previous)] != previous:
        raise violation(5, "a stored frame was rewritten or removed")
    simulation.last_rows[uuid] = rows
    if simulation.tables.progress[uuid].next_frame != len(rows):
        raise violation(5, f"next_frame {simulation.tables.progress[uuid].next_frame} with {len(rows)} rows")
    pts = [row.pts for row in rows]
    if source.live and any(earlier >= later for earlier, later in pairwise(pts)):
        raise violation(5, f"a frame took the place of another: {pts}")
    if not source.live and pts != _pts_of_file(simulation, uuid)[: len(pts)]:
        raise violation(5, f"a number denotes another frame: {pts}")


def _pts_of_file(simulation: Simulation, uuid: str) -> list[int]:
    source = simulation.sources[uuid]
    skipped: set[int] = set()
    for skip in simulation.tables.scenarios[uuid].skips:
        first = 0 if skip.after_pts is None else skip.after_pts // PTS_STEP + 1
        skipped |= set(range(first, first + skip.frames))
    return [index * PTS_STEP for index in range(source.frames) if index not in skipped]


def check_6_completed(simulation: Simulation, uuid: str) -> None:
    """A completed scenario has all frames. An inactive one gets no more rows and stays inactive."""
    scenario, rows = simulation.tables.scenarios[uuid], simulation.tables.rows[uuid]
    if scenario.outcome is Outcome.COMPLETED and [row.pts for row in rows] != _pts_of_file(simulation, uuid):
        raise violation(6, f"completed with {rows}")
    if simulation.tables.progress[uuid].closed != (scenario.state is State.INACTIVE):
        raise violation(6, "closed and inactive differ")
    if uuid in simulation.rows_when_closed and simulation.rows_when_closed[uuid] != rows:
        raise violation(6, "a row was stored after `complete`")
    if uuid in simulation.rows_when_closed and scenario.state is not State.INACTIVE:
        raise violation(3, "a scenario left inactive")
    if scenario.state is State.INACTIVE:
        simulation.rows_when_closed[uuid] = rows


def check_8_losses(simulation: Simulation, uuid: str) -> None:
    """A healthy scenario has at most as many losses as there were faults, and fails only after losses in a row."""
    source, scenario = simulation.sources[uuid], simulation.tables.scenarios[uuid]
    if source.poison or source.fatal is not None:
        return
    if simulation.losses[uuid] > simulation.faults:
        raise violation(8, f"{simulation.losses[uuid]} losses, but {simulation.faults} faults")
    if scenario.outcome is Outcome.FAILED and simulation.tables.losses_in_a_row[uuid] == 0:
        raise violation(8, f"failed without a loss: {scenario.error}")
