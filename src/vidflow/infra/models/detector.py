"""A stateless detector around a function that runs a tensor through a model.

It fills the tensor, decodes the outputs, suppresses overlapping boxes and maps the rest to the picture. The caller supplies the
runtime (onnxruntime, an exported program).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from vidflow.domain.detections import Detection, InferenceError, build_detection, select_detections
from vidflow.domain.errors import ModelError
from vidflow.domain.messages import Parameters
from vidflow.infra.models.bundle import Bundle
from vidflow.infra.models.decoders import DECODERS, Candidates, Layout, apply_nms
from vidflow.infra.models.model import Picture, Size
from vidflow.infra.models.spec import UNUSED_LABELS, Thresholds, check_known_labels
from vidflow.infra.models.tensors import FloatArray, PictureFit, fill_tensor, map_to_picture

InferenceFunction = Callable[[FloatArray], Sequence[NDArray[Any]]]
"""Takes a float32 tensor (batch, 3, height, width) and returns the model's outputs."""

BUILT_IN_NMS: Final = frozenset({"torchvision"})
"""Decoders of models that suppress overlapping boxes themselves."""


class DetectionFilter(msgspec.Struct, frozen=True):
    """Which detections are kept: minimum score, labels (None: all) and maximum number per frame."""

    score: float
    labels: frozenset[str] | None
    limit: int


def build_filter(
    thresholds: Thresholds, known: tuple[str, ...], score: float | None, labels: Sequence[str] | None
) -> DetectionFilter:
    """Return the filter for a scenario's score and labels. Without a score, the model's threshold applies.

    Raises ParameterError for a label that the model does not have.
    """
    check_known_labels(labels or (), known)
    allowed = frozenset(labels) if labels is not None else None
    return DetectionFilter(thresholds.score if score is None else score, allowed, thresholds.max_detections)


def to_detections(
    candidates: Candidates, labels: tuple[str, ...], detection_filter: DetectionFilter, size: Size
) -> tuple[Detection, ...]:
    """Convert candidates to detections. Their boxes are in pixels of a picture of `size` (width, height)."""
    detections = []
    for box, score, index in zip(
        candidates.boxes.tolist(), candidates.scores.tolist(), candidates.classes.tolist(), strict=True
    ):
        if not 0 <= index < len(labels):
            raise InferenceError(
                f"The model returned class {index} but has only {len(labels)} labels. Complete the labels in its spec."
            )
        if labels[index] in UNUSED_LABELS:
            continue
        detection = build_detection(labels[index], score, box, *size)
        if detection is not None:
            detections.append(detection)
    return select_detections(detections, None, detection_filter.labels, detection_filter.limit)


def infer_in_batches(
    infer: Callable[[Sequence[Picture]], list[tuple[Detection, ...]]], pictures: Sequence[Picture], batch: int
) -> list[tuple[Detection, ...]]:
    """Return the detections of each picture, given to `infer` in batches of at most `batch`."""
    results: list[tuple[Detection, ...]] = []
    for start in range(0, len(pictures), batch):
        results.extend(infer(pictures[start : start + batch]))
    return results


def first_line(error: BaseException) -> str:
    """Return the first line of a runtime's error, shortened for use in a message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


class TensorDetector:
    """The Model for a spec with [input] and [output]."""

    warmup_frames = 0

    def __init__(self, run: InferenceFunction, bundle: Bundle, parameters: Parameters, fixed_batch: int | None) -> None:
        """`fixed_batch`: the only batch size that `run` accepts, None if it accepts any."""
        inputs, outputs = bundle.spec.tensor_specs()
        thresholds = bundle.spec.thresholds
        self.labels = bundle.labels
        self.batch = fixed_batch or inputs.batch
        self._run = run
        self._inputs = inputs
        self._filter = build_filter(thresholds, bundle.labels, parameters.score_threshold, parameters.labels)
        self._nms_iou = None if outputs.decoder in BUILT_IN_NMS else thresholds.nms_iou
        self._decode = DECODERS[outputs.decoder]
        self._layout = Layout(inputs.size, outputs.strides, len(bundle.labels))
        self._fixed_batch = fixed_batch
        if outputs.decoder in BUILT_IN_NMS and self.batch != 1:
            raise ModelError(
                "Decoder 'torchvision' supports one picture per batch. Set batch = 1.", code="model_refused"
            )

    @property
    def input_size(self) -> Size | None:
        """(width, height) of the tensor."""
        return (self._inputs.size[1], self._inputs.size[0])

    def infer(self, pictures: Sequence[Picture]) -> list[tuple[Detection, ...]]:
        """Return the detections of each picture."""
        return infer_in_batches(self._infer_batch, pictures, self.batch)

    def _infer_batch(self, pictures: Sequence[Picture]) -> list[tuple[Detection, ...]]:
        tensor = np.zeros((self._fixed_batch or len(pictures), 3, *self._inputs.size), dtype=np.float32)
        fits = [fill_tensor(tensor[index], picture, self._inputs) for index, picture in enumerate(pictures)]
        decoded = self._decode(self._run(tensor), self._layout, self._filter.score)
        if len(decoded) < len(pictures):
            raise ModelError(
                f"The model returned results for {len(decoded)} of {len(tensor)} pictures. Set batch = 1.",
                code="model_refused",
            )
        return [
            self._to_detections(candidates, fit, picture)
            for candidates, fit, picture in zip(decoded, fits, pictures, strict=False)
        ]

    def _to_detections(self, candidates: Candidates, fit: PictureFit, picture: Picture) -> tuple[Detection, ...]:
        if self._nms_iou is not None:
            candidates = apply_nms(candidates, self._nms_iou)
        mapped = Candidates(map_to_picture(candidates.boxes, fit), candidates.scores, candidates.classes)
        return to_detections(mapped, self.labels, self._filter, (picture.width, picture.height))
