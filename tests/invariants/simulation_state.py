"""The data of the simulation: sources, tables, runners and workers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

import msgspec

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.messages import Deploy, EndReason, Gap
from vidflow.domain.progress import Progress
from vidflow.domain.runner import RunnerState
from vidflow.domain.scenario import Kind, Scenario, State

PTS_STEP: Final = 10
"""Distance between the pts of a file's kept frames."""
FATAL: Final = ErrorInfo("source_changed", "the file has changed")


class SimulatedSource(msgspec.Struct, frozen=True):
    """The source of a scenario: a file of `frames` kept frames, or a live stream without end.

    Workers crash at the indexes in `poison` and fail with FATAL at the index `fatal`. `skips`: skip poisonous frames. `passes_over`: a live
    stream that ends after `frames` by the scenario's duration; workers may pass over frames, which they report as gaps.
    """

    frames: int = 3
    live: bool = False
    poison: frozenset[int] = frozenset()
    skips: bool = False
    fatal: int | None = None
    passes_over: bool = False


class HistoryRow(msgspec.Struct, frozen=True):
    """A row of the history."""

    before: State
    kind: Kind
    after: State
    epoch: int


class StoredFrame(msgspec.Struct, frozen=True):
    """A row of the results: the pts of the frame, and the epoch that stored it."""

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
    """The database. Its values are immutable, so copying the dicts makes a backup."""

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
    """The condition of a runner: healthy, cut off from Kafka, frozen while its workers continue, or not receiving commands."""

    HEALTHY = "well"
    CUT_OFF = "cut"
    FROZEN = "frozen"
    NOT_RECEIVING = "deaf"


@dataclass
class SimulatedWorker:
    """A worker process. `source_index` is the index of the next kept frame in a file, `next_frame` the number that it gets.

    `gaps`: what it has to report with its next frame or end marker.
    """

    uuid: str
    deploy: Deploy
    next_frame: int
    source_index: int
    finishing: EndReason | None = None
    end_sent: bool = False
    gaps: tuple[Gap, ...] = ()


@dataclass
class SimulatedRunner:
    """A runner process: its state, its workers, and the commands in its topic that it has not read."""

    name: str
    state: RunnerState
    workers: dict[str, SimulatedWorker] = field(default_factory=dict)
    commands: list[tuple[str, bytes]] = field(default_factory=list)
    mode: RunnerMode = RunnerMode.HEALTHY
    mode_since_s: float = 0.0
    reports: int = 0
    reported_s: float = -1.0
