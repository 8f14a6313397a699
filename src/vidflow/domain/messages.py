"""The Kafka messages: their keys, fields and encoding. The topics are in topics.py.

A message is a JSON object with its `type` first, so that a person can read a topic with any tool. Its headers repeat the epoch
and carry a message id. Bytes from a topic are untrusted: decoding checks every type and bound and rejects NUL characters, which
PostgreSQL cannot store.
"""

from __future__ import annotations

import datetime
from enum import StrEnum
from typing import Annotated, Final, TypeVar

import msgspec

from vidflow.domain.detections import Detection, Label
from vidflow.domain.errors import ErrorInfo, MessageError
from vidflow.domain.scenario import Skip

MAX_LABELS: Final = 1000
"""The limit of `Parameters.labels`."""

MAX_SAFE_INTEGER = 2**53 - 1
NonNegativeInt = Annotated[int, msgspec.Meta(ge=0, le=MAX_SAFE_INTEGER)]
Epoch = Annotated[int, msgspec.Meta(ge=0, le=MAX_SAFE_INTEGER)]
Pts = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
MAX_MICROSECONDS = 253_402_300_799_999_999
"""The last microsecond of the year 9999, counted from 1970."""
Microseconds = Annotated[int, msgspec.Meta(ge=0, le=MAX_MICROSECONDS)]
Nanoseconds = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Uuid = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")]
Dimension = Annotated[int, msgspec.Meta(ge=1, le=65535)]
ShortText = Annotated[str, msgspec.Meta(max_length=200)]
Seconds = float
FollowSeconds = Annotated[float, msgspec.Meta(ge=0.5, le=3600)]
DEFAULT_FOLLOW_S: Final = 10.0
DurationSeconds = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
GiveUpSeconds = Annotated[float, msgspec.Meta(ge=1, le=1e9)]
EndTime = Annotated[datetime.datetime, msgspec.Meta(tz=True)]
StreamIndex = Annotated[int, msgspec.Meta(ge=0, le=999)]


class Message(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True, gc=False):
    """Base class of all messages. The garbage collector skips them (`gc=False`), since none can be part of a reference cycle."""


# --- api → orchestrator (init_scenario, key: scenario_uuid)


class Start(Message, frozen=True, tag="start"):
    """A scenario was created. The message only wakes the orchestrator, which reads the tables."""

    scenario_uuid: Uuid


class Shutdown(Message, frozen=True, tag="shutdown"):
    """A shutdown was requested. The message only wakes the orchestrator."""

    scenario_uuid: Uuid


# --- orchestrator → runner (to_deploy.<pool>, key: scenario_uuid, for a ping the runner)


class FileIdentity(msgspec.Struct, frozen=True):
    """What identifies the contents of a file, so that a later attempt notices a change. `etag` is that of an HTTP server,
    `sample` a digest of parts of a local file.

    Each value is None if it is unknown.
    """

    size_bytes: NonNegativeInt | None = None
    mtime_ns: Nanoseconds | None = None
    etag: ShortText | None = None
    sample: ShortText | None = None

    def matches(self, other: FileIdentity) -> bool:
        """Return whether no value that both know differs."""
        pairs = (
            (self.size_bytes, other.size_bytes), (self.mtime_ns, other.mtime_ns), (self.etag, other.etag),
            (self.sample, other.sample),
        )  # fmt: skip
        return all(one is None or two is None or one == two for one, two in pairs)


class ResumePoint(msgspec.Struct, frozen=True):
    """Where a deployment resumes: after the last stored frame, on the sampling grid of the first run.

    `next_frame` is the lowest frame number not stored. `origin_pts` is the pts of the video's first frame, `last_pts` and
    `last_time_s` are those of the last stored frame. Pts are in units of `time_base` ("1/90000"). `clock_jumped`: the source's clock
    jumped before one of the stored frames, so its header does not say at which time the video ends. `gap_until_s`: the end of the
    gaps that are stored after the last frame, None if there are none. `live`: how the source was read before (None: it was not
    opened yet).
    """

    next_frame: NonNegativeInt = 0
    origin_pts: Pts | None = None
    time_base: ShortText | None = None
    last_pts: Pts | None = None
    last_time_s: Seconds | None = None
    identity: FileIdentity | None = None
    clock_jumped: bool = False
    gap_until_s: Seconds | None = None
    live: bool | None = None


class PoisonPolicy(StrEnum):
    """What happens to a scenario if one frame makes all attempts fail."""

    FAIL = "fail"
    SKIP = "skip"


class CorruptPolicy(StrEnum):
    """What happens to a frame that is damaged in the source, if the decoder conceals the damage."""

    KEEP = "keep"
    SKIP = "skip"


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The optional parameters of a scenario.

    `score_threshold`: drop detections below it (None: the model's default). `labels`: keep only these (None: all). `follow`: read
    a growing local file until it has been still for `follow_s` seconds. `duration_s`: end so long after the first frame. `end_at`:
    end a live scenario at this time. `give_up_after_s`: end a live scenario with an error after so long without a frame. `stream`: the
    index of the source's video stream to read (None: the best). `live`: read an HTTP source from now on and for ever, or as a file
    (None: as the source shows).
    """

    score_threshold: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] | None = None
    labels: Annotated[tuple[Label, ...], msgspec.Meta(max_length=MAX_LABELS)] | None = None
    on_poison: PoisonPolicy = PoisonPolicy.FAIL
    on_corrupt: CorruptPolicy = CorruptPolicy.KEEP
    follow: bool = False
    follow_s: FollowSeconds = DEFAULT_FOLLOW_S
    duration_s: DurationSeconds | None = None
    end_at: EndTime | None = None
    give_up_after_s: GiveUpSeconds | None = None
    stream: StreamIndex | None = None
    live: bool | None = None


class Deploy(Message, frozen=True, tag="deploy"):
    """Start a worker for this epoch of the scenario.

    If `attempt` is above 0, the worker first infers and sends frame by frame. `fps` is formatted by `format_frame_rate`.
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
    """Stop the worker of this epoch or an older one, after the frames that it is working on."""

    scenario_uuid: Uuid
    epoch: Epoch


class Forget(Message, frozen=True, tag="forget"):
    """Remove the ended entry of this epoch or an older one."""

    scenario_uuid: Uuid
    epoch: Epoch


class Ping(Message, frozen=True, tag="ping"):
    """Count the command and do nothing else. The count shows that the runner receives commands."""

    runner: str


Command = Deploy | StopWork | Forget | Ping


# --- runner → orchestrator (runner_events, key: runner)


class WorkerWait(StrEnum):
    """What a worker waits for. Deadlines apply to START and INFERENCE only."""

    START = "start"
    SOURCE = "source"
    INFERENCE = "inference"
    KAFKA = "kafka"


class EndReason(StrEnum):
    """Why an entry ended. The first four are not failures, see NON_FAILURE_REASONS."""

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
    """A scenario listed by a runner: running (`reason` is None) or ended.

    `next_frame` is the number of the frame that the worker sends next. `fatal` marks a non-retryable error. `detail` is the end
    of the worker's standard error.
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
        """Whether a worker is running for it."""
        return self.reason is None


class Report(Message, frozen=True, tag="report"):
    """The complete state of a runner, sent every second and on change.

    `taken` counts the commands that the runner has read, `number` counts its reports.
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
    """A message from the leader to itself, sent to each partition of runner_events.

    While probes return, a missing report means that the runner is silent.
    """

    leader: str
    sent_s: Seconds


RunnerEvent = Report | Probe


# --- worker → inbox (results, key: scenario_uuid)


class SourceOpened(Message, frozen=True, tag="opened"):
    """Properties of the opened source. `frames_expected` counts the frames to keep (None: unknown).

    `device`: what the model runs on, such as cuda:0 (None: unknown, or the model was not loaded).
    """

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
    device: ShortText | None = None


class SourceLost(Message, frozen=True, tag="lost"):
    """A live source sends nothing at the moment, and why. The next frame ends this."""

    scenario_uuid: Uuid
    epoch: Epoch
    error: ErrorInfo


class CaptureClock(StrEnum):
    """The clock by which a frame of a live source was captured.

    `arrival`: the runner's, from when frames arrived. `rtcp`: the camera's, by its RTCP sender reports. `producer`: the encoder's,
    by the producer reference times in the stream. `playlist`: the program date and time of an HLS playlist.
    """

    ARRIVAL = "arrival"
    RTCP = "rtcp"
    PRODUCER = "producer"
    PLAYLIST = "playlist"


class GapReason(StrEnum):
    """Why frames that should have been kept are missing."""

    CORRUPT = "corrupt"
    TRUNCATED = "truncated"
    STALLED = "stalled"
    DROPPED = "dropped"
    RECONNECTING = "reconnecting"
    REDEPLOYED = "redeployed"
    SKIPPED = "skipped"


class Gap(msgspec.Struct, frozen=True, omit_defaults=True):
    """Missing frames between `from_s` and `to_s`. `frames` counts them (None: unknown)."""

    from_s: Seconds
    to_s: Seconds
    reason: GapReason
    frames: NonNegativeInt | None = None


class ClockChanges(msgspec.Struct, frozen=True, omit_defaults=True):
    """How often the source's clock jumped and began to differ from the runner's, after the last frame and up to `time_s`.

    `offset_s`: how far the source's clock was ahead of the runner's then (None: not by much, or unknown).
    """

    time_s: Seconds
    jumps: NonNegativeInt = 0
    drifts: NonNegativeInt = 0
    offset_s: Seconds | None = None


class Frame(Message, frozen=True, tag="frame"):
    """The detections of a kept frame. `at` is the time of inference (RFC 3339, UTC), `origin_pts` the start of the sampling grid.

    `corrupt`: the source is damaged at this frame, and the decoder concealed it. `clock_jumps`: how often the source's clock
    jumped after the previous frame, and time went on by one frame duration or by the arrival of frames instead. `clock_drifts`: how
    often that clock began to differ from the runner's. `captured_us`: when a frame of a live source was captured, in microseconds
    since 1970 by the clock `captured_by`. Its `pts` is always by the runner's. `gaps`: what is missing between the previous frame
    and this one. They are part of the message, so that none can be lost without its frame, whose number would be missed.
    """

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
    corrupt: bool = False
    clock_jumps: NonNegativeInt = 0
    captured_us: Microseconds | None = None
    captured_by: CaptureClock | None = None
    clock_drifts: NonNegativeInt = 0
    gaps: tuple[Gap, ...] = ()

    @property
    def previous_frame(self) -> int:
        """The number of the frame before it, -1 if there is none."""
        return self.frame_number - 1


class End(Message, frozen=True, tag="end"):
    """The end marker, the last message of an epoch. `last_frame` is the number of its last frame (-1: none).

    `gaps` and `clock` have what came after that frame. A worker that fails sends an end marker only if there is any of this.
    """

    scenario_uuid: Uuid
    epoch: Epoch
    last_frame: Annotated[int, msgspec.Meta(ge=-1, le=MAX_SAFE_INTEGER)]
    reason: EndReason
    gaps: tuple[Gap, ...] = ()
    clock: ClockChanges | None = None

    @property
    def previous_frame(self) -> int:
        """The number of the frame before it, -1 if there is none."""
        return self.last_frame


Result = SourceOpened | SourceLost | Frame | End


# --- inbox → operators (dead_letters, key: `DeadLetter.place`)


class DeadLetter(Message, frozen=True, tag="dead_letter"):
    """A message that could not be processed: its place, the error, its bytes (base64 in JSON) and its headers.

    `cut`: the message was too long to keep all of it, so it cannot be sent again.
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
        """The place of the original message, topic/partition/offset. It is the name and the key of the dead letter."""
        return f"{self.topic}/{self.partition}/{self.offset}"


T = TypeVar("T")

_encoder = msgspec.json.Encoder()
_init_scenario: msgspec.json.Decoder[Start | Shutdown] = msgspec.json.Decoder(Start | Shutdown)
_command: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Deploy | StopWork | Forget | Ping)
_runner_event: msgspec.json.Decoder[RunnerEvent] = msgspec.json.Decoder(Report | Probe)
_result: msgspec.json.Decoder[Result] = msgspec.json.Decoder(SourceOpened | SourceLost | Frame | End)
_dead_letter: msgspec.json.Decoder[DeadLetter] = msgspec.json.Decoder(DeadLetter)


def encode(message: Message) -> bytes:
    """Return the message as JSON."""
    return _encoder.encode(message)


def decode_init_scenario(value: bytes | None) -> Start | Shutdown:
    """Decode a message that wakes the orchestrator. Raises MessageError if it is invalid, as do the other decoders."""
    return _decode(_init_scenario, value)


def decode_command(value: bytes | None) -> Command:
    """Decode a command for a runner."""
    return _decode(_command, value)


def decode_runner_event(value: bytes | None) -> RunnerEvent:
    """Decode a report of a runner or a probe of the leader."""
    return _decode(_runner_event, value)


def decode_result(value: bytes | None) -> Result:
    """Decode a message from a worker to the inbox."""
    return _decode(_result, value)


def decode_dead_letter(value: bytes | None) -> DeadLetter:
    """Decode a dead letter. Its texts may contain NULs, since PostgreSQL does not store them."""
    return _parse(_dead_letter, value)


def _decode(decoder: msgspec.json.Decoder[T], value: bytes | None) -> T:
    if value is not None and b"\\" in value and _has_nul(value):
        raise MessageError("not a message of this topic: it contains a NUL character")
    return _parse(decoder, value)


def _parse(decoder: msgspec.json.Decoder[T], value: bytes | None) -> T:
    if value is None:
        raise MessageError("the message is empty")
    try:
        return decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"not a message of this topic: {error}") from error


def _has_nul(value: bytes) -> bool:
    """Return whether a text in the JSON contains a NUL, which is always escaped there.

    One search over the message is cheap. A pattern on each text field would double the time of decoding.
    """
    return b"\\u0000" in value.replace(b"\\\\", b"")
