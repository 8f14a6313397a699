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
from tests.faults.scene import Scene
from tests.faults.strikes import Fault, Victim, present, strike
from tests.faults.works import Work

AT_ONCE: Final = 2
PAUSE_S: Final = (0.5, 4.0)
FREEZE_S: Final = (0.5, 12.0)
"""From what nobody notices to what outlasts every lease."""
MOST_UNFINISHED: Final = 8
STOPPED_SHARE: Final = 0.15
LOOK_S: Final = 0.5
SETTLED_S: Final = 300.0


@dataclass
class Soak:
    """What a soak did. `unanswered`: births that nobody was told of."""

    seconds: float = 0.0
    blows: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    unanswered: int = 0
    sums: checks.Sums | None = None


def soak(scene: Scene, works: Sequence[Work], minutes: float, seed: int) -> Soak:
    """Lets clients work and chance strike for so long, waits until all is over, and checks. Raises what a check raises."""
    done, over = Soak(), threading.Event()
    began_s = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE + 1, thread_name_prefix="chaos") as threads:
        bodies = [partial(_clients, scene, works, seed, over, done)]
        bodies += [partial(_blows, scene, f"{seed} {number}", over, done) for number in range(AT_ONCE)]
        running = [threads.submit(_until_over, body, over) for body in bodies]
        over.wait(minutes * 60)
        over.set()
        for each in running:
            each.result()
    scene.until_whole()
    scene.until_settled(SETTLED_S)
    done.sums = checks.all_hold(scene)
    done.seconds = time.monotonic() - began_s
    return done


def _until_over(body: Callable[[], None], over: threading.Event) -> None:
    """Runs the body; its end, by an error, is the end of the others too."""
    try:
        body()
    finally:
        over.set()


def _clients(scene: Scene, works: Sequence[Work], seed: int, over: threading.Event, done: Soak) -> None:
    """Keeps some scenarios unfinished, and asks now and then for the end of one."""
    chance = random.Random(f"{seed} clients")  # noqa: S311
    while not over.wait(LOOK_S):
        unfinished = scene.unfinished()
        for _ in range(MOST_UNFINISHED - (MOST_UNFINISHED if unfinished is None else unfinished)):
            uuid = scene.ask(chance.choice(works))
            done.unanswered += uuid is None
            if uuid is not None and chance.random() < STOPPED_SHARE:
                over.wait(chance.uniform(0, 4))
                scene.shut_down(uuid)


def _blows(scene: Scene, seed: str, over: threading.Event, done: Soak) -> None:
    chance = random.Random(seed)  # noqa: S311
    victims, faults = list(Victim), list(Fault)
    while not over.wait(chance.uniform(*PAUSE_S)):
        victim, fault, freeze_s = chance.choice(victims), chance.choice(faults), chance.uniform(*FREEZE_S)
        pids = present(scene.parts, victim, chance)
        if strike(fault, victim, pids, freeze_s) is None:
            done.missed += 1
        else:
            done.blows[f"{fault} {victim}"] += 1


def table(done: Soak) -> str:
    """What came of it, for people."""
    assert done.sums is not None
    lines = [f"{'':12}" + "".join(f"{fault:>8}" for fault in Fault)]
    lines += [f"{victim:12}" + "".join(f"{done.blows[f'{fault} {victim}']:8}" for fault in Fault) for victim in Victim]
    sums = done.sums
    lines.append(
        f"{done.seconds / 60:.1f} min, {sums.scenarios} scenarios, {done.blows.total()} faults, {sums.frames} frames, "
        f"{sums.absorbed} sent again and absorbed, {sums.losses} losses and {sums.returns} returns, {done.unanswered} births unanswered, "
        f"frames lost: {sums.lost}"
    )
    return "\n".join(lines)
