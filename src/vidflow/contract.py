"""The bodies of the HTTP API's requests and responses, shared by the server and its clients.

Rows, messages and domain Structs are not part of the contract, although some have the same name: roles/api/bodies.py builds each
body field by field. Only enumerations and limits come from the domain. The descriptions appear in the OpenAPI document. Those of
request fields also appear in errors, as the allowed values.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from vidflow.domain.access import LOCAL_OWNER
from vidflow.domain.detections import MAX_KEYPOINTS, MAX_LABEL_CHARACTERS
from vidflow.domain.frame_rate import FASTEST_RATE, MAX_FRAME_RATE_CHARACTERS
from vidflow.domain.messages import (
    DEFAULT_FOLLOW_S,
    MAX_LABELS,
    MAX_SAFE_INTEGER,
    CaptureClock,
    CorruptPolicy,
    DurationSeconds,
    EndTime,
    FollowSeconds,
    GiveUpSeconds,
    PoisonPolicy,
    StreamIndex,
)
from vidflow.domain.scenario import DEFAULT_MODEL, DEFAULT_POOL, Outcome, State
from vidflow.domain.topics import MAX_POOL_CHARACTERS
from vidflow.domain.waiting import WaitingFor
from vidflow.domain.warnings import WarningCode

MAX_SOURCE_CHARACTERS = 4096

Coordinate = Annotated[float, Meta(ge=0.0, le=65535.0)]
OuterCoordinate = Annotated[float, Meta(ge=-65535.0, le=131070.0)]
Dimension = Annotated[int, Meta(ge=1, le=65535)]
StorableText = Annotated[str, Meta(pattern=r"\A[^\x00]*\Z")]
SourceField = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_SOURCE_CHARACTERS,
        description="the path of a local file (absolute, or relative to the server's media root), a URL (http, https, rtsp, rtsps, rtmp, "
        "rtmps or udp), a camera that the server allows (/dev/video0), or, with --any-file, a sample clip: sample:bikes, "
        "sample:bigbuckbunny or sample:carphone",
        examples=["/videos/bikes.mp4", "rtsp://camera.example/stream"],
    ),
]
ModelField = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_SOURCE_CHARACTERS,
        description="the name of a registered model (see /models), or the path of a spec or of an ONNX file; "
        "without it, the model that comes with vidflow",
        examples=["yolox_nano", "motion"],
    ),
]
FpsField = Annotated[
    Annotated[float, Meta(gt=0, le=float(FASTEST_RATE))]
    | Annotated[str, Meta(max_length=MAX_FRAME_RATE_CHARACTERS)]
    | None,
    Meta(
        description="frames per second to keep: a number above 0 and up to 1000, a fraction or decimal number as text "
        '("30000/1001"), "all", or null for the server\'s default',
        examples=[2, "30000/1001", "all"],
    ),
]
PriorityField = Annotated[
    int,
    Meta(
        ge=-100, le=100, description="a whole number from -100 to 100; waiting scenarios of higher priority start first"
    ),
]


PoolField = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_POOL_CHARACTERS,
        pattern=r"^[A-Za-z0-9._-]+$(?!\n)",  # as domain/topics.py, check_pool
        description="the name of the runner pool that runs it: letters, digits, '.', '_' and '-'; the operator sets up the pools",
        examples=["default", "gpu"],
    ),
]


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The optional parameters of a scenario.

    `score_threshold`: drop detections below it (null: the model's default). `labels`: keep only these (null: all).
    `on_poison`: whether a frame at which every attempt fails ends the scenario, or is a gap. `on_corrupt`: whether frames that
    are damaged in the source are kept with a mark, or are a gap. `follow`: read a growing local file until it has been still for
    `follow_s` seconds. `duration_s`: complete the scenario so many seconds after its first frame, by `time_s`; null: no limit.
    `end_at`: complete a live scenario at this time (RFC 3339, such as 2026-12-24T18:00:00Z); null: never. `give_up_after_s`: fail a
    live scenario with the source's error after so many seconds without a frame; null: never. `stream`: which of the source's video
    streams to read, the first is 0; null: the default one or the largest. `live`: read an HTTP source from now on until the scenario
    is shut down, or from its beginning to its end; null: as the source shows.
    """

    score_threshold: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    labels: (
        Annotated[
            tuple[Annotated[str, Meta(min_length=1, max_length=MAX_LABEL_CHARACTERS)], ...], Meta(max_length=MAX_LABELS)
        ]
        | None
    ) = None
    on_poison: PoisonPolicy = PoisonPolicy.FAIL
    on_corrupt: CorruptPolicy = CorruptPolicy.KEEP
    follow: bool = False
    follow_s: FollowSeconds = DEFAULT_FOLLOW_S
    duration_s: DurationSeconds | None = None
    end_at: EndTime | None = None
    give_up_after_s: GiveUpSeconds | None = None
    stream: StreamIndex | None = None
    live: bool | None = None


class InitScenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request to create a scenario."""

    source: SourceField
    model: ModelField = DEFAULT_MODEL
    fps: FpsField = None
    priority: PriorityField = 0
    pool: PoolField = DEFAULT_POOL
    parameters: Annotated[
        Parameters,
        Meta(
            description="score_threshold (0 to 1, or null), labels (names to keep, or null for all), on_poison (fail or skip), "
            "on_corrupt (keep or skip), follow (read a growing file on), follow_s (until it has been still for so many seconds), "
            "duration_s (end so long after the first frame), for live sources end_at (end at this time) and give_up_after_s (fail "
            "after so long without a frame), stream (which video stream to read) and live (whether an HTTP source has no end, or null to "
            "find out)"
        ),
    ] = Parameters()


class ChangeScenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request to change a scenario that waits for a runner. What is left out or null stays as it is."""

    priority: PriorityField | None = None
    pool: PoolField | None = None


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a scenario failed. `code` is for programs. `frame_number` is the frame at which it failed, if known."""

    code: StorableText
    message: StorableText
    frame_number: Annotated[int, Meta(ge=0, le=MAX_SAFE_INTEGER)] | None = None


class Skip(msgspec.Struct, frozen=True):
    """Frames that are skipped because every attempt failed at them: `frames` kept frames after the stored `after_pts`.

    `after_pts` is null if no frame was stored before them.
    """

    after_pts: int | None
    frames: int


class ScenarioWarning(msgspec.Struct, frozen=True, kw_only=True):
    """What was assumed about the source or is wrong with it. There is one entry per `code`, for `count` occurrences so far.

    `first_frame` and `last_frame` are frame numbers, `first_s` and `last_s` times in the video. For a missing frame, the number is that
    of the next kept frame.
    """

    code: WarningCode
    message: str
    count: int
    first_frame: int
    first_s: float
    last_frame: int
    last_s: float


class ScenarioResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The current state of a scenario. `frames_stored` frames can be read already; `waiting_for` is why it does not progress."""

    scenario_uuid: str
    owner: Annotated[str, Meta(description="whose token created it; local if no token was needed")] = LOCAL_OWNER
    source: Annotated[
        str, Meta(description="as requested, without credentials; a file under the media root is relative to it")
    ]
    model: str
    fps: Annotated[
        int | float | str,
        Meta(
            description="frames per second that are kept, exactly: a number, a fraction in lowest terms if no number is exact "
            '("30000/1001"), or "all"'
        ),
    ]
    priority: int
    parameters: Parameters
    state: State
    outcome: Annotated[Outcome | None, Meta(description="how it ended; null until its shutdown begins")]
    error: Annotated[ErrorInfo | None, Meta(description="why it failed; null for any other outcome")]
    epoch: Annotated[int, Meta(description="the number of the latest deployment; 0 if it was never deployed")]
    attempt: Annotated[int, Meta(description="consecutive losses at the current frame")]
    runner: str | None
    pool: Annotated[str, Meta(description="the runner pool that runs it")]
    resume_frame: int
    frames_stored: int
    frames_expected: Annotated[
        int | None, Meta(description="null until the source is open, or if the number is unknown")
    ]
    device: Annotated[
        str | None,
        Meta(
            description="what its model runs on, cpu or cuda:N; null until the source is open, or if the model does not say"
        ),
    ] = None
    waiting_for: WaitingFor | None
    source_error: Annotated[
        ErrorInfo | None, Meta(description="why its live source sends nothing; null unless it waits for its source")
    ] = None
    created_at: datetime.datetime
    state_changed_at: datetime.datetime
    skips: tuple[Skip, ...]
    warnings: tuple[ScenarioWarning, ...] = ()


class ScenarioPage(msgspec.Struct, frozen=True):
    """Scenarios, the newest first. `next` is the cursor to pass as `after`; null on the last page."""

    items: list[ScenarioResponse]
    next: str | None


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """A state transition in a scenario's history."""

    number: int
    from_state: str | None
    to_state: str
    reason_code: Annotated[
        str,
        Meta(
            description="why the state changed, for programs (see docs/reference/history.md); a later version may add codes",
            examples=["first_frame", "worker_crashed"],
        ),
    ]
    reason: Annotated[str, Meta(description="the same for people; its wording may change")]
    epoch: int
    attempt: int
    runner: str | None
    detail: str | None
    at: datetime.datetime


class HistoryPage(msgspec.Struct, frozen=True):
    """Transitions of a scenario, the oldest first. `next` is the cursor to pass as `after`; null on the last page."""

    items: list[Transition]
    next: str | None


class StoredGap(msgspec.Struct, frozen=True, kw_only=True):
    """Frames that are missing from the results.

    `after_frame` is the number of the last frame before the gap, or -1. `from_s` and `to_s` are times in the video. `frames`
    is null if the number of missing frames is unknown.
    """

    after_frame: int
    from_s: float
    to_s: float
    frames: int | None
    reason: str
    epoch: int


class GapPage(msgspec.Struct, frozen=True):
    """Gaps of a scenario, in the order of the video. `next` is the cursor to pass as `after`; null on the last page."""

    items: list[StoredGap]
    next: str | None


class Mask(msgspec.Struct, frozen=True):
    """The pixels of an object in COCO's run-length encoding, as pycocotools reads it. `size` is (height, width) of the displayed frame."""

    size: tuple[Dimension, Dimension]
    counts: Annotated[str, Meta(min_length=1)]


class Detection(msgspec.Struct, frozen=True, omit_defaults=True):
    """One detected object. `box` is (x1, y1, x2, y2) in pixels of the displayed frame.

    A model that classifies whole frames gives one detection for each label. Its box is the frame. The other fields are there only if
    the model gives them. `keypoints` are x, y and score of each, in the model's order: `vidflow models show` lists their names.
    `corners` are those of an oriented box, clockwise, the first to the second along its width. `box` then encloses them. Corners may
    lie beside the frame. `mask` has the object's pixels, within its box.
    """

    label: Annotated[str, Meta(min_length=1, max_length=MAX_LABEL_CHARACTERS)]
    score: Annotated[float, Meta(ge=0.0, le=1.0)]
    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate]
    keypoints: Annotated[
        list[tuple[Coordinate, Coordinate, Annotated[float, Meta(ge=0.0, le=1.0)]]],
        Meta(
            min_length=1,
            max_length=MAX_KEYPOINTS,
            description="x and y in pixels of the displayed frame, and the score",
        ),
    ] = []
    corners: Annotated[
        list[tuple[OuterCoordinate, OuterCoordinate]],
        Meta(min_length=4, max_length=4, description="x and y in pixels of the displayed frame"),
    ] = []
    mask: Mask | None = None


class FrameResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of a frame, over HTTP and in ndjson. `width` and `height` are those of the displayed frame.

    `epoch` is the deployment that stored it. `corrupt` is there only if it is true: the source is damaged at this frame, so the
    picture is partly wrong. `captured_at` and `captured_by` are there only for live sources: when the frame was captured, and by
    which clock.
    """

    frame_number: Annotated[int, Meta(ge=0)]
    epoch: Annotated[int, Meta(ge=0)]
    time_s: float
    width: Dimension
    height: Dimension
    detections: tuple[Detection, ...]
    corrupt: bool = False
    captured_at: Annotated[
        datetime.datetime | None, Meta(description="UTC with microseconds, by the clock that `captured_by` names")
    ] = None
    captured_by: Annotated[
        CaptureClock | None,
        Meta(
            description="arrival: the runner's clock, from when frames arrived. rtcp: the camera's, by its RTCP sender reports. "
            "producer: the encoder's, by the stream's producer reference times. playlist: the program date and time of an HLS playlist"
        ),
    ] = None


class PredictionPage(msgspec.Struct, frozen=True):
    """Results in the order of frame numbers.

    `next` is the cursor to pass as `after`. Once the list is `complete`, no result will follow and `next` is null.
    """

    items: list[FrameResult]
    next: str | None
    complete: bool


class RawPredictionPage(msgspec.Struct, frozen=True):
    """A PredictionPage whose items are JSON. The server copies stored frames into it, and a client may copy them further."""

    items: list[msgspec.Raw]
    next: str | None
    complete: bool


class Health(msgspec.Struct, frozen=True):
    """The response of a check that passed."""

    status: Literal["ok"] = "ok"


class RelayLag(msgspec.Struct, frozen=True):
    """The relay's backlog: messages that wait for Kafka (10000 means at least as many), and the age of the oldest in seconds."""

    waiting: int
    oldest_s: float


class PoolHealth(msgspec.Struct, frozen=True):
    """A pool of runners: live runners, their slots, slots in use, and scenarios that wait (1000 means at least as many)."""

    pool: str
    runners: int
    slots: int
    used: int
    waiting: int


class SystemHealth(msgspec.Struct, frozen=True, kw_only=True):
    """The system can run scenarios. If it is `degraded`, scenarios wait in `empty_pools`, which have no runner.

    Without a token, where one is needed, no pools are listed.
    """

    status: Literal["ok", "degraded"]
    relay_lag: RelayLag
    pools: list[PoolHealth]
    empty_pools: list[str]


class FieldProblem(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is wrong with one field or parameter of a request. `code` is there only if the field's type is right."""

    field: str
    message: str
    code: str | None = None


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a request failed (RFC 9457). `code` is for programs, `detail` for people, `request_id` for the operator: it is in the log."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldProblem] = []
    missing: list[str] = []
    models: list[str] = []
    error_id: str | None = None
    request_id: str | None = None
    relay_lag: RelayLag | None = None


class ModelInfo(msgspec.Struct, frozen=True):
    """A registered model. `needs` is the extra that its runner must have installed; `error` is why the model cannot be used."""

    name: str
    kind: str
    needs: str | None
    error: str | None


class ModelList(msgspec.Struct, frozen=True):
    """All registered models."""

    items: list[ModelInfo]
