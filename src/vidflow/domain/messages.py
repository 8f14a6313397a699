"""What travels over Kafka: the messages, the topic and key of each, and their form as bytes. Not who sends them, nor when.

Every message is one JSON object with its `type` first, so that a person can read a topic with any tool. The epoch and an id
of its own stand in its headers too. Bytes from a topic are hostile: decoding checks every type and bound, and that no text has
a NUL, which PostgreSQL cannot store.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Final, TypeVar

import msgspec

from vidflow.domain.detections import Detection
from vidflow.domain.errors import ErrorInfo, MessageError, ParameterError
from vidflow.domain.scenario import DEFAULT_POOL, Skip

INIT_SCENARIO: Final = "init_scenario"
TO_DEPLOY: Final = "to_deploy"
RUNNER_EVENTS: Final = "runner_events"
RESULTS: Final = "results"
DEAD_LETTERS: Final = "dead_letters"

PARTITIONS: Final = {INIT_SCENARIO: 4, f"{TO_DEPLOY}.{DEFAULT_POOL}": 4, RUNNER_EVENTS: 4, RESULTS: 16, DEAD_LETTERS: 1}
"""The topics that vidflow needs and how many partitions each is made with; more do no harm."""
MAX_POOL_CHARACTERS: Final = 200
"""As long as a report's `pool` may be; Kafka's limit for a topic's name is 249."""
_POOL: Final = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_POOL_CHARACTERS}}}")
COMPACTED_TOPICS: Final = frozenset({DEAD_LETTERS})
"""Those that keep the last message of each key for good: a dead letter stays until somebody has dealt with it."""

MAX_SAFE_INTEGER = 2**53 - 1
NonNegativeInt = Annotated[int, msgspec.Meta(ge=0, le=MAX_SAFE_INTEGER)]
Epoch = Annotated[int, msgspec.Meta(ge=0, le=MAX_SAFE_INTEGER)]
Pts = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Nanoseconds = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Uuid = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")]
Dimension = Annotated[int, msgspec.Meta(ge=1, le=65535)]
ShortText = Annotated[str, msgspec.Meta(max_length=200)]
Seconds = float


def commands_topic(pool: str) -> str:
    """The topic of the commands for a pool of runners."""
    return f"{TO_DEPLOY}.{pool}"


def check_pool(name: str) -> None:
    """Raise ParameterError unless a pool may have this name: it is part of a Kafka topic's name and of each report."""
    if not _POOL.fullmatch(name):
        shown = name if len(name) <= MAX_POOL_CHARACTERS else f"{name[:MAX_POOL_CHARACTERS]}…"
        raise ParameterError(
            f"Invalid pool name {shown!r}. Use 1 to {MAX_POOL_CHARACTERS} ASCII letters, digits, '.', '_' and '-'."
        )


class Message(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True, gc=False):
    """The base of all messages. None of them can be part of a cycle, so the collector need not look at them."""


# --- api → orchestrator (init_scenario, key: scenario_uuid)


class Start(Message, frozen=True, tag="start"):
    """A scenario was born. It only wakes the orchestrator: what counts is in the tables."""

    scenario_uuid: Uuid


class Shutdown(Message, frozen=True, tag="shutdown"):
    """A shutdown was requested. It only wakes the orchestrator."""

    scenario_uuid: Uuid


# --- orchestrator → runner (to_deploy.<pool>, key: scenario_uuid; a ping's is the runner)


class FileIdentity(msgspec.Struct, frozen=True):
    """What tells whether a file is still the one that the first attempt saw."""

    size_bytes: NonNegativeInt | None = None
    mtime_ns: Nanoseconds | None = None


class ResumePoint(msgspec.Struct, frozen=True):
    """Where a deployment goes on: behind the last stored frame, on the grid of the first run.

    `next_frame` is the lowest number that is not stored. The pts are in units of `time_base` ("1/90000").
    """

    next_frame: NonNegativeInt = 0
    origin_pts: Pts | None = None
    time_base: ShortText | None = None
    last_pts: Pts | None = None
    last_time_s: Seconds | None = None
    identity: FileIdentity | None = None


class PoisonPolicy(StrEnum):
    """What becomes of a scenario when one frame has felled all its attempts."""

    FAIL = "fail"
    SKIP = "skip"


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a user may set for a scenario beside its source, model and frame rate.

    `score_threshold`: detections below it are left out (None: the model's own). `labels`: only these are kept (None: all).
    """

    score_threshold: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] | None = None
    labels: (
        Annotated[tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=200)], ...], msgspec.Meta(max_length=1000)]
        | None
    ) = None
    on_poison: PoisonPolicy = PoisonPolicy.FAIL


class Deploy(Message, frozen=True, tag="deploy"):
    """Start a worker for this epoch of the scenario. `attempt` above 0: infer and send frame by frame at first.

    `fps` is a frame rate as `frame_rate_text` writes it.
    """

    scenario_uuid: Uuid
    epoch: Epoch
    source: str
    model: str
    model_sha256: str | None = None
    fps: str = "all"
    parameters: Parameters = Parameters()
    resume: ResumePoint = ResumePoint()
    attempt: NonNegativeInt = 0
    skips: tuple[Skip, ...] = ()


class StopWork(Message, frozen=True, tag="stop"):
    """End the worker of this epoch or an older one, after what it has in hand."""

    scenario_uuid: Uuid
    epoch: Epoch


class Forget(Message, frozen=True, tag="forget"):
    """Drop the ended entry of this epoch or an older one."""

    scenario_uuid: Uuid
    epoch: Epoch


class Ping(Message, frozen=True, tag="ping"):
    """Do nothing but count it: shows that the runner hears."""

    runner: str


Command = Deploy | StopWork | Forget | Ping


# --- runner → orchestrator (runner_events, key: runner)


class WorkerWait(StrEnum):
    """What a worker waits for; deadlines run in the start and in inference only."""

    START = "start"
    SOURCE = "source"
    INFERENCE = "inference"
    KAFKA = "kafka"


class EndReason(StrEnum):
    """Why an entry ended. The first four are no loss: nothing failed."""

    STOPPED = "stopped"
    REFUSED = "refused"
    HANDED_OVER = "handed_over"
    CUT_OFF = "cut_off"
    FINISHED = "finished"
    ERROR = "error"
    CRASHED = "crashed"
    HUNG = "hung"
    MEMORY = "memory"


NON_FAILURE_REASONS: Final = frozenset({EndReason.STOPPED, EndReason.REFUSED, EndReason.HANDED_OVER, EndReason.CUT_OFF})


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One scenario in a runner's charge: running (no `reason`) or ended.

    `next_frame` is the number that the worker will send next. `fatal` says of an error that no retry mends it. `detail` is
    the tail of what the worker wrote to standard error.
    """

    scenario_uuid: Uuid
    epoch: Epoch
    next_frame: NonNegativeInt = 0
    waits_for: WorkerWait | None = None
    reason: EndReason | None = None
    error: ErrorInfo | None = None
    fatal: bool = False
    detail: Annotated[str, msgspec.Meta(max_length=10_000)] | None = None

    @property
    def is_running(self) -> bool:
        """Whether a worker is at it."""
        return self.reason is None


class Report(Message, frozen=True, tag="report"):
    """All that a runner has in its charge, sent each second and on change.

    `taken` counts the commands that it has read; `number` its reports.
    """

    runner: ShortText
    pool: ShortText
    number: NonNegativeInt
    capacity: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    taken: NonNegativeInt
    draining: bool
    entries: tuple[Entry, ...] = ()
    version: ShortText = ""


class Probe(Message, frozen=True, tag="probe"):
    """The leader's own message to itself, one into each partition of runner_events: while they come back, silence is silence."""

    leader: str
    sent_s: Seconds


RunnerEvent = Report | Probe


# --- worker → inbox (results, key: scenario_uuid)


class SourceOpened(Message, frozen=True, tag="opened"):
    """What the source turned out to be. `frames_expected` counts kept frames; None where nobody knows."""

    scenario_uuid: Uuid
    epoch: Epoch
    width: Dimension
    height: Dimension
    duration_s: Seconds | None = None
    frames_expected: NonNegativeInt | None = None
    codec: ShortText = ""
    container: ShortText = ""
    live: bool = False
    identity: FileIdentity | None = None


class Frame(Message, frozen=True, tag="frame"):
    """What the model saw in one kept frame. `at` is when it was seen (RFC 3339, UTC), `origin_pts` where the grid begins."""

    scenario_uuid: Uuid
    epoch: Epoch
    frame_number: NonNegativeInt
    pts: Pts
    time_base: ShortText
    origin_pts: Pts
    time_s: Seconds
    at: ShortText
    width: Dimension
    height: Dimension
    detections: tuple[Detection, ...] = ()


class GapReason(StrEnum):
    """Why frames that should have been kept are not."""

    CORRUPT = "corrupt"
    TRUNCATED = "truncated"
    STALLED = "stalled"
    DROPPED = "dropped"
    SKIPPED = "skipped"


class Gap(Message, frozen=True, tag="gap"):
    """Frames that should have been kept and are not: behind which frame (-1: before the first), from when to when, how many."""

    scenario_uuid: Uuid
    epoch: Epoch
    after_frame: Annotated[int, msgspec.Meta(ge=-1, le=MAX_SAFE_INTEGER)]
    from_s: Seconds
    to_s: Seconds
    reason: GapReason
    frames: NonNegativeInt | None = None


class End(Message, frozen=True, tag="end"):
    """The last message of an epoch: the number of its last frame (-1: none) and why it ended."""

    scenario_uuid: Uuid
    epoch: Epoch
    last_frame: Annotated[int, msgspec.Meta(ge=-1, le=MAX_SAFE_INTEGER)]
    reason: EndReason


Result = SourceOpened | Frame | Gap | End


# --- inbox → operators (dead_letters, key: the place)


class DeadLetter(Message, frozen=True, tag="dead_letter"):
    """A message that could not be taken: where it lay, why, its bytes (base64 in JSON) and its headers.

    `cut`: it was too long to be kept whole, so that it cannot be sent again.
    """

    topic: ShortText
    partition: NonNegativeInt
    offset: NonNegativeInt
    error: str
    key: bytes | None = None
    value: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    cut: bool = False

    @property
    def place(self) -> str:
        """Its name and its key: the place of the message, as topic/partition/offset."""
        return f"{self.topic}/{self.partition}/{self.offset}"


T = TypeVar("T")

_encoder = msgspec.json.Encoder()
_init_scenario: msgspec.json.Decoder[Start | Shutdown] = msgspec.json.Decoder(Start | Shutdown)
_command: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Deploy | StopWork | Forget | Ping)
_runner_event: msgspec.json.Decoder[RunnerEvent] = msgspec.json.Decoder(Report | Probe)
_result: msgspec.json.Decoder[Result] = msgspec.json.Decoder(SourceOpened | Frame | Gap | End)
_dead_letter: msgspec.json.Decoder[DeadLetter] = msgspec.json.Decoder(DeadLetter)


def encode(message: Message) -> bytes:
    """A message as bytes."""
    return _encoder.encode(message)


def decode_init_scenario(value: bytes | None) -> Start | Shutdown:
    """Raises MessageError where the bytes are no such message; so do the others."""
    return _decode(_init_scenario, value)


def decode_command(value: bytes | None) -> Command:
    """A command for a runner."""
    return _decode(_command, value)


def decode_runner_event(value: bytes | None) -> RunnerEvent:
    """A runner's report or the leader's probe."""
    return _decode(_runner_event, value)


def decode_result(value: bytes | None) -> Result:
    """A worker's message to the inbox."""
    return _decode(_result, value)


def decode_dead_letter(value: bytes | None) -> DeadLetter:
    """A message that could not be taken. No database is to store it: its texts may be any."""
    return _parse(_dead_letter, value)


def _decode(decoder: msgspec.json.Decoder[T], value: bytes | None) -> T:
    if value is not None and b"\\" in value and _has_nul(value):
        raise MessageError("not a message of this topic: a text in it has a NUL character")
    return _parse(decoder, value)


def _parse(decoder: msgspec.json.Decoder[T], value: bytes | None) -> T:
    if value is None:
        raise MessageError("the message is empty")
    try:
        return decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"not a message of this topic: {error}") from error


def _has_nul(value: bytes) -> bool:
    """Whether a text in the JSON has a NUL, which can only stand there escaped. Once for a message: a pattern at each text's type
    would take as long as all the rest of its decoding."""
    return b"\\u0000" in value.replace(b"\\\\", b"")
