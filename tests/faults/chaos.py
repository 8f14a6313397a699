"""A random soak: scenarios by the hundred, blows every few seconds on whoever is there, two at once too, all checks at the end."""

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
"""From what nobody notices to what outlasts every lease."""
MAX_UNFINISHED: Final = 8
STOPPED_SHARE: Final = 0.15
POLL_S: Final = 0.5
SETTLE_LIMIT_S: Final = 300.0


@dataclass
class SoakResult:
    """What a soak did. `unanswered`: births that nobody was told of."""

    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    unanswered: int = 0
    totals: checks.CheckTotals | None = None


def soak(scene: SystemUnderTest, works: Sequence[Workload], minutes: float, seed: int) -> SoakResult:
    """Lets clients work and chance strike for so long, waits until all is over, and checks. Raises what a check raises."""
    done, over = SoakResult(), threading.Event()
    began_s = time.monotonic()
    with ThreadPoolExecutor(PARALLEL_FAULTS + 1, thread_name_prefix="chaos") as threads:
        bodies = [partial(_clients, scene, works, seed, over, done)]
        bodies += [partial(_inject_faults, scene, f"{seed} {number}", over, done) for number in range(PARALLEL_FAULTS)]
        running = [threads.submit(_until_over, body, over) for body in bodies]
        over.wait(minutes * 60)
        over.set()
        for each in running:
            each.result()
    scene.wait_until_recovered()
    scene.wait_until_all_inactive(SETTLE_LIMIT_S)
    done.totals = checks.check_all(scene)
    done.seconds = time.monotonic() - began_s
    return done


def _until_over(body: Callable[[], None], over: threading.Event) -> None:
    """Runs the body; its end, by an error, is the end of the others too."""
    try:
        body()
    finally:
        over.set()


def _clients(
    scene: SystemUnderTest, works: Sequence[Workload], seed: int, over: threading.Event, done: SoakResult
) -> None:
    """Keeps some scenarios unfinished, and asks now and then for the end of one."""
    chance = random.Random(f"{seed} clients")  # noqa: S311
    while not over.wait(POLL_S):
        unfinished = scene.count_unfinished()
        for _ in range(MAX_UNFINISHED - (MAX_UNFINISHED if unfinished is None else unfinished)):
            uuid = scene.try_create_scenario(chance.choice(works))
            done.unanswered += uuid is None
            if uuid is not None and chance.random() < STOPPED_SHARE:
                over.wait(chance.uniform(0, 4))
                scene.request_shutdown(uuid)


def _inject_faults(scene: SystemUnderTest, seed: str, over: threading.Event, done: SoakResult) -> None:
    chance = random.Random(seed)  # noqa: S311
    victims, faults = list(Victim), list(Fault)
    while not over.wait(chance.uniform(*PAUSE_S)):
        victim, fault, freeze_s = chance.choice(victims), chance.choice(faults), chance.uniform(*FREEZE_S)
        pids = find_victim(scene.processes, victim, chance)
        if inject(fault, victim, pids, freeze_s) is None:
            done.missed += 1
        else:
            done.faults[f"{fault} {victim}"] += 1


def table(done: SoakResult) -> str:
    """What came of it, for people."""
    assert done.totals is not None
    lines = [f"{'':12}" + "".join(f"{fault:>8}" for fault in Fault)]
    lines += [f"{victim:12}" + "".join(f"{done.faults[f'{fault} {victim}']:8}" for fault in Fault) for victim in Victim]
    sums = done.totals
    lines.append(
        f"{done.seconds / 60:.1f} min, {sums.scenarios} scenarios, {done.faults.total()} faults, {sums.frames} frames, "
        f"{sums.duplicate_frames} sent again and absorbed, {sums.losses} losses and {sums.requeues} returns, "
        f"{done.unanswered} births unanswered, "
        f"frames lost: {sums.frames_missing}"
    )
    return "\n".join(lines)
