"""The middle step of a worker: a model, and what it sees in a batch of frames, as the messages that are sent of it."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

from vidflow.domain.messages import Deploy, Frame
from vidflow.domain.sampling import format_time_base
from vidflow.infra.models import registry
from vidflow.infra.models.model import Model
from vidflow.roles.worker.read import FrameBatch


def load(deploy: Deploy, models_dir: Path | None, *, any_onnx: bool) -> Model:
    """Return the deployment's model with its parameters in force.

    What the deployment may name is checked again here: a command may come from anywhere. Raises ModelError, ParameterError,
    MissingExtra or Unavailable.
    """
    known = registry.resolve(deploy.model, models_dir, any_onnx=any_onnx)
    registry.require_same(known, deploy.model_sha256)
    return registry.load(known, deploy.parameters)


def warm_up(model: Model, batch: FrameBatch) -> None:
    """Shows a stateful model the frames of a warm-up; what it sees in them is stored already."""
    model.infer([numbered.frame for numbered in batch.frames])


def detect(model: Model, batch: FrameBatch, deploy: Deploy) -> Iterator[Frame]:
    """What the model sees, a message a frame, in order. Raises InferenceError."""
    found = model.infer([numbered.frame for numbered in batch.frames])
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for numbered, detections in zip(batch.frames, found, strict=True):
        frame = numbered.frame
        yield Frame(
            deploy.scenario_uuid, deploy.epoch, numbered.number, frame.pts, format_time_base(frame.time_base), frame.origin_pts,
            frame.time_s, at, frame.width, frame.height, detections,
        )  # fmt: skip
