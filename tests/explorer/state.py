"""The explorer's world at one moment, as immutable values that can be hashed and compared.

Times are relative to the present: `0.0` is now and the past is negative. Ages that no rule distinguishes are clamped to one
value (`age_by_unit`), which keeps the number of states finite. One unit of time is the interval between two reports.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec
from tests.invariants.simulation_state import PTS_STEP, RunnerMode, SimulatedSource

from vidflow.domain.leader import Finding, OutgoingCommand, RunnerView, Timing
from vidflow.domain.messages import Command, End, EndReason, Frame, Gap, GapReason, Report, Result
from vidflow.domain.progress import Progress
from vidflow.domain.runner import RunnerState, build_report
from vidflow.domain.scenario import Event, RetryPolicy, Scenario, Skip

NOW_S: Final = 0.0
TIMING: Final = Timing(
    resend_deploy_s=1,
    resend_s=1,
    take_timeout_s=1,
    stop_timeout_s=3,
    runner_lease_s=2,
    missed_report_s=1,
    keep_slot_s=1,
    forget_runner_s=2,
    max_assignments=9,
)
"""The leader's timing in units of time, as small as the order of the durations allows."""
OLDEST_S: Final = -4.0
"""The oldest age that is tracked: no rule asks for more than three units plus one of silence."""
LONG_AGO_S: Final = -1.0
"""The time of a sent command that may be sent again."""
RUNNER_NAMES: Final = ("a", "b")
"""The running runners. A replacement takes over the name; the runner it replaces is renamed to z1, z2, …"""


class WorldConfig(NamedTuple):
    """A small configuration to explore, with the faults that may happen in it.

    `faults` are keys of `fault_steps.FAULT_GENERATORS`; at most `max_faults` of them happen. A scenario with more than
    `max_deployments` epochs counts as redeployed endlessly, since faults cannot explain that many. With `relay_can_lag` a command may
    wait in the outbox, otherwise it reaches its topic at once. With `shutdown` a client may request one at any moment. A live
    source always allows a shutdown, because it has no other end.
    """

    name: str
    source: SimulatedSource = SimulatedSource(frames=1)
    scenarios: int = 1
    runners: int = 1
    capacity: int = 2
    attempts: int = 3
    shutdown: bool = False
    faults: tuple[str, ...] = ()
    max_faults: int = 1
    max_deployments: int = 5
    relay_can_lag: bool = False

    @property
    def limits(self) -> RetryPolicy:
        return RetryPolicy(max_attempts=self.attempts)


class ScenarioRow(NamedTuple):
    """A scenario's rows in the database. `losses_in_a_row` counts the losses since a frame was last stored.

    The stored frames and gaps together are the frames of the source with indexes below `covered`.
    """

    scenario: Scenario
    progress: Progress
    due: bool = True
    losses_in_a_row: int = 0
    covered: int = 0


class WorkerState(NamedTuple):
    """A worker process that reads its source from `source_index` and numbers the frames it keeps.

    `missed`: how many frames before that index it has passed over or skipped, and not reported yet, for the reason `missed_as`.
    """

    epoch: int
    next_frame: int
    source_index: int
    skips: tuple[Skip, ...] = ()
    finishing: EndReason | None = None
    end_sent: bool = False
    missed: int = 0
    missed_as: GapReason = GapReason.DROPPED


class RunnerProcessState(NamedTuple):
    """A runner process, its worker for each scenario (or None), and the commands for it in the topic.

    `never_recovers`: the runner never receives commands again and does not notice.
    """

    state: RunnerState
    workers: tuple[WorkerState | None, ...]
    commands: tuple[Command, ...] = ()
    mode: RunnerMode = RunnerMode.HEALTHY
    never_recovers: bool = False


class TrackedFinding(NamedTuple):
    """A leader's finding, with the number of results per scenario that were in Kafka at that time and are not stored yet."""

    finding: Finding
    results_left: tuple[int, ...]


CommandKey = tuple[str, str, str, int]


class LeaderProcessState(NamedTuple):
    """The leader's `LeaderState` as hashable values.

    `commands_sent`: the commands it sent and still wants, each with the time: now or `LONG_AGO_S`.
    """

    views: tuple[tuple[str, RunnerView], ...] = ()
    findings: tuple[TrackedFinding | None, ...] = ()
    commands_sent: frozenset[tuple[CommandKey, float]] = frozenset()

    def view(self, name: str) -> RunnerView | None:
        return next((view for other, view in self.views if other == name), None)

    def with_view(self, name: str, view: RunnerView) -> LeaderProcessState:
        others = [pair for pair in self.views if pair[0] != name]
        return self._replace(views=tuple(sorted([*others, (name, view)])))


class PendingPlan(NamedTuple):
    """A leader's decision that is not written yet: events with the scenarios as read, commands, and the new leader state."""

    events: tuple[tuple[Scenario, Event], ...]
    commands: tuple[OutgoingCommand, ...]
    leader: LeaderProcessState


class DelayedCopy(NamedTuple):
    """A copy of a command or report that is delivered again later."""

    runner: str
    copy: Command | Report


class Backup(NamedTuple):
    """The tables at an earlier moment, with the results stored and the losses counted since.

    Without rows it is used up: it was restored once.
    """

    rows: tuple[ScenarioRow, ...] = ()
    outbox: tuple[tuple[str, Command], ...] = ()
    stored_since: tuple[tuple[Result, ...], ...] = ()
    losses_since: tuple[int, ...] = ()


class WorldState(NamedTuple):
    """The complete state of a world.

    `logs` holds the results per scenario that are in Kafka and not stored. `probes_received_since_s` is None while Kafka is
    unreachable. The last three fields are bookkeeping of the explorer, which a restore does not reset: the faults that may still
    happen, the further losses of each scenario that faults explain, and each scenario's highest epoch.
    """

    rows: tuple[ScenarioRow, ...]
    logs: tuple[tuple[Result, ...], ...]
    runners: tuple[RunnerProcessState, ...]
    outbox: tuple[tuple[str, Command], ...]
    leader: LeaderProcessState
    probes_received_since_s: float | None
    delayed_copy: DelayedCopy | None
    backup: Backup | None
    pending_plan: PendingPlan | None
    faults_left: int
    losses_allowed: tuple[int, ...]
    highest_epochs: tuple[int, ...]


def uuid_of(index: int) -> str:
    return f"01930000-0000-7000-8000-00000000000{index}"


def index_of(uuid: str) -> int:
    return int(uuid[-1])


def initial(world: WorldConfig) -> WorldState:
    """Return the first state: new scenarios, and runners whose first report has just arrived."""
    count = world.scenarios
    runner = RunnerProcessState(RunnerState(world.capacity), (None,) * count)
    views = tuple((name, RunnerView(NOW_S, report_of(name, runner.state))) for name in RUNNER_NAMES[: world.runners])
    return WorldState(
        rows=tuple(
            ScenarioRow(Scenario(uuid_of(i), skips_poison=world.source.skips), Progress()) for i in range(count)
        ),
        logs=((),) * count,
        runners=(runner,) * world.runners,
        outbox=(),
        leader=LeaderProcessState(views, (None,) * count),
        probes_received_since_s=OLDEST_S,
        delayed_copy=None,
        backup=None,
        pending_plan=None,
        faults_left=world.max_faults,
        losses_allowed=(0,) * count,
        highest_epochs=(0,) * count,
    )


@lru_cache(100_000)
def report_of(name: str, runner_state: RunnerState, number: int = 1) -> Report:
    """Return a runner's report. Its number only orders reports: 2 is arriving, 1 is known to the leader, 0 is outdated."""
    return build_report(runner_state, runner=name, pool="default", number=number, version="")


@lru_cache(10_000)
def frame(uuid: str, epoch: int, number: int, source_index: int, gaps: tuple[Gap, ...] = ()) -> Frame:
    time_s = float(source_index)
    return Frame(uuid, epoch, number, source_index * PTS_STEP, "1/10", 0, time_s, "", 640, 480, gaps=gaps)


@lru_cache(10_000)
def end(uuid: str, epoch: int, last_frame: int, reason: EndReason, gaps: tuple[Gap, ...] = ()) -> End:
    return End(uuid, epoch, last_frame, reason, gaps)


def missed_gaps(worker: WorkerState) -> tuple[Gap, ...]:
    """Return what the worker has to report with its next frame or end marker."""
    if not worker.missed:
        return ()
    from_s, to_s = float(worker.source_index - worker.missed), float(worker.source_index)
    return (Gap(from_s, to_s, worker.missed_as, worker.missed),)


def replace_at(items: tuple, index: int, item: object) -> tuple:  # type: ignore[type-arg]
    """Return the tuple with the item at `index` replaced."""
    return (*items[:index], item, *items[index + 1 :])


def with_row(state: WorldState, index: int, row: ScenarioRow) -> WorldState:
    return state._replace(rows=replace_at(state.rows, index, row))


def with_runner(state: WorldState, slot: int, runner: RunnerProcessState) -> WorldState:
    return state._replace(runners=replace_at(state.runners, slot, runner))


def with_leader(state: WorldState, change: Callable[[LeaderProcessState], LeaderProcessState]) -> WorldState:
    """Return the state with the change applied to the leader, and to the leader state in its pending plan."""
    plan = state.pending_plan and state.pending_plan._replace(leader=change(state.pending_plan.leader))
    return state._replace(leader=change(state.leader), pending_plan=plan)


def is_kafka_away(state: WorldState) -> bool:
    """Return whether Kafka is unreachable for every role."""
    return state.probes_received_since_s is None


def age_by_unit(time_s: float) -> float:
    """Return the relative time after one more unit has passed, clamped to `OLDEST_S`."""
    return max(time_s - 1, OLDEST_S)


replace = msgspec.structs.replace
