"""What the explorer's world is at one moment: values that can be hashed and compared. Moves are elsewhere, and so are verdicts.

Time has no zero here: `0.0` is now, and what happened before stands below it. Ages that no rule tells apart are made one
(`later`), so that there are finitely many states. One unit of time is what the reports take to come round.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec
from tests.invariants.parts import PTS, Mode, Source

from vidflow.domain.leader import Finding, Given, RunnerView, Timing
from vidflow.domain.messages import Command, End, EndReason, Frame, Gap, GapReason, Report, Result
from vidflow.domain.progress import Progress
from vidflow.domain.runner import Charge, report
from vidflow.domain.scenario import Event, Limits, Scenario, Skip

NOW_S: Final = 0.0
TIMING: Final = Timing(
    deploy_again_s=1, repeat_s=1, not_taken_s=1, stops_s=3, runner_lease_s=2, forget_runner_s=2, assignments=9
)
"""The leader's numbers in units: as small as their order allows."""
OLDEST_S: Final = -4.0
"""Older than this is as old as this: no rule asks for more than three units beside one of silence."""
LONG_AGO_S: Final = -1.0
"""When a command was given that may be given again."""
NAMES: Final = ("a", "b")
"""The runners that are there. One that starts anew takes the name, and the one that is gone is called z1, z2, …"""


class World(NamedTuple):
    """A small size: what there is and what may befall it. `faults` names kinds of faults.py, `most` of them happen.

    `deployments` is more than faults explain: a scenario that gets so many is redeployed without end. `relay`: a command may
    wait in the outbox; else it is in its topic at once. `shutdown`: a client may ask for one at any moment; it may always where
    the stream is live, which has no other end.
    """

    name: str
    source: Source = Source(frames=1)
    scenarios: int = 1
    runners: int = 1
    capacity: int = 2
    attempts: int = 3
    shutdown: bool = False
    faults: tuple[str, ...] = ()
    most: int = 1
    deployments: int = 5
    relay: bool = False

    @property
    def limits(self) -> Limits:
        return Limits(attempts=self.attempts)


class Row(NamedTuple):
    """What the tables know of a scenario; and how many losses there were in a row since a frame was last stored."""

    scenario: Scenario
    progress: Progress
    due: bool = True
    in_a_row: int = 0


class Worker(NamedTuple):
    """A process that reads its source from `at` and numbers what it keeps."""

    epoch: int
    number: int
    at: int
    skips: tuple[Skip, ...] = ()
    finishing: EndReason | None = None
    said_end: bool = False


class Runner(NamedTuple):
    """A runner process, a worker (or none) for each scenario, and the commands that lie in the topic for it.

    `lost` says that its trouble has no end: deaf, and it does not notice.
    """

    charge: Charge
    workers: tuple[Worker | None, ...]
    commands: tuple[Command, ...] = ()
    mode: Mode = Mode.WELL
    lost: bool = False


class Found(NamedTuple):
    """A leader's finding, and how many results of each scenario lay in Kafka then and are not stored yet."""

    finding: Finding
    behind: tuple[int, ...]


Key = tuple[str, str, str, int]


class Leader(NamedTuple):
    """The leader's Memory, as values. `given`: what it gave and goes on to want, now or longer ago (`LONG_AGO_S`)."""

    views: tuple[tuple[str, RunnerView], ...] = ()
    found: tuple[Found | None, ...] = ()
    given: frozenset[tuple[Key, float]] = frozenset()

    def view(self, name: str) -> RunnerView | None:
        return next((view for other, view in self.views if other == name), None)

    def with_view(self, name: str, view: RunnerView) -> Leader:
        others = [one for one in self.views if one[0] != name]
        return self._replace(views=tuple(sorted([*others, (name, view)])))


class Looked(NamedTuple):
    """What a leader has decided and not written yet: each event with the scenario as it was read, the commands, and its memory."""

    events: tuple[tuple[Scenario, Event], ...]
    commands: tuple[Given, ...]
    leader: Leader


class Late(NamedTuple):
    """A copy that comes once more: a command for a runner, or a report."""

    runner: str
    copy: Command | Report


class Backup(NamedTuple):
    """The tables at an earlier moment, and what the inbox has stored since. No rows: it was restored, and there is no other."""

    rows: tuple[Row, ...] = ()
    outbox: tuple[tuple[str, Command], ...] = ()
    stored: tuple[tuple[Result, ...], ...] = ()


class State(NamedTuple):
    """All of it. `logs`: the results in Kafka that are not stored. `hearing_s`: since when the leader hears its probes.

    The last three are the ledger, which no restore takes back: the faults that may still happen, how many more losses of each
    scenario the faults explain, and its highest epoch.
    """

    rows: tuple[Row, ...]
    logs: tuple[tuple[Result, ...], ...]
    runners: tuple[Runner, ...]
    outbox: tuple[tuple[str, Command], ...]
    leader: Leader
    hearing_s: float | None
    late: Late | None
    backup: Backup | None
    looked: Looked | None
    faults: int
    credit: tuple[int, ...]
    highest: tuple[int, ...]


def uuid_of(index: int) -> str:
    return f"01930000-0000-7000-8000-00000000000{index}"


def index_of(uuid: str) -> int:
    return int(uuid[-1])


def initial(world: World) -> State:
    """Scenarios that were just born, runners that were just heard of."""
    count = world.scenarios
    runner = Runner(Charge(world.capacity), (None,) * count)
    views = tuple((name, RunnerView(NOW_S, told(name, runner.charge))) for name in NAMES[: world.runners])
    return State(
        rows=tuple(Row(Scenario(uuid_of(i), skips_poison=world.source.skips), Progress()) for i in range(count)),
        logs=((),) * count,
        runners=(runner,) * world.runners,
        outbox=(),
        leader=Leader(views, (None,) * count),
        hearing_s=OLDEST_S,
        late=None,
        backup=None,
        looked=None,
        faults=world.most,
        credit=(0,) * count,
        highest=(0,) * count,
    )


@lru_cache(100_000)
def told(name: str, charge: Charge, number: int = 1) -> Report:
    """A runner's report. All that counts of its number is which of two is the newer: 2 is heard, 1 is known, 0 is old."""
    return report(charge, runner=name, pool="default", number=number, version="")


@lru_cache(10_000)
def frame(uuid: str, epoch: int, number: int, at: int) -> Frame:
    return Frame(uuid, epoch, number, at * PTS, "1/10", 0, float(at), "", 640, 480)


@lru_cache(10_000)
def end(uuid: str, epoch: int, last: int, reason: EndReason) -> End:
    return End(uuid, epoch, last, reason)


@lru_cache(10_000)
def gap(uuid: str, epoch: int, after: int, at: int, frames: int) -> Gap:
    return Gap(uuid, epoch, after, float(at), float(at + frames), GapReason.SKIPPED, frames)


def put(items: tuple, index: int, item: object) -> tuple:  # type: ignore[type-arg]
    """The tuple with another item at `index`."""
    return (*items[:index], item, *items[index + 1 :])


def with_row(state: State, index: int, row: Row) -> State:
    return state._replace(rows=put(state.rows, index, row))


def with_runner(state: State, slot: int, runner: Runner) -> State:
    return state._replace(runners=put(state.runners, slot, runner))


def with_leader(state: State, change: Callable[[Leader], Leader]) -> State:
    """The state with another leader's memory, also in what it has decided and not written yet."""
    looked = state.looked and state.looked._replace(leader=change(state.looked.leader))
    return state._replace(leader=change(state.leader), looked=looked)


def is_away(state: State) -> bool:
    """Whether Kafka is away from all."""
    return state.hearing_s is None


def older(at_s: float) -> float:
    """The time one unit later, seen from then."""
    return max(at_s - 1, OLDEST_S)


replace = msgspec.structs.replace
