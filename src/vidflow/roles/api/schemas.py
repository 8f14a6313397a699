"""What travels over HTTP: the bodies of requests and answers. Not what becomes of them.

A description here is both the OpenAPI document's and, for a request's field, the hint that a refusal gives.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from vidflow.domain.detections import FrameResult
from vidflow.domain.errors import ErrorInfo
from vidflow.domain.frame_rate import MAX_FRAME_RATE_CHARACTERS
from vidflow.domain.messages import MAX_POOL_CHARACTERS, Parameters
from vidflow.domain.scenario import DEFAULT_POOL, Outcome, Skip, State
from vidflow.domain.waiting import WaitingFor
from vidflow.infra.postgres.gaps import StoredGap
from vidflow.infra.postgres.history import Transition

MAX_SOURCE_CHARACTERS = 4096

SourceField = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_SOURCE_CHARACTERS,
        description="a local file's path (absolute, or under the server's media root) or a URL that begins with http, https, rtsp or rtsps",
        examples=["/videos/bikes.mp4", "rtsp://camera.example/stream"],
    ),
]
ModelField = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_SOURCE_CHARACTERS,
        description="a registered model's name (see /models), the path of a spec, or a weights file that carries its own",
        examples=["motion"],
    ),
]
FpsField = Annotated[
    float | Annotated[str, Meta(max_length=MAX_FRAME_RATE_CHARACTERS)] | None,
    Meta(
        description='frames a second to keep: a number above 0 and up to 1000, a fraction or decimal number as text ("30000/1001"), '
        '"all", or null for the server\'s own setting',
        examples=[2, "30000/1001", "all"],
    ),
]
PriorityField = Annotated[
    int,
    Meta(
        ge=-100, le=100, description="a whole number from -100 to 100: of the waiting scenarios, the higher goes first"
    ),
]


PoolField = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_POOL_CHARACTERS,
        pattern=r"^[A-Za-z0-9._-]+$(?!\n)",  # as domain/messages.py, check_pool
        description="the pool of runners that is to run it: letters, digits, '.', '_' and '-'; the operator says which there are",
        examples=["default", "gpu"],
    ),
]


class InitScenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request for a scenario."""

    source: SourceField
    model: ModelField
    fps: FpsField = None
    priority: PriorityField = 0
    pool: PoolField = DEFAULT_POOL
    parameters: Annotated[
        Parameters,
        Meta(
            description="score_threshold (0 to 1, or null), labels (names to keep, or null for all), on_poison (fail or skip)"
        ),
    ] = Parameters()


class ScenarioResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario as it stands. `frames_stored` can be read already; `waiting_for` tells why nothing moves."""

    scenario_uuid: str
    source: Annotated[
        str, Meta(description="as it was asked for, a file under the media root relative to it; without credentials")
    ]
    model: str
    fps: Annotated[
        int | float | str,
        Meta(
            description="frames a second that are kept, exactly: a number, a fraction in lowest terms where no number is exact "
            '("30000/1001"), or "all"'
        ),
    ]
    priority: int
    parameters: Parameters
    state: State
    outcome: Annotated[Outcome | None, Meta(description="how it ended; null until the shutdown begins")]
    error: Annotated[ErrorInfo | None, Meta(description="set with the outcome failed, only")]
    epoch: Annotated[int, Meta(description="the number of the last deployment; 0: never deployed")]
    attempt: Annotated[int, Meta(description="losses in a row at the present frame")]
    runner: str | None
    pool: Annotated[str, Meta(description="the pool of runners that is to run it")]
    resume_frame: int
    frames_stored: int
    frames_expected: Annotated[int | None, Meta(description="null until the source is open, and where nobody knows")]
    waiting_for: WaitingFor | None
    created_at: datetime.datetime
    state_changed_at: datetime.datetime
    skips: tuple[Skip, ...]


class ScenarioPage(msgspec.Struct, frozen=True):
    """Scenarios, the newest first. `next` is the cursor to pass as `after`; null on the last page."""

    items: list[ScenarioResponse]
    next: str | None


class HistoryPage(msgspec.Struct, frozen=True):
    """Moves of a scenario, the first first. `next` is the cursor to pass as `after`; null on the last page."""

    items: list[Transition]
    next: str | None


class GapPage(msgspec.Struct, frozen=True):
    """Gaps of a scenario, in the order of the video. `next` is the cursor to pass as `after`; null on the last page."""

    items: list[StoredGap]
    next: str | None


class PredictionPage(msgspec.Struct, frozen=True):
    """Results in the order of frame numbers.

    `next` is the cursor to pass as `after`, until `complete`: then no row will ever follow, and it is null.
    """

    items: list[FrameResult]
    next: str | None
    complete: bool


class Health(msgspec.Struct, frozen=True):
    """The answer of a check that passed."""

    status: Literal["ok"] = "ok"


class RelayLag(msgspec.Struct, frozen=True):
    """How far the relay is behind: messages that wait for Kafka (10000: at least as many), and how long the first of them has."""

    waiting: int
    oldest_s: float


class PoolHealth(msgspec.Struct, frozen=True):
    """A pool of runners: how many are alive, their slots, how many of these are in use, and how many scenarios wait (1000: at
    least as many)."""

    pool: str
    runners: int
    slots: int
    used: int
    waiting: int


class SystemHealth(msgspec.Struct, frozen=True, kw_only=True):
    """A vidflow that can run scenarios. `degraded`: not all of them, since scenarios wait in `empty_pools`, which have no runner."""

    status: Literal["ok", "degraded"]
    relay_lag: RelayLag
    pools: list[PoolHealth]
    empty_pools: list[str]


class FieldProblem(msgspec.Struct, frozen=True):
    """What is wrong with one field of a request."""

    field: str
    message: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a request was not carried out (RFC 9457). `code` is for programs, `detail` for people."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldProblem] = []
    missing: list[str] = []
    models: list[str] = []
    error_id: str | None = None
    relay_lag: RelayLag | None = None


class ModelInfo(msgspec.Struct, frozen=True):
    """A model that can be asked for by name. `needs` is the extra that its runner needs; `error`: why it cannot be used as it is."""

    name: str
    kind: str
    needs: str | None
    error: str | None


class ModelList(msgspec.Struct, frozen=True):
    """All models that can be asked for by name."""

    items: list[ModelInfo]
