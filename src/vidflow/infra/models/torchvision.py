"""Runs torchvision's detectors, with weights by torchvision's name or from a state_dict in a file. It knows no other nets.

Weights are read as data (`weights_only`), never as pickled code.
"""

from __future__ import annotations

import io
import pickle
import urllib.error
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
import torchvision

from vidflow.domain.detections import Detection, InferenceError
from vidflow.domain.errors import ModelError, Unavailable
from vidflow.infra.models.decoders import Candidates
from vidflow.infra.models.detector import DetectionFilter, first_line, to_detections
from vidflow.infra.models.model import Picture, Size
from vidflow.infra.models.spec import Thresholds

THREADS: Final = 1
"""Workers share the cores: OpenMP's threads of two workers spin on each other."""
BATCH: Final = 4
"""On a CPU a fifth faster than one by one; more gains nothing."""
BOX_ARGUMENTS: Final = {"score": "score_thresh", "nms": "nms_thresh", "limit": "detections_per_img"}
TWO_STAGE: Final = ("fasterrcnn", "maskrcnn", "keypointrcnn")
"""Detectors whose arguments for the final boxes begin with `box_`."""


def load_by_name(
    architecture: str, weights: str, thresholds: Thresholds, score: float
) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """A detector with torchvision's own weights, from its cache or the network, and the labels that come with them.

    Raises ModelError where there are no such weights, Unavailable where they cannot be fetched.
    """
    try:
        known = torchvision.models.get_model_weights(architecture)[weights]
    except (KeyError, ValueError) as error:
        raise ModelError(f"torchvision has no weights {weights!r} for {architecture!r}; use COCO_V1") from error
    try:
        state = known.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError) as error:
        raise Unavailable(
            f"the weights {weights} of {architecture} are not on this machine and could not be fetched ({error}); "
            "fetch them elsewhere and name the file in a model spec of kind 'torchvision'",
            code="model_unreachable",
        ) from error
    labels = tuple(str(label) for label in known.meta["categories"])
    return build_detector(architecture, state, len(labels), thresholds, score, weights), labels


def load_state_dict(content: bytes, origin: Path) -> dict[str, torch.Tensor]:
    """The tensors of a state_dict file. Raises ModelError (model_refused) where it holds anything else."""
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise _weights_error(str(origin), f"it is no plain state_dict ({first_line(error)})") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise _weights_error(str(origin), "it holds something other than named tensors; save model.state_dict()")
    return state


def build_detector(
    architecture: str,
    state: dict[str, torch.Tensor],
    classes: int,
    thresholds: Thresholds,
    score: float,
    origin: str,
) -> torch.nn.Module:
    """The detector `architecture` for so many classes, the background among them, with these weights, ready to infer.

    Raises ModelError where the weights are not this detector's.
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
            origin, f"it does not fit {architecture} with {classes} classes ({first_line(error)})"
        ) from error
    return net.eval().to(memory_format=torch.channels_last)


class TorchvisionModel:
    """The Model of a torchvision detector."""

    warmup_frames = 0
    batch = BATCH

    def __init__(self, net: Any, labels: tuple[str, ...], keep: DetectionFilter) -> None:  # noqa: ANN401  (torch is not typed here)
        torch.set_num_threads(THREADS)
        self.labels = labels
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._net = net.to(self._device)
        self._filter = keep

    @property
    def input_size(self) -> Size | None:
        """(width, height) of a detector with a fixed size, None of one that keeps the picture's shape."""
        fixed = self._net.transform.fixed_size
        return (int(fixed[0]), int(fixed[1])) if fixed else None

    def infer(self, pictures: Sequence[Picture]) -> list[tuple[Detection, ...]]:
        """What is on each picture."""
        seen: list[tuple[Detection, ...]] = []
        for start in range(0, len(pictures), self.batch):
            seen.extend(self._infer_batch(pictures[start : start + self.batch]))
        return seen

    def _infer_batch(self, pictures: Sequence[Picture]) -> list[tuple[Detection, ...]]:
        tensors = [self._tensor(picture) for picture in pictures]
        try:
            with torch.inference_mode():
                outputs = self._net(tensors)
        except (RuntimeError, AssertionError) as error:  # torch asserts that boxes are sound
            raise InferenceError(f"torch failed on a frame ({first_line(error)})") from error
        return [self._to_detections(*one) for one in zip(outputs, tensors, pictures, strict=True)]

    def _tensor(self, picture: Picture) -> Any:  # noqa: ANN401  (a Tensor)
        width, height = self.input_size or self._shrink_size(picture)
        pixels = torch.from_numpy(picture.image(width, height)).to(self._device)
        return pixels.permute(2, 0, 1).to(torch.float32).div_(255.0)

    def _shrink_size(self, picture: Picture) -> Size:
        """The size to which the net itself would scale the picture: scaling early is far cheaper."""
        transform = self._net.transform
        short, long = sorted((picture.width, picture.height))
        ratio = min(transform.min_size[-1] / short, transform.max_size / long)
        return (max(round(picture.width * ratio), 1), max(round(picture.height * ratio), 1))

    def _to_detections(self, output: Any, tensor: Any, picture: Picture) -> tuple[Detection, ...]:  # noqa: ANN401
        scale_x, scale_y = picture.width / tensor.shape[2], picture.height / tensor.shape[1]
        boxes = output["boxes"].cpu() * torch.tensor([scale_x, scale_y, scale_x, scale_y])
        found = Candidates(boxes.numpy(), output["scores"].cpu().numpy(), output["labels"].cpu().numpy())
        return to_detections(found, self.labels, self._filter, (picture.width, picture.height))


def _weights_error(origin: str, fault: str) -> ModelError:
    return ModelError(f"the weights {origin} cannot be used: {fault}", code="model_refused")
