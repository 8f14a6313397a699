"""What the small world is made of: sources, tables, runners and their workers. Data alone; world.py moves it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

import msgspec

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.messages import Deploy, EndReason
from vidflow.domain.progress import Progress
from vidflow.domain.runner import Charge
from vidflow.domain.scenario import Kind, Scenario, State

PTS: Final = 10
"""Of a file, the pts of its kept frames lie this far apart."""
FATAL: Final = ErrorInfo("source_changed", "the file is another one now")


class Source(msgspec.Struct, frozen=True):
    """What a scenario is to read: `frames` kept ones of a file, or a live stream without end. Workers crash at `poison`."""

    frames: int = 3
    live: bool = False
    poison: frozenset[int] = frozenset()
    skips: bool = False
    fatal: int | None = None


class Move(msgspec.Struct, frozen=True):
    """A row of the history."""

    before: State
    kind: Kind
    after: State
    epoch: int


class Stored(msgspec.Struct, frozen=True):
    """A row of the results: what tells one moment of the source from another, and who stored it."""

    pts: int
    epoch: int


class Waits(msgspec.Struct, frozen=True):
    """An unpublished row of the outbox."""

    runner: str
    key: str
    kind: str
    epoch: int
    command: bytes


@dataclass
class Tables:
    """The database. Its values are immutable, so a copy of the dicts is a backup."""

    scenarios: dict[str, Scenario] = field(default_factory=dict)
    due_s: dict[str, float] = field(default_factory=dict)
    history: dict[str, tuple[Move, ...]] = field(default_factory=dict)
    progress: dict[str, Progress] = field(default_factory=dict)
    rows: dict[str, tuple[Stored, ...]] = field(default_factory=dict)
    gaps: dict[str, frozenset[tuple[int, float]]] = field(default_factory=dict)
    outbox: tuple[Waits, ...] = ()
    positions: dict[str, tuple[int, int]] = field(default_factory=dict)
    caught_up: dict[str, tuple[int, float]] = field(default_factory=dict)
    losses_in_a_row: dict[str, int] = field(default_factory=dict)

    def backup(self) -> Tables:
        copy = replace(self)
        for name, value in vars(self).items():
            if isinstance(value, dict):
                setattr(copy, name, dict(value))
        return copy


class Mode(StrEnum):
    """How a runner is: as it should be, without Kafka, frozen while its workers go on, or without ears."""

    WELL = "well"
    CUT = "cut"
    FROZEN = "frozen"
    DEAF = "deaf"


@dataclass
class Worker:
    """A process that reads its source from `at` (an index of kept frames; of a file) and numbers what it keeps."""

    uuid: str
    deploy: Deploy
    number: int
    at: int
    finishing: EndReason | None = None
    said_end: bool = False


@dataclass
class Runner:
    """A runner process: its charge, its workers, and the commands that lie in the topic for it."""

    name: str
    charge: Charge
    workers: dict[str, Worker] = field(default_factory=dict)
    commands: list[tuple[str, bytes]] = field(default_factory=list)
    mode: Mode = Mode.WELL
    mode_since_s: float = 0.0
    reports: int = 0
    reported_s: float = -1.0
