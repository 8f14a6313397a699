"""What `vidflow bench` and its measuring processes say to each other, as JSON over pipes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import msgspec

from vidflow.domain.device import AUTO, Device
from vidflow.domain.errors import ErrorInfo


class BenchTask(msgspec.Struct, frozen=True):
    """The source, the model and the rate (see `parse_frame_rate`) to measure. `threads`: how many the model may use."""

    source: str
    model: str
    fps: str
    models_dir: Path | None
    threads: int = 1
    device: Device = AUTO


class BenchStep(StrEnum):
    """What to measure. WORK is all that a worker does with a frame, up to the message for Kafka."""

    DECODING = "decoding"
    INFERENCE = "inference"
    WORK = "work"


class BenchOrder(msgspec.Struct, frozen=True):
    """Measure a step for at least so many seconds. Every step takes at least two batches: the first sets the start."""

    step: BenchStep
    seconds: float


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded and has seen a batch. Describes the source; `source_fps` is None if its header does not say.

    `device`: what the model runs on.
    """

    width: int
    height: int
    codec: str
    source_fps: float | None
    device: str | None = None


class Measurement(msgspec.Struct, frozen=True, tag="measured"):
    """What a process did in `elapsed_s` seconds.

    `frames`: decoded frames in the step DECODING, otherwise kept ones. `video_s`: how much of the video, 0 in the step INFERENCE.
    `conversion_s`: the part of the time in which pictures were scaled and converted. `memory_bytes`: resident memory at the end.
    """

    frames: int
    video_s: float
    elapsed_s: float
    cpu_s: float
    conversion_s: float
    memory_bytes: int


class Failure(msgspec.Struct, frozen=True, tag="failed"):
    """Why the process ends."""

    error: ErrorInfo


BenchMessage = Ready | Measurement | Failure
