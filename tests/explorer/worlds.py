"""The sizes that are explored: small enough to see every state of, each with the faults that it is about."""

from __future__ import annotations

from typing import Final

from tests.explorer.state import World
from tests.invariants.parts import Source

ONE, TWO, THREE = Source(frames=1), Source(frames=2), Source(frames=3)
LIVE, LIVE_TWO = Source(frames=1, live=True), Source(frames=2, live=True)
POISON = Source(frames=2, poison=frozenset({1}))
SKIPS = Source(frames=3, poison=frozenset({0, 1}), skips=True)


def file(name: str, source: Source = TWO, **others: object) -> World:
    return World(f"file, {name}", source, **others)  # type: ignore[arg-type]


def live(name: str, source: Source = LIVE, **others: object) -> World:
    """A live stream has an end only by a client's shutdown, which may come at any moment."""
    return World(f"live, {name}", source, shutdown=True, **others)  # type: ignore[arg-type]


def once(*kinds: str) -> dict[str, object]:
    return {"faults": kinds, "most": 1}


def twice(*kinds: str) -> dict[str, object]:
    return {"faults": kinds, "most": 2}


QUICK: Final = (
    file("no fault", THREE),
    file("a shutdown at any moment", TWO, shutdown=True),
    live("no fault", LIVE_TWO),
    file("a late relay", TWO, shutdown=True, relay=True),
    file("two on one slot", ONE, scenarios=2, capacity=1),
    file("a poisonous frame", POISON),
    file("two poisonous frames, skipped", SKIPS, attempts=2, deployments=8),
    file("a fatal error", Source(frames=2, fatal=1)),
    *(
        make(kind, **once(kind))
        for make in (file, live)
        for kind in ("kill", "crash", "drain", "take-over", "lost", "copy", "stale", "re-read", "slip", "emptied")
    ),
    *(make(kind, ONE if make is file else LIVE, **once(kind)) for make in (file, live) for kind in ("away", "frozen")),
    file("kill, two runners", **once("kill"), runners=2),
    file("drain, two runners", **once("drain"), runners=2),
    file("deaf for ever, two runners", ONE, **once("deaf for ever"), runners=2),
    live("deaf for ever, two runners", **once("deaf for ever"), runners=2),
    file("restore", ONE, **once("restore")),
)
"""Each fault alone, on its smallest world: less than a minute."""

MIDDLE: Final = (
    file("cut off", **once("cut off")),
    live("cut off", **once("cut off")),
    file("deaf", ONE, **once("deaf")),
    live("deaf", **once("deaf")),
    file("lost twice", **twice("lost")),
    file("crash and drain", ONE, **twice("crash", "drain"), attempts=2),
    file("crash twice", **twice("crash"), attempts=2),
    live("restore", **once("restore")),
    file("restore, stopped", ONE, **once("restore"), shutdown=True),
    file("two on one slot, kill", ONE, scenarios=2, capacity=1, **once("kill")),
    live("emptied, kill", **twice("emptied", "kill")),
    live("lost twice", **twice("lost")),
    live("copy and crash", **twice("copy", "crash")),
    file("a late relay, slips", ONE, **twice("slip", "slip"), relay=True),
    file("silence and a crash", **twice("frozen", "crash"), attempts=2),
)
"""What takes some seconds each."""

PROCESSES: Final = ("kill", "crash", "drain", "take-over")
MESSAGES: Final = ("lost", "copy", "stale", "re-read", "emptied")
FULL: Final = (
    file("any fault but silence", TWO, **once(*PROCESSES, *MESSAGES, "slip", "away"), shutdown=True),
    live("any fault but silence, 2 frames", LIVE_TWO, **once(*PROCESSES, *MESSAGES, "slip", "away")),
    file("two faults of processes", TWO, **twice(*PROCESSES)),
    live("two faults of processes", LIVE, **twice(*PROCESSES)),
    file("two faults of messages", TWO, **twice(*MESSAGES)),
    live("two faults of messages", LIVE, **twice(*MESSAGES)),
    file("silence and a fault of a process", ONE, **twice("frozen", "kill", "take-over")),
    file("two runners, silence", ONE, **once("cut off", "frozen", "deaf"), runners=2),
    live("two runners, silence", LIVE, **once("cut off", "frozen", "deaf"), runners=2),
    file("two runners, two faults", ONE, **twice("kill", "drain", "crash"), runners=2),
    file("two on one slot, any process", ONE, **once(*PROCESSES, "copy", "lost"), scenarios=2, capacity=1),
    file("restore and a fault of a process", ONE, **twice("restore", "kill", "take-over")),
    file("restore, Kafka emptied", ONE, **twice("restore", "emptied")),
    live("restore, 2 frames", LIVE_TWO, **once("restore")),
    file("late relay, restore", ONE, **once("restore"), relay=True, shutdown=True),
    file("late relay, any message", ONE, **once(*MESSAGES, "slip"), relay=True, shutdown=True),
    file("poison, kill", POISON, **once("kill"), attempts=2, deployments=6),
)
"""Faults together: some minutes."""

ALL: Final = {world.name: world for world in (*QUICK, *MIDDLE, *FULL)}
