"""What the explorer's world is at one moment: values that can be hashed and compared. Moves are elsewhere, and so are verdicts.

Time has no zero here: `0.0` is now, and what happened before stands below it. Ages that no rule tells apart are made one
(`later`), so that there are finitely many states. One unit of time is what the reports take to come round.
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
    forget_runner_s=2,
    max_assignments=9,
)
"""The leader's numbers in units: as small as their order allows."""
OLDEST_S: Final = -4.0
"""Older than this is as old as this: no rule asks for more than three units beside one of silence."""
LONG_AGO_S: Final = -1.0
"""When a command was given that may be given again."""
RUNNER_NAMES: Final = ("a", "b")
"""The runners that are there. One that starts anew takes the name, and the one that is gone is called z1, z2, …"""


class WorldConfig(NamedTuple):
    """A small size: what there is and what may befall it. `faults_left` names kinds of faults.py, `max_faults` of them happen.

    `max_deployments` is more than faults explain: a scenario that gets so many is redeployed without end. `relay_can_lag`: a command may
    wait in the outbox; else it is in its topic at once. `shutdown`: a client may ask for one at any moment; it may always where
    the stream is live, which has no other end.
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
    """What the tables know of a scenario; and how many losses there were in a row since a frame was last stored."""

    scenario: Scenario
    progress: Progress
    due: bool = True
    losses_in_a_row: int = 0


class WorkerState(NamedTuple):
    """A process that reads its source from `source_index` and numbers what it keeps."""

    epoch: int
    next_frame: int
    source_index: int
    skips: tuple[Skip, ...] = ()
    finishing: EndReason | None = None
    end_sent: bool = False


class RunnerProcessState(NamedTuple):
    """A runner process, a worker (or none) for each scenario, and the commands that lie in the topic for it.

    `never_recovers` says that its trouble has no end: deaf, and it does not notice.
    """

    charge: RunnerState
    workers: tuple[WorkerState | None, ...]
    commands: tuple[Command, ...] = ()
    mode: RunnerMode = RunnerMode.HEALTHY
    never_recovers: bool = False


class TrackedFinding(NamedTuple):
    """A leader's finding, and how many results of each scenario lay in Kafka then and are not stored yet."""

    finding: Finding
    results_left: tuple[int, ...]


CommandKey = tuple[str, str, str, int]


class LeaderProcessState(NamedTuple):
    """The leader's Memory, as values. `commands_sent`: what it gave and goes on to want, now or longer ago (`LONG_AGO_S`)."""

    views: tuple[tuple[str, RunnerView], ...] = ()
    findings: tuple[TrackedFinding | None, ...] = ()
    commands_sent: frozenset[tuple[CommandKey, float]] = frozenset()

    def view(self, name: str) -> RunnerView | None:
        return next((view for other, view in self.views if other == name), None)

    def with_view(self, name: str, view: RunnerView) -> LeaderProcessState:
        others = [one for one in self.views if one[0] != name]
        return self._replace(views=tuple(sorted([*others, (name, view)])))


class PendingPlan(NamedTuple):
    """What a leader has decided and not written yet: each event with the scenario as it was read, the commands, and its memory."""

    events: tuple[tuple[Scenario, Event], ...]
    commands: tuple[OutgoingCommand, ...]
    leader: LeaderProcessState


class DelayedCopy(NamedTuple):
    """A copy that comes once more: a command for a runner, or a report."""

    runner: str
    copy: Command | Report


class Backup(NamedTuple):
    """The tables at an earlier moment, and what the inbox has stored since. No rows: it was restored, and there is no other."""

    rows: tuple[ScenarioRow, ...] = ()
    outbox: tuple[tuple[str, Command], ...] = ()
    stored_since: tuple[tuple[Result, ...], ...] = ()


class WorldState(NamedTuple):
    """All of it. `logs`: the results in Kafka that are not stored. `probes_heard_since_s`: since when the leader hears its probes.

    The last three are the ledger, which no restore takes back: the faults that may still happen, how many more losses of each
    scenario the faults explain, and its highest epoch.
    """

    rows: tuple[ScenarioRow, ...]
    logs: tuple[tuple[Result, ...], ...]
    runners: tuple[RunnerProcessState, ...]
    outbox: tuple[tuple[str, Command], ...]
    leader: LeaderProcessState
    probes_heard_since_s: float | None
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
    """Scenarios that were just born, runners that were just heard of."""
    count = world.scenarios
    runner = RunnerProcessState(RunnerState(world.capacity), (None,) * count)
    views = tuple((name, RunnerView(NOW_S, report_of(name, runner.charge))) for name in RUNNER_NAMES[: world.runners])
    return WorldState(
        rows=tuple(
            ScenarioRow(Scenario(uuid_of(i), skips_poison=world.source.skips), Progress()) for i in range(count)
        ),
        logs=((),) * count,
        runners=(runner,) * world.runners,
        outbox=(),
        leader=LeaderProcessState(views, (None,) * count),
        probes_heard_since_s=OLDEST_S,
        delayed_copy=None,
        backup=None,
        pending_plan=None,
        faults_left=world.max_faults,
        losses_allowed=(0,) * count,
        highest_epochs=(0,) * count,
    )


@lru_cache(100_000)
def report_of(name: str, charge: RunnerState, number: int = 1) -> Report:
    """A runner's report. All that counts of its number is which of two is the newer: 2 is heard, 1 is known, 0 is old."""
    return build_report(charge, runner=name, pool="default", number=number, version="")


@lru_cache(10_000)
def frame(uuid: str, epoch: int, number: int, at: int) -> Frame:
    return Frame(uuid, epoch, number, at * PTS_STEP, "1/10", 0, float(at), "", 640, 480)


@lru_cache(10_000)
def end(uuid: str, epoch: int, last: int, reason: EndReason) -> End:
    return End(uuid, epoch, last, reason)


@lru_cache(10_000)
def gap(uuid: str, epoch: int, after: int, at: int, frames: int) -> Gap:
    return Gap(uuid, epoch, after, float(at), float(at + frames), GapReason.SKIPPED, frames)


def replace_at(items: tuple, index: int, item: object) -> tuple:  # type: ignore[type-arg]
    """The tuple with another item at `index`."""
    return (*items[:index], item, *items[index + 1 :])


def with_row(state: WorldState, index: int, row: ScenarioRow) -> WorldState:
    return state._replace(rows=replace_at(state.rows, index, row))


def with_runner(state: WorldState, slot: int, runner: RunnerProcessState) -> WorldState:
    return state._replace(runners=replace_at(state.runners, slot, runner))


def with_leader(state: WorldState, change: Callable[[LeaderProcessState], LeaderProcessState]) -> WorldState:
    """The state with another leader's memory, also in what it has decided and not written yet."""
    looked = state.pending_plan and state.pending_plan._replace(leader=change(state.pending_plan.leader))
    return state._replace(leader=change(state.leader), pending_plan=looked)


def is_kafka_away(state: WorldState) -> bool:
    """Whether Kafka is away from all."""
    return state.probes_heard_since_s is None


def age_by_unit(at_s: float) -> float:
    """The time one unit later, seen from then."""
    return max(at_s - 1, OLDEST_S)


replace = msgspec.structs.replace
