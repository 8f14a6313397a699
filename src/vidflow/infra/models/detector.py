"""A stateless detector around any function from one tensor to its outputs: prepare, run, decode, thin out, place.

What runs the tensor (onnxruntime, an exported program) is given; this module knows no runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from vidflow.domain.detections import Detection, InferenceError, build_detection, select_detections
from vidflow.domain.errors import ModelError
from vidflow.infra.models.decoders import DECODERS, Candidates, Layout, apply_nms
from vidflow.infra.models.model import Picture, Size
from vidflow.infra.models.spec import UNUSED_LABELS, InputSpec, OutputSpec, Thresholds, check_known_labels
from vidflow.infra.models.tensors import FloatArray, PictureFit, fill_tensor, map_to_picture

InferenceFunction = Callable[[FloatArray], Sequence[NDArray[Any]]]
"""From a tensor (batch, 3, height, width) of float32 to the model's outputs."""

BUILT_IN_NMS: Final = frozenset({"torchvision"})
"""Decoders of models that thin out their boxes themselves."""


class DetectionFilter(msgspec.Struct, frozen=True):
    """What of a model's detections is kept: at least this score, these labels (None: all), at most so many a frame."""

    score: float
    labels: frozenset[str] | None
    limit: int


def build_filter(
    thresholds: Thresholds, known: tuple[str, ...], score: float | None, labels: Sequence[str] | None
) -> DetectionFilter:
    """The model's own thresholds with what a scenario sets in their place.

    Raises ParameterError for a label that the model does not know.
    """
    check_known_labels(labels or (), known)
    allowed = frozenset(labels) if labels is not None else None
    return DetectionFilter(thresholds.score if score is None else score, allowed, thresholds.max_detections)


def to_detections(
    found: Candidates, labels: tuple[str, ...], keep: DetectionFilter, size: Size
) -> tuple[Detection, ...]:
    """Candidates whose boxes are in pixels of a picture of this (width, height), as detections in their one form."""
    detections = []
    for box, score, index in zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True):
        if not 0 <= index < len(labels):
            raise InferenceError(f"the model gave class {index}, but has {len(labels)} labels; complete its labels")
        if labels[index] in UNUSED_LABELS:
            continue
        detection = build_detection(labels[index], score, box, *size)
        if detection is not None:
            detections.append(detection)
    return select_detections(detections, None, keep.labels, keep.limit)


def first_line(error: BaseException) -> str:
    """What a runtime's error says, short enough for a message of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


class TensorDetector:
    """The Model of a spec with [input] and [output]."""

    warmup_frames = 0

    def __init__(
        self,
        run: InferenceFunction,
        labels: tuple[str, ...],
        inputs: InputSpec,
        outputs: OutputSpec,
        thresholds: Thresholds,
        keep: DetectionFilter,
        fixed_batch: int | None,
    ) -> None:
        """`fixed_batch`: the only batch size that `run` takes, None where it takes any."""
        self.labels = labels
        self.batch = fixed_batch or inputs.batch
        self._run = run
        self._inputs = inputs
        self._filter = keep
        self._nms_iou = None if outputs.decoder in BUILT_IN_NMS else thresholds.nms_iou
        self._decode = DECODERS[outputs.decoder]
        self._layout = Layout(inputs.size, outputs.strides, len(labels))
        self._fixed_batch = fixed_batch
        if outputs.decoder in BUILT_IN_NMS and self.batch != 1:
            raise ModelError("the decoder 'torchvision' takes one picture at once; set batch = 1", code="model_refused")

    @property
    def input_size(self) -> Size | None:
        """(width, height) of the tensor."""
        return (self._inputs.size[1], self._inputs.size[0])

    def infer(self, pictures: Sequence[Picture]) -> list[tuple[Detection, ...]]:
        """What is on each picture."""
        seen: list[tuple[Detection, ...]] = []
        for start in range(0, len(pictures), self.batch):
            seen.extend(self._infer_batch(pictures[start : start + self.batch]))
        return seen

    def _infer_batch(self, pictures: Sequence[Picture]) -> list[tuple[Detection, ...]]:
        tensor = np.zeros((self._fixed_batch or len(pictures), 3, *self._inputs.size), dtype=np.float32)
        fits = [fill_tensor(tensor[place], picture, self._inputs) for place, picture in enumerate(pictures)]
        decoded = self._decode(self._run(tensor), self._layout, self._filter.score)
        if len(decoded) < len(pictures):
            raise ModelError(
                f"the model answered {len(decoded)} of {len(tensor)} pictures; set batch = 1", code="model_refused"
            )
        return [self._to_detections(*one) for one in zip(decoded, fits, pictures, strict=False)]

    def _to_detections(self, found: Candidates, placed: PictureFit, picture: Picture) -> tuple[Detection, ...]:
        if self._nms_iou is not None:
            found = apply_nms(found, self._nms_iou)
        moved = Candidates(map_to_picture(found.boxes, placed), found.scores, found.classes)
        return to_detections(moved, self.labels, self._filter, (picture.width, picture.height))
