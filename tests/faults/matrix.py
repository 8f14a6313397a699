"""The fault matrix: who is struck, by what, while a scenario is starting, running or shutting down; one case after another."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from typing import Final

from tests.faults import checks
from tests.faults.flow import watched
from tests.faults.scene import Scene
from tests.faults.strikes import Fault, Victim, aim, strike
from tests.faults.works import Work

from vidflow.domain.scenario import State

FREEZE_S: Final = 30.0
MOST_MISSES: Final = 5
AT_WORK: Final = frozenset({Victim.RUNNER, Victim.MACHINE, Victim.WORKER})


class When(StrEnum):
    """What a scenario is doing when the blow falls."""

    STARTING = "starting"
    RUNNING = "running"
    SHUTTING_DOWN = "shutting_down"


@dataclass(frozen=True)
class Case:
    """One square of the matrix."""

    fault: Fault
    victim: Victim
    when: When

    def __str__(self) -> str:
        return f"{self.fault}-{self.victim}-{self.when}"


@dataclass(frozen=True)
class Row:
    """What came of a case. `pause_s`: the longest time from the blow on in which nothing got on."""

    case: Case
    outcome: str
    pause_s: float
    frames: int
    absorbed: int
    losses: int
    returns: int


HEADER: Final = f"{'fault':10}{'victim':10}{'when':15}{'outcome':10}{'pause s':>8}{'frames':>8}{'absorbed':>9}{'losses':>8}{'returns':>9}"


def line(row: Row) -> str:
    case = row.case
    return (
        f"{case.fault:10}{case.victim:10}{case.when:15}{row.outcome:10}{row.pause_s:8.2f}{row.frames:8}"
        f"{row.absorbed:9}{row.losses:8}{row.returns:9}"
    )


def cases(only: str = "") -> list[Case]:
    """All cases, or those that have all words of one of the comma-separated parts of `only`: "kill runner, kafka"."""
    every = [Case(fault, victim, when) for victim, fault, when in product(Victim, Fault, When)]
    every = [
        case for case in every if (case.fault, case.victim) != (Fault.TERM, Victim.MACHINE)
    ]  # that is the runner's
    parts = [set(part.replace("-", " ").split()) for part in only.split(",")]
    return [case for case in every if any(part <= set(str(case).split("-")) for part in parts)]


def befall(scene: Scene, case: Case, work: Work, chance: random.Random, freeze_s: float) -> float | None:
    """Brings a scenario to the case's moment and strikes: when; None where the moment or the victim was gone before the blow.

    Who is struck for the work that it has can be told only then; the others are looked for before.
    """
    pids = [] if case.victim in AT_WORK else aim(scene.parts, case.victim, chance)
    uuid = scene.begin(work)
    if case.when is not When.STARTING:
        scene.under_way(uuid)
    pids = pids or aim(scene.parts, case.victim, chance)
    if case.when is When.SHUTTING_DOWN:
        scene.until_shut_down(uuid)
    elif scene.vidflow.scenario(uuid)["state"] == State.INACTIVE:
        return None
    return strike(case.fault, case.victim, pids, freeze_s)


def struck(scene: Scene, case: Case, work: Work, chance: random.Random, freeze_s: float) -> float:
    """Lets it befall a new scenario, again where the victim had slipped away; the moment of the blow."""
    for _ in range(MOST_MISSES):
        if (struck_s := befall(scene, case, work, chance, freeze_s)) is not None:
            return struck_s
    raise AssertionError(f"{case}: nobody was there to be struck, {MOST_MISSES} times")


def play(scene: Scene, chosen: Iterable[Case], works: Sequence[Work], seed: int, freeze_s: float) -> Iterator[Row]:
    """Each case by itself: the blow beside other scenarios that run, all checks after it. Yields what came of each."""
    checks.all_hold(scene)  # of the undisturbed runs
    for case in chosen:
        scene.until_whole()
        chance = random.Random(f"{seed} {case}")  # noqa: S311 - to be replayed, one case alone too
        with watched(scene.parts.database_url) as flow:
            for work in works[1:]:
                scene.begin(work)
            struck_s = struck(scene, case, works[0], chance, freeze_s)
            try:
                scene.until_settled()
                pause_s = flow.longest_pause_s(struck_s)
                sums = checks.all_hold(scene)
            except AssertionError as error:
                yield Row(case, f"BROKEN: {error}", time.monotonic() - struck_s, 0, 0, 0, 0)
                raise
        yield Row(case, "held", pause_s, sums.frames, sums.absorbed, sums.losses, sums.returns)
