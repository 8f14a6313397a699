"""The second step of a worker: load the model and turn batches of frames into Frame messages."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from functools import partial

from vidflow.domain.messages import Deploy, Frame, WorkerWait
from vidflow.domain.sampling import format_time_base
from vidflow.infra.inference.client import SharedModel
from vidflow.infra.models import registry
from vidflow.infra.models.model import Model
from vidflow.infra.models.spec import ModelSpec
from vidflow.infra.process.memory import return_free_memory
from vidflow.roles.worker.link import Link, Task
from vidflow.roles.worker.read import FrameBatch


def load(task: Task, link: Link) -> Model:
    """Return the task's model with its parameters applied: in an inference process if it can be shared, else in this one.

    Repeats the check that the model may be used, since commands in Kafka may come from anywhere. Raises ModelError,
    ParameterError, MissingExtra, DeviceUnavailable, Unavailable or RequestStopped.
    """
    deploy = task.deploy
    socket_name = task.inference_socket

    def runs_here(spec: ModelSpec) -> bool:
        return socket_name is None or not registry.can_be_shared(spec, deploy.parameters)

    bundle = registry.resolve(deploy.model, task.models_dir, any_onnx=task.any_onnx, keep_weights=runs_here)
    registry.require_same(bundle, deploy.model_sha256)
    if socket_name is not None and not runs_here(bundle.spec):
        on_restart = partial(link.report_wait, WorkerWait.INFERENCE)
        shared = SharedModel(socket_name, deploy.scenario_uuid, link.finish_order, on_restart)
        return registry.detect_with(shared.network, bundle, deploy.parameters)
    model = registry.load(bundle, deploy.parameters, task.device)
    del bundle  # with the weights
    return_free_memory()  # loading uses more than the loaded model
    return model


def warm_up(model: Model, batch: FrameBatch) -> None:
    """Run a stateful model on the frames of a warm-up. Their results are already stored and are discarded."""
    model.infer([numbered.picture for numbered in batch.frames])


def detect(model: Model, batch: FrameBatch, deploy: Deploy) -> Iterator[Frame]:
    """Yield one message per frame with the model's detections, in order. Raises InferenceError."""
    results = model.infer([numbered.picture for numbered in batch.frames])
    inferred_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for numbered, detections in zip(batch.frames, results, strict=True):
        frame = numbered.frame
        yield Frame(
            deploy.scenario_uuid, deploy.epoch, numbered.number, frame.pts, format_time_base(frame.time_base), frame.origin_pts,
            frame.time_s, inferred_at, frame.width, frame.height, detections, frame.corrupt, frame.clock_jumps,
            None if frame.captured is None else frame.captured.at_us,
            None if frame.captured is None else frame.captured.clock,
            frame.clock_drifts,
        )  # fmt: skip
