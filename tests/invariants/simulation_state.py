"""What the small world is made of: sources, tables, runners and their workers. Data alone; world.py moves it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

import msgspec

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.messages import Deploy, EndReason
from vidflow.domain.progress import Progress
from vidflow.domain.runner import RunnerState
from vidflow.domain.scenario import Kind, Scenario, State

PTS_STEP: Final = 10
"""Of a file, the pts of its kept frames lie this far apart."""
FATAL: Final = ErrorInfo("source_changed", "the file is another one now")


class SimulatedSource(msgspec.Struct, frozen=True):
    """What a scenario is to read: `frames` kept ones of a file, or a live stream without end. Workers crash at `poison`."""

    frames: int = 3
    live: bool = False
    poison: frozenset[int] = frozenset()
    skips: bool = False
    fatal: int | None = None


class HistoryRow(msgspec.Struct, frozen=True):
    """A row of the history."""

    before: State
    kind: Kind
    after: State
    epoch: int


class StoredFrame(msgspec.Struct, frozen=True):
    """A row of the results: what tells one moment of the source from another, and who stored it."""

    pts: int
    epoch: int


class OutboxRow(msgspec.Struct, frozen=True):
    """An unpublished row of the outbox."""

    runner: str
    key: str
    kind: str
    epoch: int
    command: bytes


@dataclass
class SimulatedDatabase:
    """The database. Its values are immutable, so a copy of the dicts is a backup."""

    scenarios: dict[str, Scenario] = field(default_factory=dict)
    due_s: dict[str, float] = field(default_factory=dict)
    history: dict[str, tuple[HistoryRow, ...]] = field(default_factory=dict)
    progress: dict[str, Progress] = field(default_factory=dict)
    rows: dict[str, tuple[StoredFrame, ...]] = field(default_factory=dict)
    gaps: dict[str, frozenset[tuple[int, float]]] = field(default_factory=dict)
    outbox: tuple[OutboxRow, ...] = ()
    positions: dict[str, tuple[int, int]] = field(default_factory=dict)
    caught_up: dict[str, tuple[int, float]] = field(default_factory=dict)
    losses_in_a_row: dict[str, int] = field(default_factory=dict)

    def backup(self) -> SimulatedDatabase:
        copy = replace(self)
        for name, value in vars(self).items():
            if isinstance(value, dict):
                setattr(copy, name, dict(value))
        return copy


class RunnerMode(StrEnum):
    """How a runner is: as it should be, without Kafka, frozen while its workers go on, or without ears."""

    HEALTHY = "well"
    CUT_OFF = "cut"
    FROZEN = "frozen"
    NOT_RECEIVING = "deaf"


@dataclass
class SimulatedWorker:
    """A process that reads its source from `source_index` (an index of kept frames; of a file) and numbers what it keeps."""

    uuid: str
    deploy: Deploy
    next_frame: int
    source_index: int
    finishing: EndReason | None = None
    end_sent: bool = False


@dataclass
class SimulatedRunner:
    """A runner process: its charge, its workers, and the commands that lie in the topic for it."""

    name: str
    charge: RunnerState
    workers: dict[str, SimulatedWorker] = field(default_factory=dict)
    commands: list[tuple[str, bytes]] = field(default_factory=list)
    mode: RunnerMode = RunnerMode.HEALTHY
    mode_since_s: float = 0.0
    reports: int = 0
    reported_s: float = -1.0
