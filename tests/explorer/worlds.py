"""The sizes that are explored: small enough to see every state of, each with the faults that it is about."""

from __future__ import annotations

from typing import Final

from tests.explorer.state import World
from tests.invariants.parts import Source

ONE, TWO, THREE = Source(frames=1), Source(frames=2), Source(frames=3)
LIVE, LIVE_TWO = Source(frames=1, live=True), Source(frames=2, live=True)
POISON = Source(frames=2, poison=frozenset({1}))
SKIPS = Source(frames=3, poison=frozenset({0, 1}), skips=True)

SMALL_FAULTS: Final = (
    "kill",
    "crash",
    "drain",
    "take-over",
    "lost",
    "copy",
    "stale",
    "re-read",
    "slip",
    "emptied",
    "dead letter",
)
"""Faults behind which not many states lie."""

QUICK: Final = (
    World("file, no fault", THREE),
    World("file, a shutdown at any moment", TWO, shutdown=True),
    World("live, no fault", LIVE_TWO),
    World("file, a late relay", TWO, shutdown=True, relay=True),
    World("file, two on one slot", ONE, scenarios=2, capacity=1),
    World("file, a poisonous frame", POISON),
    World("file, two poisonous frames, skipped", SKIPS, attempts=2, deployments=8),
    World("file, a fatal error", Source(frames=2, fatal=1)),
    *(World(f"file, {kind}", TWO, faults=(kind,)) for kind in SMALL_FAULTS),
    *(World(f"live, {kind}", LIVE, faults=(kind,)) for kind in SMALL_FAULTS),
    World("file, late write", TWO, shutdown=True, faults=("late write",)),
    World("live, late write", LIVE, faults=("late write",)),
    World("file, short write", TWO, shutdown=True, faults=("short write",)),
    World("live, short write", LIVE, faults=("short write",)),
    World("file, away", ONE, faults=("away",)),
    World("file, frozen", ONE, faults=("frozen",)),
    World("file, kill, two runners", TWO, runners=2, faults=("kill",)),
    World("file, deaf for ever, two runners", ONE, runners=2, faults=("deaf for ever",)),
    World("live, deaf for ever, two runners", LIVE, runners=2, faults=("deaf for ever",)),
    World("file, restore", ONE, faults=("restore",)),
)
"""Each fault alone, on its smallest world: less than a minute on one core."""

MIDDLE: Final = (
    World("file, cut off", ONE, faults=("cut off",)),
    World("live, away", LIVE, faults=("away",)),
    World("live, frozen", LIVE, faults=("frozen",)),
    World("file, deaf", ONE, faults=("deaf",), deployments=2),
    World("file, drain, two runners", TWO, runners=2, faults=("drain",)),
    World("file, lost twice", TWO, faults=("lost",), most=2),
    World("live, lost twice", LIVE, faults=("lost",), most=2),
    World("file, crash and drain", ONE, attempts=2, faults=("crash", "drain"), most=2),
    World("file, crash twice", TWO, attempts=2, faults=("crash",), most=2),
    World("live, copy and crash", LIVE, faults=("copy", "crash"), most=2),
    World("file, topics made anew", TWO, faults=("anew",)),
    World("live, topics made anew", LIVE, faults=("anew",)),
    World("file, drain, its grace over", ONE, faults=("drain", "grace over"), most=2),
    World("live, restore", LIVE, faults=("restore",)),
    World("file, restore, stopped", ONE, shutdown=True, faults=("restore",)),
)
"""What takes some seconds each."""

PROCESSES: Final = ("kill", "crash", "drain", "take-over")
MESSAGES: Final = ("lost", "copy", "stale", "re-read", "emptied")
SILENCE: Final = ("cut off", "frozen", "deaf")
FULL: Final = (
    World("file, silence and a crash", ONE, attempts=2, faults=("frozen", "crash"), most=2),
    World("live, drain, its grace over", LIVE, faults=("drain", "grace over"), most=2),
    World("live, deaf", LIVE, faults=("deaf",), deployments=3),
    World("file, a late relay, slips", ONE, relay=True, faults=("slip",), most=2),
    World("file, two on one slot, kill", ONE, scenarios=2, capacity=1, faults=("kill",)),
    World("live, emptied and kill", LIVE, faults=("emptied", "kill"), most=2),
    World("file, late write and kill", ONE, shutdown=True, faults=("late write", "kill"), most=2),
    World("file, late write and frozen", ONE, faults=("late write", "frozen"), most=2),
    World("live, cut off", LIVE, faults=("cut off",)),
    World("file, any fault but silence", TWO, shutdown=True, faults=(*PROCESSES, *MESSAGES, "slip", "away")),
    World("live, any fault but silence, 2 frames", LIVE_TWO, faults=(*PROCESSES, *MESSAGES, "slip", "away")),
    World("file, two faults of processes", TWO, faults=PROCESSES, most=2),
    World("live, two faults of processes", LIVE, faults=PROCESSES, most=2),
    World("file, two faults of messages", TWO, faults=MESSAGES, most=2),
    World("live, two faults of messages", LIVE, faults=MESSAGES, most=2),
    World("file, silence and a fault of a process", ONE, faults=("frozen", "kill", "take-over"), most=2),
    World("file, two runners, silence", ONE, runners=2, faults=SILENCE),
    World("live, two runners, silence", LIVE, runners=2, faults=SILENCE),
    World("file, two runners, two faults", ONE, runners=2, faults=("kill", "drain", "crash"), most=2),
    World("file, two on one slot, any process", ONE, scenarios=2, capacity=1, faults=(*PROCESSES, "copy", "lost")),
    World("file, restore and a fault of a process", ONE, faults=("restore", "kill", "take-over"), most=2),
    World("file, restore and Kafka emptied", ONE, faults=("restore", "emptied"), most=2),
    World("live, restore, 2 frames", LIVE_TWO, faults=("restore",)),
    World("file, a late relay, restore", ONE, shutdown=True, relay=True, faults=("restore",)),
    World("file, a late relay, any message", ONE, shutdown=True, relay=True, faults=(*MESSAGES, "slip")),
    World("file, poison and kill", POISON, attempts=2, deployments=6, faults=("kill",)),
)
"""Faults together, and larger sizes: some minutes."""

ALL: Final = {world.name: world for world in (*QUICK, *MIDDLE, *FULL)}
