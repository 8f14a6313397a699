"""The worlds to explore, each with its faults, and small enough for every state to be visited."""

from __future__ import annotations

from typing import Final

from tests.explorer.state import WorldConfig
from tests.invariants.simulation_state import SimulatedSource

ONE, TWO, THREE = SimulatedSource(frames=1), SimulatedSource(frames=2), SimulatedSource(frames=3)
LIVE, LIVE_TWO = SimulatedSource(frames=1, live=True), SimulatedSource(frames=2, live=True)
LIMITED = SimulatedSource(frames=2, passes_over=True)
POISON = SimulatedSource(frames=2, poison=frozenset({1}))
SKIPS = SimulatedSource(frames=3, poison=frozenset({0, 1}), skips=True)

SMALL_FAULTS: Final = (
    "kill",
    "crash",
    "drain",
    "takeover",
    "lost command",
    "copied command",
    "stale report",
    "re-read",
    "delay",
    "Kafka emptied",
    "dead letter",
)
"""Faults that lead to few further states."""

QUICK: Final = (
    WorldConfig("file, no fault", THREE),
    WorldConfig("file, shutdown at any moment", TWO, shutdown=True),
    WorldConfig("live, no fault", LIVE_TWO),
    WorldConfig("file, slow relay", TWO, shutdown=True, relay_can_lag=True),
    WorldConfig("file, two on one slot", ONE, scenarios=2, capacity=1),
    WorldConfig("file, poison frame", POISON),
    WorldConfig("file, two poison frames, skipped", SKIPS, attempts=2, max_deployments=8),
    WorldConfig("file, fatal error", SimulatedSource(frames=2, fatal=1)),
    *(WorldConfig(f"file, {kind}", TWO, faults=(kind,)) for kind in SMALL_FAULTS),
    *(WorldConfig(f"live, {kind}", LIVE, faults=(kind,)) for kind in SMALL_FAULTS),
    WorldConfig("live with an end, no fault", LIMITED),
    *(WorldConfig(f"live with an end, {kind}", LIMITED, faults=(kind,)) for kind in ("crash", "re-read")),
    WorldConfig("file, late write", TWO, shutdown=True, faults=("late write",)),
    WorldConfig("live, late write", LIVE, faults=("late write",)),
    WorldConfig("file, partial write", TWO, shutdown=True, faults=("partial write",)),
    WorldConfig("live, partial write", LIVE, faults=("partial write",)),
    WorldConfig("file, Kafka unreachable", ONE, faults=("Kafka unreachable",)),
    WorldConfig("file, frozen", ONE, faults=("frozen",)),
    WorldConfig("file, kill, two runners", TWO, runners=2, faults=("kill",)),
    WorldConfig("file, never receiving, two runners", ONE, runners=2, faults=("never receiving",)),
    WorldConfig("live, never receiving, two runners", LIVE, runners=2, faults=("never receiving",)),
    WorldConfig("file, restore", ONE, faults=("restore",)),
)
"""Each fault alone in its smallest world: less than a minute on one core."""

SLOWEST_QUICK: Final = frozenset({"file, frozen", "file, restore"})
"""Those of QUICK that take a quarter of its time. They run with the longer suites."""

MIDDLE: Final = (
    WorldConfig("file, cut off", ONE, faults=("cut off",)),
    WorldConfig("live, Kafka unreachable", LIVE, faults=("Kafka unreachable",)),
    WorldConfig("live, frozen", LIVE, faults=("frozen",)),
    WorldConfig("file, not receiving", ONE, faults=("not receiving",), max_deployments=2),
    WorldConfig("file, drain, two runners", TWO, runners=2, faults=("drain",)),
    WorldConfig("file, lost command twice", TWO, faults=("lost command",), max_faults=2),
    WorldConfig("live, lost command twice", LIVE, faults=("lost command",), max_faults=2),
    WorldConfig("file, crash and drain", ONE, attempts=2, faults=("crash", "drain"), max_faults=2),
    WorldConfig("file, crash twice", TWO, attempts=2, faults=("crash",), max_faults=2),
    *(
        WorldConfig(f"live with an end, {kind}", LIMITED, faults=(kind,))
        for kind in ("kill", "drain", "takeover", "Kafka emptied", "dead letter", "topics recreated")
    ),
    WorldConfig("live with an end, shutdown, crash", LIMITED, shutdown=True, faults=("crash",)),
    WorldConfig("live, copied command and crash", LIVE, faults=("copied command", "crash"), max_faults=2),
    WorldConfig("file, topics recreated", TWO, faults=("topics recreated",)),
    WorldConfig("live, topics recreated", LIVE, faults=("topics recreated",)),
    WorldConfig("file, drain, grace period over", ONE, faults=("drain", "grace period over"), max_faults=2),
    WorldConfig("live, restore", LIVE, faults=("restore",)),
    WorldConfig("file, restore, stopped", ONE, shutdown=True, faults=("restore",)),
)
"""Worlds that take a few seconds each."""

PROCESS_FAULTS: Final = ("kill", "crash", "drain", "takeover")
MESSAGE_FAULTS: Final = ("lost command", "copied command", "stale report", "re-read", "Kafka emptied")
SILENCE_FAULTS: Final = ("cut off", "frozen", "not receiving")
FULL: Final = (
    WorldConfig("file, frozen and crash", ONE, attempts=2, faults=("frozen", "crash"), max_faults=2),
    WorldConfig("live, drain, grace period over", LIVE, faults=("drain", "grace period over"), max_faults=2),
    WorldConfig("live, not receiving", LIVE, faults=("not receiving",), max_deployments=3),
    WorldConfig("file, slow relay, delays", ONE, relay_can_lag=True, faults=("delay",), max_faults=2),
    WorldConfig("file, two on one slot, kill", ONE, scenarios=2, capacity=1, faults=("kill",)),
    WorldConfig("live, Kafka emptied and kill", LIVE, faults=("Kafka emptied", "kill"), max_faults=2),
    WorldConfig("file, late write and kill", ONE, shutdown=True, faults=("late write", "kill"), max_faults=2),
    WorldConfig("file, late write and frozen", ONE, faults=("late write", "frozen"), max_faults=2),
    WorldConfig("live, cut off", LIVE, faults=("cut off",)),
    WorldConfig(
        "file, any fault but silence",
        TWO,
        shutdown=True,
        faults=(*PROCESS_FAULTS, *MESSAGE_FAULTS, "delay", "Kafka unreachable"),
    ),
    WorldConfig(
        "live, any fault but silence, 2 frames",
        LIVE_TWO,
        faults=(*PROCESS_FAULTS, *MESSAGE_FAULTS, "delay", "Kafka unreachable"),
    ),
    WorldConfig("file, two process faults", TWO, faults=PROCESS_FAULTS, max_faults=2),
    WorldConfig("live, two process faults", LIVE, faults=PROCESS_FAULTS, max_faults=2),
    WorldConfig("file, two message faults", TWO, faults=MESSAGE_FAULTS, max_faults=2),
    WorldConfig("live, two message faults", LIVE, faults=MESSAGE_FAULTS, max_faults=2),
    WorldConfig("file, silence and a process fault", ONE, faults=("frozen", "kill", "takeover"), max_faults=2),
    WorldConfig("file, two runners, silence", ONE, runners=2, faults=SILENCE_FAULTS),
    WorldConfig("live, two runners, silence", LIVE, runners=2, faults=SILENCE_FAULTS),
    WorldConfig("file, two runners, two faults", ONE, runners=2, faults=("kill", "drain", "crash"), max_faults=2),
    WorldConfig(
        "file, two on one slot, process faults",
        ONE,
        scenarios=2,
        capacity=1,
        faults=(*PROCESS_FAULTS, "copied command", "lost command"),
    ),
    WorldConfig("file, restore and a process fault", ONE, faults=("restore", "kill", "takeover"), max_faults=2),
    WorldConfig("file, restore and Kafka emptied", ONE, faults=("restore", "Kafka emptied"), max_faults=2),
    WorldConfig("live, restore, 2 frames", LIVE_TWO, faults=("restore",)),
    WorldConfig("file, slow relay, restore", ONE, shutdown=True, relay_can_lag=True, faults=("restore",)),
    WorldConfig(
        "file, slow relay, message faults", ONE, shutdown=True, relay_can_lag=True, faults=(*MESSAGE_FAULTS, "delay")
    ),
    WorldConfig("file, poison frame and kill", POISON, attempts=2, max_deployments=6, faults=("kill",)),
)
"""Combined faults and larger worlds: some minutes."""

WORLDS: Final = {world.name: world for world in (*QUICK, *MIDDLE, *FULL)}
