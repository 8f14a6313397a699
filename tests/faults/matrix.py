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
from tests.faults.injection import Fault, Victim, inject, wait_for_victim
from tests.faults.progress_watch import watched_progress
from tests.faults.system_under_test import SystemUnderTest
from tests.faults.workloads import Workload

from vidflow.domain.scenario import State

FREEZE_S: Final = 30.0
MAX_MISSES: Final = 5
WORKING_VICTIMS: Final = frozenset({Victim.RUNNER, Victim.MACHINE, Victim.WORKER})


class ScenarioPhase(StrEnum):
    """What a scenario is doing when the blow falls."""

    STARTING = "starting"
    RUNNING = "running"
    SHUTTING_DOWN = "shutting_down"


@dataclass(frozen=True)
class MatrixCase:
    """One square of the matrix."""

    fault: Fault
    victim: Victim
    phase: ScenarioPhase

    def __str__(self) -> str:
        return f"{self.fault}-{self.victim}-{self.phase}"


@dataclass(frozen=True)
class MatrixRow:
    """What came of a case. `pause_s`: the longest time from the blow on in which nothing got on."""

    case: MatrixCase
    outcome: str
    pause_s: float
    frames: int
    duplicate_frames: int
    losses: int
    requeues: int


HEADER: Final = f"{'fault':10}{'victim':10}{'when':15}{'outcome':10}{'pause s':>8}{'frames':>8}{'absorbed':>9}{'losses':>8}{'returns':>9}"


def line(row: MatrixRow) -> str:
    case = row.case
    return (
        f"{case.fault:10}{case.victim:10}{case.phase:15}{row.outcome:10}{row.pause_s:8.2f}{row.frames:8}"
        f"{row.duplicate_frames:9}{row.losses:8}{row.requeues:9}"
    )


def cases(only: str = "") -> list[MatrixCase]:
    """All cases, or those that have all words of one of the comma-separated parts of `only`: "kill runner, kafka"."""
    every = [MatrixCase(fault, victim, when) for victim, fault, when in product(Victim, Fault, ScenarioPhase)]
    every = [
        case for case in every if (case.fault, case.victim) != (Fault.TERM, Victim.MACHINE)
    ]  # that is the runner's
    parts = [set(part.replace("-", " ").split()) for part in only.split(",")]
    return [case for case in every if any(part <= set(str(case).split("-")) for part in parts)]


def inject_in_phase(
    scene: SystemUnderTest, case: MatrixCase, work: Workload, chance: random.Random, freeze_s: float
) -> float | None:
    """Brings a scenario to the case's moment and strikes: when; None where the moment or the victim was gone before the blow.

    Who is struck for the work that it has can be told only then; the others are looked for before.
    """
    pids = [] if case.victim in WORKING_VICTIMS else wait_for_victim(scene.processes, case.victim, chance)
    uuid = scene.create_scenario(work)
    if case.phase is not ScenarioPhase.STARTING:
        scene.wait_until_running(uuid)
    pids = pids or wait_for_victim(scene.processes, case.victim, chance)
    if case.phase is ScenarioPhase.SHUTTING_DOWN:
        scene.ensure_shut_down(uuid)
    elif scene.vidflow.scenario(uuid)["state"] == State.INACTIVE:
        return None
    return inject(case.fault, case.victim, pids, freeze_s)


def inject_with_retries(
    scene: SystemUnderTest, case: MatrixCase, work: Workload, chance: random.Random, freeze_s: float
) -> float:
    """Lets it befall a new scenario, again where the victim had slipped away; the moment of the blow."""
    for _ in range(MAX_MISSES):
        if (struck_s := inject_in_phase(scene, case, work, chance, freeze_s)) is not None:
            return struck_s
    raise AssertionError(f"{case}: nobody was there to be struck, {MAX_MISSES} times")


def run_cases(
    scene: SystemUnderTest, chosen: Iterable[MatrixCase], works: Sequence[Workload], seed: int, freeze_s: float
) -> Iterator[MatrixRow]:
    """Each case by itself: the blow beside other scenarios that run, all checks after it. Yields what came of each."""
    checks.check_all(scene)  # of the undisturbed runs
    for case in chosen:
        scene.wait_until_recovered()
        chance = random.Random(f"{seed} {case}")  # noqa: S311 - to be replayed, one case alone too
        with watched_progress(scene.processes.database_url) as flow:
            for work in works[1:]:
                scene.create_scenario(work)
            struck_s = inject_with_retries(scene, case, works[0], chance, freeze_s)
            try:
                scene.wait_until_all_inactive()
                pause_s = flow.longest_pause_s(struck_s)
                sums = checks.check_all(scene)
            except AssertionError as error:
                yield MatrixRow(case, f"BROKEN: {error}", time.monotonic() - struck_s, 0, 0, 0, 0)
                raise
        yield MatrixRow(case, "held", pause_s, sums.frames, sums.duplicate_frames, sums.losses, sums.requeues)
