"""The fault matrix: each fault on each victim while a scenario is starting, running or shutting down, one case at a time."""

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
from tests.faults.violation import violation
from tests.faults.workloads import Workload

from vidflow.domain.scenario import State

FREEZE_S: Final = 30.0
MAX_MISSES: Final = 5
CAMERA_VICTIMS: Final = frozenset({Victim.RUNNER, Victim.MACHINE, Victim.WORKER, Victim.KAFKA})
"""Victims on which a camera's scenario depends in another way than that of a file."""
SHARING_VICTIMS: Final = frozenset({Victim.INFERENCE, Victim.WORKER, Victim.RUNNER, Victim.MACHINE})
"""The same for a scenario whose model runs in an inference process."""
WORKING_VICTIMS: Final = frozenset({Victim.RUNNER, Victim.MACHINE, Victim.WORKER, Victim.INFERENCE})


class ScenarioPhase(StrEnum):
    """What a scenario is doing when the fault is injected."""

    STARTING = "starting"
    RUNNING = "running"
    SHUTTING_DOWN = "shutting_down"


class Source(StrEnum):
    """The kind of the source that is read when the fault is injected. `shared`: a file, for a model in an inference process."""

    FILE = "file"
    CAMERA = "camera"
    SHARED = "shared"


VICTIMS: Final = {
    Source.FILE: frozenset(Victim) - {Victim.INFERENCE},
    Source.CAMERA: CAMERA_VICTIMS,
    Source.SHARED: SHARING_VICTIMS,
}


def source_of(work: Workload) -> Source:
    """Return the kind of a workload's source."""
    if work.live_rate is not None:
        return Source.CAMERA
    return Source.SHARED if work.is_shared else Source.FILE


@dataclass(frozen=True)
class MatrixCase:
    """One cell of the matrix: what is injected, where and when, and the kind of the scenario's source."""

    fault: Fault
    victim: Victim
    phase: ScenarioPhase
    source: Source = Source.FILE

    def __str__(self) -> str:
        return f"{self.fault}-{self.victim}-{self.phase}-{self.source}"


@dataclass(frozen=True)
class MatrixRow:
    """The result of a case. `pause_s`: the longest time without progress since the injection."""

    case: MatrixCase
    outcome: str
    pause_s: float
    frames: int
    duplicate_frames: int
    losses: int
    requeues: int


HEADER: Final = (
    f"{'fault':10}{'victim':10}{'phase':15}{'source':8}{'outcome':10}{'pause s':>8}{'frames':>8}"
    f"{'duplicates':>11}{'losses':>8}{'requeues':>9}"
)


def line(row: MatrixRow) -> str:
    case = row.case
    return (
        f"{case.fault:10}{case.victim:10}{case.phase:15}{case.source:8}{row.outcome:10}{row.pause_s:8.2f}{row.frames:8}"
        f"{row.duplicate_frames:11}{row.losses:8}{row.requeues:9}"
    )


def cases(only: str = "") -> list[MatrixCase]:
    """Return all cases, or those that match a comma-separated part of `only` in all its words: "kill runner, kafka"."""
    every = [
        MatrixCase(fault, victim, phase, source)
        for source, victim, fault, phase in product(Source, Victim, Fault, ScenarioPhase)
        if victim in VICTIMS[source]
    ]
    # A SIGTERM to a machine is the same as one to its runner.
    every = [case for case in every if (case.fault, case.victim) != (Fault.TERM, Victim.MACHINE)]
    parts = [set(part.replace("-", " ").split()) for part in only.split(",")]
    return [case for case in every if any(part <= set(str(case).split("-")) for part in parts)]


def inject_in_phase(
    system: SystemUnderTest, case: MatrixCase, work: Workload, chance: random.Random, freeze_s: float
) -> float | None:
    """Bring a scenario into the case's phase and inject the fault.

    Returns the time of the injection, or None if the phase or the victim was over before. A victim that is chosen by its work is
    looked for in the phase, the others before it.
    """
    pids = [] if case.victim in WORKING_VICTIMS else wait_for_victim(system.processes, case.victim, chance)
    uuid = system.create_scenario(work)
    if case.phase is not ScenarioPhase.STARTING:
        system.wait_until_running(uuid)
    pids = pids or wait_for_victim(system.processes, case.victim, chance)
    if case.phase is ScenarioPhase.SHUTTING_DOWN:
        system.ensure_shut_down(uuid)
    elif system.vidflow.scenario(uuid)["state"] == State.INACTIVE:
        return None
    return inject(case.fault, case.victim, pids, freeze_s)


def inject_with_retries(
    system: SystemUnderTest, case: MatrixCase, work: Workload, chance: random.Random, freeze_s: float
) -> float:
    """Inject the fault into a new scenario, again if the victim or the phase was missed. Return the time of the injection."""
    for _ in range(MAX_MISSES):
        if (injected_s := inject_in_phase(system, case, work, chance, freeze_s)) is not None:
            return injected_s
    raise AssertionError(f"{case}: victim or phase missed {MAX_MISSES} times")


def run_cases(
    system: SystemUnderTest, chosen: Iterable[MatrixCase], works: Sequence[Workload], seed: int, freeze_s: float
) -> Iterator[MatrixRow]:
    """Run each case beside other scenarios and make all checks after it. Yield the results.

    The first of `works` whose source is the case's is disturbed. The file ones among the others run beside it.
    """
    checks.check_all(system)  # of the reference runs
    for case in chosen:
        system.wait_until_recovered()
        chance = random.Random(f"{seed} {case}")  # noqa: S311 - repeatable, also for a single case
        with watched_progress(system.processes.database_url) as watch:
            disturbed = next(work for work in works if source_of(work) is case.source)
            for work in works:
                if work.frames is not None and work is not disturbed:
                    system.create_scenario(work)
            injected_s = inject_with_retries(system, case, disturbed, chance, freeze_s)
            try:
                system.shut_down_live()
                system.wait_until_all_inactive()
                pause_s = watch.longest_pause_s(injected_s)
                system.wait_until_recovered()
                totals = checks.check_all(system)
                if case.victim is Victim.INFERENCE and totals.losses:
                    raise violation(8, f"{totals.losses} losses although no worker died")
            except AssertionError as error:
                yield MatrixRow(case, f"BROKEN: {error}", time.monotonic() - injected_s, 0, 0, 0, 0)
                raise
        yield MatrixRow(case, "held", pause_s, totals.frames, totals.duplicate_frames, totals.losses, totals.requeues)
