"""A random soak: hundreds of scenarios, faults every few seconds, up to two at once, and all checks at the end."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from tests.faults import checks
from tests.faults.injection import Fault, Victim, find_victim, inject
from tests.faults.system_under_test import SystemUnderTest
from tests.faults.workloads import Workload

PARALLEL_FAULTS: Final = 2
PAUSE_S: Final = (0.5, 4.0)
FREEZE_S: Final = (0.5, 12.0)
"""The range of freezes, from unnoticeable to longer than every lease."""
MAX_UNFINISHED: Final = 8
STOPPED_SHARE: Final = 0.15
POLL_S: Final = 0.5
SETTLE_LIMIT_S: Final = 300.0


@dataclass
class SoakResult:
    """What a soak did.

    `missed` counts faults whose victim did not exist. `unanswered` counts requests for a scenario without a successful answer.
    """

    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    unanswered: int = 0
    totals: checks.CheckTotals | None = None


def soak(system: SystemUnderTest, works: Sequence[Workload], minutes: float, seed: int) -> SoakResult:
    """Run clients and random faults for `minutes`, wait until every scenario is inactive, then make all checks.

    Raises the error of a failed check.
    """
    result, over = SoakResult(), threading.Event()
    started_s = time.monotonic()
    with ThreadPoolExecutor(PARALLEL_FAULTS + 1, thread_name_prefix="chaos") as threads:
        bodies = [partial(_clients, system, works, seed, over, result)]
        bodies += [
            partial(_inject_faults, system, f"{seed} {number}", over, result) for number in range(PARALLEL_FAULTS)
        ]
        running = [threads.submit(_until_over, body, over) for body in bodies]
        over.wait(minutes * 60)
        over.set()
        for future in running:
            future.result()
    system.wait_until_recovered()
    system.wait_until_all_inactive(SETTLE_LIMIT_S)
    result.totals = checks.check_all(system)
    result.seconds = time.monotonic() - started_s
    return result


def _until_over(body: Callable[[], None], over: threading.Event) -> None:
    """Run the body. When it ends, also by an error, the other bodies end too."""
    try:
        body()
    finally:
        over.set()


def _clients(
    system: SystemUnderTest, works: Sequence[Workload], seed: int, over: threading.Event, result: SoakResult
) -> None:
    """Keep up to `MAX_UNFINISHED` scenarios unfinished, and shut some of them down early."""
    chance = random.Random(f"{seed} clients")  # noqa: S311
    while not over.wait(POLL_S):
        unfinished = system.count_unfinished()
        for _ in range(MAX_UNFINISHED - (MAX_UNFINISHED if unfinished is None else unfinished)):
            uuid = system.try_create_scenario(chance.choice(works))
            result.unanswered += uuid is None
            if uuid is not None and chance.random() < STOPPED_SHARE:
                over.wait(chance.uniform(0, 4))
                system.request_shutdown(uuid)


def _inject_faults(system: SystemUnderTest, seed: str, over: threading.Event, result: SoakResult) -> None:
    chance = random.Random(seed)  # noqa: S311
    victims, faults = list(Victim), list(Fault)
    while not over.wait(chance.uniform(*PAUSE_S)):
        victim, fault, freeze_s = chance.choice(victims), chance.choice(faults), chance.uniform(*FREEZE_S)
        pids = find_victim(system.processes, victim, chance)
        if inject(fault, victim, pids, freeze_s) is None:
            result.missed += 1
        else:
            result.faults[f"{fault} {victim}"] += 1


def table(result: SoakResult) -> str:
    """Return the result as text: a table of the faults, and a line of totals."""
    assert result.totals is not None
    lines = [f"{'':12}" + "".join(f"{fault:>8}" for fault in Fault)]
    lines += [
        f"{victim:12}" + "".join(f"{result.faults[f'{fault} {victim}']:8}" for fault in Fault) for victim in Victim
    ]
    totals = result.totals
    lines.append(
        f"{result.seconds / 60:.1f} min, {totals.scenarios} scenarios, {result.faults.total()} faults, "
        f"{totals.frames} frames, {totals.duplicate_frames} duplicate frames dropped, "
        f"{totals.losses} losses, {totals.requeues} requeues, {result.unanswered} requests unanswered, "
        f"{totals.frames_missing} frames lost"
    )
    return "\n".join(lines)
