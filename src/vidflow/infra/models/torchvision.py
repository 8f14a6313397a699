"""Run torchvision's detectors, with weights named by torchvision or from a state_dict in a file.

Weights are read as data (`weights_only`), never as pickled code.
"""

from __future__ import annotations

import io
import pickle
import urllib.error
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
import torchvision

from vidflow.domain.detections import Detection, InferenceError
from vidflow.domain.device import CPU, Device
from vidflow.domain.errors import ModelError, Unavailable
from vidflow.domain.messages import Parameters
from vidflow.infra.models.bundle import Bundle
from vidflow.infra.models.cuda import raise_gpu_failure
from vidflow.infra.models.decoders import Candidates
from vidflow.infra.models.decoders.activations import sigmoid
from vidflow.infra.models.decoders.lists import decode_masks
from vidflow.infra.models.detector import DetectionFilter, build_filter, first_line, infer_in_batches, to_detections
from vidflow.infra.models.model import Picture, Size
from vidflow.infra.models.spec import Task, Thresholds
from vidflow.infra.models.torch_device import TorchDevice, choose_torch_device, to_array

THREADS: Final = 1
"""Workers share the cores, and OpenMP threads of different workers would spin while waiting for each other."""
BATCH: Final = 4
"""On a CPU this is a fifth faster than single pictures. Larger batches gain nothing."""
BOX_ARGUMENTS: Final = {"score": "score_thresh", "nms": "nms_thresh", "limit": "detections_per_img"}
TWO_STAGE: Final = ("fasterrcnn", "maskrcnn", "keypointrcnn")
"""Detectors whose arguments for the final boxes are prefixed with `box_`."""


def load_torchvision(bundle: Bundle, parameters: Parameters, requested: Device = CPU) -> TorchvisionModel:
    """Return the detector of a spec of kind `torchvision`, with weights from its file or by torchvision's name.

    Raises ModelError if the weights do not exist or do not belong to the detector, Unavailable if they cannot be fetched, and what
    `choose_torch_device` raises.
    """
    spec = bundle.spec
    target = choose_torch_device(requested, bundle)
    assert spec.architecture is not None  # `parse_spec` has checked it
    if spec.weights is not None:
        state, labels = fetch_weights(spec.architecture, spec.weights)
        origin = spec.weights
    else:
        state, labels = load_state_dict(bundle.require_weights(), bundle.origin), bundle.labels
        origin = bundle.origin
    detection_filter = build_filter(spec.thresholds, labels, parameters.score_threshold, parameters.labels)
    net = build_detector(spec.architecture, state, len(labels), spec.thresholds, detection_filter.score, origin)
    return TorchvisionModel(net, labels, detection_filter, spec.task, target)


def fetch_weights(architecture: str, weights: str) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Return torchvision's own weights, from its cache or the network, and their labels.

    Raises ModelError if the weights do not exist, and Unavailable if they cannot be fetched.
    """
    try:
        entry = torchvision.models.get_model_weights(architecture)[weights]
    except (KeyError, ValueError) as error:
        raise ModelError(f"torchvision has no weights {weights!r} for {architecture!r}. Use COCO_V1.") from error
    try:
        state = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError) as error:
        raise Unavailable(
            f"The weights {weights} of {architecture} are not on this machine and cannot be fetched ({error}). "
            "Fetch them elsewhere and name the file in a model spec of kind 'torchvision'.",
            code="model_unreachable",
        ) from error
    return state, tuple(str(label) for label in entry.meta["categories"])


def load_state_dict(content: bytes, origin: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a state_dict file. Raises ModelError (model_refused) if it contains anything else."""
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise _weights_error(origin, f"the file is not a plain state_dict ({first_line(error)})") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise _weights_error(origin, "the file does not only contain named tensors; save model.state_dict()")
    return state


def build_detector(
    architecture: str,
    state: dict[str, torch.Tensor],
    classes: int,
    thresholds: Thresholds,
    score: float,
    origin: str,
) -> torch.nn.Module:
    """Return the detector `architecture` with the weights `state`, ready to infer. `classes` includes the background.

    Raises ModelError if the weights do not belong to this detector.
    """
    prefix = "box_" if architecture.startswith(TWO_STAGE) else ""
    values = {"score": score, "nms": thresholds.nms_iou, "limit": thresholds.max_detections}
    arguments = {prefix + BOX_ARGUMENTS[name]: value for name, value in values.items()}
    try:
        net = torchvision.models.get_model(
            architecture, weights=None, weights_backbone=None, num_classes=classes, **arguments
        )
        net.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise _weights_error(
            origin, f"they do not fit {architecture} with {classes} classes ({first_line(error)})"
        ) from error
    return net.eval().to(memory_format=torch.channels_last)


class TorchvisionModel:
    """The Model for a torchvision detector."""

    warmup_frames = 0
    runs_in_threads = False
    batch = BATCH

    def __init__(
        self,
        net: Any,  # noqa: ANN401  (torch is not typed here)
        labels: tuple[str, ...],
        detection_filter: DetectionFilter,
        task: Task,
        target: TorchDevice,
    ) -> None:
        torch.set_num_threads(THREADS)
        self.labels = labels
        self.device = target.device
        self._target = target
        self._net = net.to(str(target.device))
        self._filter = detection_filter
        self._task = task

    @property
    def input_size(self) -> Size | None:
        """(width, height) of a detector with a fixed size, None if the detector keeps the picture's aspect ratio."""
        size = self._net.transform.fixed_size
        return (int(size[0]), int(size[1])) if size else None

    def infer(self, pictures: Sequence[Picture]) -> list[tuple[Detection, ...]]:
        """Return the detections of each picture."""
        return infer_in_batches(self._infer_batch, pictures, self.batch)

    def _infer_batch(self, pictures: Sequence[Picture]) -> list[tuple[Detection, ...]]:
        tensors = [self._tensor(picture) for picture in pictures]
        try:
            with self._target.inference():
                outputs = self._net(tensors)
        except (RuntimeError, AssertionError) as error:  # torch asserts that boxes are valid
            raise_gpu_failure(self.device, error, first_line(error))
            raise InferenceError(f"torch failed on a frame ({first_line(error)}).") from error
        return [
            self._to_detections(output, tensor, picture)
            for output, tensor, picture in zip(outputs, tensors, pictures, strict=True)
        ]

    def _tensor(self, picture: Picture) -> Any:  # noqa: ANN401  (a Tensor)
        width, height = self.input_size or self._shrink_size(picture)
        pixels = torch.from_numpy(picture.image(width, height)).to(str(self.device))
        return pixels.permute(2, 0, 1).to(torch.float32).div_(255.0)

    def _shrink_size(self, picture: Picture) -> Size:
        """Return the size to which the net itself would scale the picture. Scaling while decoding is far cheaper."""
        transform = self._net.transform
        short, long = sorted((picture.width, picture.height))
        ratio = min(transform.min_size[-1] / short, transform.max_size / long)
        return (max(round(picture.width * ratio), 1), max(round(picture.height * ratio), 1))

    def _to_detections(self, output: Any, tensor: Any, picture: Picture) -> tuple[Detection, ...]:  # noqa: ANN401
        values = {name: to_array(value) for name, value in output.items()}
        keypoints, masks = None, None
        if self._task == "instance_segmentation":
            masks = decode_masks(values["masks"][:, 0], values["boxes"], tuple(tensor.shape[1:]))
        if self._task == "keypoints":
            scores = sigmoid(values["keypoints_scores"])[..., None]
            keypoints = np.concatenate([values["keypoints"][..., :2], scores], axis=-1)
        candidates = Candidates(values["boxes"], values["scores"], values["labels"], keypoints, masks=masks)
        scale = np.array([picture.width / tensor.shape[2], picture.height / tensor.shape[1]] * 2, dtype=np.float32)
        mapped = candidates.map(lambda coordinates: coordinates * scale[: coordinates.shape[-1]])
        return to_detections(mapped, self.labels, self._filter, (picture.width, picture.height))


def _weights_error(origin: str, fault: str) -> ModelError:
    return ModelError(f"Cannot use the weights {origin}: {fault}.", code="model_refused")
