"""The sizes that are explored: small enough to see every state of, each with the faults that it is about."""

from __future__ import annotations

from typing import Final

from tests.explorer.state import WorldConfig
from tests.invariants.simulation_state import SimulatedSource

ONE, TWO, THREE = SimulatedSource(frames=1), SimulatedSource(frames=2), SimulatedSource(frames=3)
LIVE, LIVE_TWO = SimulatedSource(frames=1, live=True), SimulatedSource(frames=2, live=True)
POISON = SimulatedSource(frames=2, poison=frozenset({1}))
SKIPS = SimulatedSource(frames=3, poison=frozenset({0, 1}), skips=True)

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
    WorldConfig("file, no fault", THREE),
    WorldConfig("file, a shutdown at any moment", TWO, shutdown=True),
    WorldConfig("live, no fault", LIVE_TWO),
    WorldConfig("file, a late relay", TWO, shutdown=True, relay_can_lag=True),
    WorldConfig("file, two on one slot", ONE, scenarios=2, capacity=1),
    WorldConfig("file, a poisonous frame", POISON),
    WorldConfig("file, two poisonous frames, skipped", SKIPS, attempts=2, max_deployments=8),
    WorldConfig("file, a fatal error", SimulatedSource(frames=2, fatal=1)),
    *(WorldConfig(f"file, {kind}", TWO, faults=(kind,)) for kind in SMALL_FAULTS),
    *(WorldConfig(f"live, {kind}", LIVE, faults=(kind,)) for kind in SMALL_FAULTS),
    WorldConfig("file, late write", TWO, shutdown=True, faults=("late write",)),
    WorldConfig("live, late write", LIVE, faults=("late write",)),
    WorldConfig("file, short write", TWO, shutdown=True, faults=("short write",)),
    WorldConfig("live, short write", LIVE, faults=("short write",)),
    WorldConfig("file, away", ONE, faults=("away",)),
    WorldConfig("file, frozen", ONE, faults=("frozen",)),
    WorldConfig("file, kill, two runners", TWO, runners=2, faults=("kill",)),
    WorldConfig("file, deaf for ever, two runners", ONE, runners=2, faults=("deaf for ever",)),
    WorldConfig("live, deaf for ever, two runners", LIVE, runners=2, faults=("deaf for ever",)),
    WorldConfig("file, restore", ONE, faults=("restore",)),
)
"""Each fault alone, on its smallest world: less than a minute on one core."""

MIDDLE: Final = (
    WorldConfig("file, cut off", ONE, faults=("cut off",)),
    WorldConfig("live, away", LIVE, faults=("away",)),
    WorldConfig("live, frozen", LIVE, faults=("frozen",)),
    WorldConfig("file, deaf", ONE, faults=("deaf",), max_deployments=2),
    WorldConfig("file, drain, two runners", TWO, runners=2, faults=("drain",)),
    WorldConfig("file, lost twice", TWO, faults=("lost",), max_faults=2),
    WorldConfig("live, lost twice", LIVE, faults=("lost",), max_faults=2),
    WorldConfig("file, crash and drain", ONE, attempts=2, faults=("crash", "drain"), max_faults=2),
    WorldConfig("file, crash twice", TWO, attempts=2, faults=("crash",), max_faults=2),
    WorldConfig("live, copy and crash", LIVE, faults=("copy", "crash"), max_faults=2),
    WorldConfig("file, topics made anew", TWO, faults=("anew",)),
    WorldConfig("live, topics made anew", LIVE, faults=("anew",)),
    WorldConfig("file, drain, its grace over", ONE, faults=("drain", "grace over"), max_faults=2),
    WorldConfig("live, restore", LIVE, faults=("restore",)),
    WorldConfig("file, restore, stopped", ONE, shutdown=True, faults=("restore",)),
)
"""What takes some seconds each."""

PROCESS_FAULTS: Final = ("kill", "crash", "drain", "take-over")
MESSAGE_FAULTS: Final = ("lost", "copy", "stale", "re-read", "emptied")
SILENCE_FAULTS: Final = ("cut off", "frozen", "deaf")
FULL: Final = (
    WorldConfig("file, silence and a crash", ONE, attempts=2, faults=("frozen", "crash"), max_faults=2),
    WorldConfig("live, drain, its grace over", LIVE, faults=("drain", "grace over"), max_faults=2),
    WorldConfig("live, deaf", LIVE, faults=("deaf",), max_deployments=3),
    WorldConfig("file, a late relay, slips", ONE, relay_can_lag=True, faults=("slip",), max_faults=2),
    WorldConfig("file, two on one slot, kill", ONE, scenarios=2, capacity=1, faults=("kill",)),
    WorldConfig("live, emptied and kill", LIVE, faults=("emptied", "kill"), max_faults=2),
    WorldConfig("file, late write and kill", ONE, shutdown=True, faults=("late write", "kill"), max_faults=2),
    WorldConfig("file, late write and frozen", ONE, faults=("late write", "frozen"), max_faults=2),
    WorldConfig("live, cut off", LIVE, faults=("cut off",)),
    WorldConfig(
        "file, any fault but silence", TWO, shutdown=True, faults=(*PROCESS_FAULTS, *MESSAGE_FAULTS, "slip", "away")
    ),
    WorldConfig(
        "live, any fault but silence, 2 frames", LIVE_TWO, faults=(*PROCESS_FAULTS, *MESSAGE_FAULTS, "slip", "away")
    ),
    WorldConfig("file, two faults of processes", TWO, faults=PROCESS_FAULTS, max_faults=2),
    WorldConfig("live, two faults of processes", LIVE, faults=PROCESS_FAULTS, max_faults=2),
    WorldConfig("file, two faults of messages", TWO, faults=MESSAGE_FAULTS, max_faults=2),
    WorldConfig("live, two faults of messages", LIVE, faults=MESSAGE_FAULTS, max_faults=2),
    WorldConfig("file, silence and a fault of a process", ONE, faults=("frozen", "kill", "take-over"), max_faults=2),
    WorldConfig("file, two runners, silence", ONE, runners=2, faults=SILENCE_FAULTS),
    WorldConfig("live, two runners, silence", LIVE, runners=2, faults=SILENCE_FAULTS),
    WorldConfig("file, two runners, two faults", ONE, runners=2, faults=("kill", "drain", "crash"), max_faults=2),
    WorldConfig(
        "file, two on one slot, any process", ONE, scenarios=2, capacity=1, faults=(*PROCESS_FAULTS, "copy", "lost")
    ),
    WorldConfig("file, restore and a fault of a process", ONE, faults=("restore", "kill", "take-over"), max_faults=2),
    WorldConfig("file, restore and Kafka emptied", ONE, faults=("restore", "emptied"), max_faults=2),
    WorldConfig("live, restore, 2 frames", LIVE_TWO, faults=("restore",)),
    WorldConfig("file, a late relay, restore", ONE, shutdown=True, relay_can_lag=True, faults=("restore",)),
    WorldConfig(
        "file, a late relay, any message", ONE, shutdown=True, relay_can_lag=True, faults=(*MESSAGE_FAULTS, "slip")
    ),
    WorldConfig("file, poison and kill", POISON, attempts=2, max_deployments=6, faults=("kill",)),
)
"""Faults together, and larger sizes: some minutes."""

WORLDS: Final = {world.name: world for world in (*QUICK, *MIDDLE, *FULL)}
