"""A stateless detector around a function that runs a tensor through a model.

It fills the tensor, decodes the outputs, suppresses overlapping boxes and maps the rest to the picture. The caller supplies the
runtime (onnxruntime, an exported program).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from numpy.typing import NDArray

from vidflow.domain.detections import Detection, InferenceError, build_detection, select_detections
from vidflow.domain.device import CPU, Device
from vidflow.domain.errors import ModelError
from vidflow.domain.messages import Parameters
from vidflow.infra.models.bundle import Bundle
from vidflow.infra.models.decoders import DECODERS, Candidates, Layout, apply_nms, decode
from vidflow.infra.models.masks import render_mask
from vidflow.infra.models.model import Picture, Size
from vidflow.infra.models.spec import UNUSED_LABELS, Thresholds, check_known_labels
from vidflow.infra.models.tensors import PictureFit, PictureSizes, Tensor, TensorForm, fill_tensor, map_to_picture

InferenceFunction = Callable[[Tensor], Sequence[NDArray[Any]]]
"""Takes a tensor of pictures and returns the model's outputs."""


class Network(msgspec.Struct, frozen=True):
    """A model in its runtime. `run` takes tensors of `form`.

    `fixed_batch` is the only number of pictures that it accepts, None if it accepts any. `output_names` are empty if the runtime
    does not know them. `runs_in_threads`: several threads may call `run` at once. `sizes`: of the pictures, None if the spec says it.
    `labels`: those of a model whose spec names none.
    """

    run: InferenceFunction
    form: TensorForm = TensorForm()
    fixed_batch: int | None = None
    output_names: tuple[str, ...] = ()
    device: Device = CPU
    runs_in_threads: bool = False
    sizes: PictureSizes | None = None
    labels: tuple[str, ...] = ()


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
    """Convert candidates to detections. Their coordinates are in pixels of a picture of `size` (width, height)."""
    detections: list[Detection] = []
    rows: dict[int, int] = {}
    none: list[tuple[()]] = [()] * len(candidates.scores)
    for row, (box, score, index, keypoints, corners) in enumerate(
        zip(
            candidates.boxes.tolist(),
            candidates.scores.tolist(),
            candidates.classes.tolist(),
            none if candidates.keypoints is None else candidates.keypoints.tolist(),
            none if candidates.corners is None else candidates.corners.tolist(),
            strict=True,
        )
    ):
        if not 0 <= index < len(labels):
            raise InferenceError(
                f"The model returned class {index} but has only {len(labels)} labels. Complete the labels in its spec; "
                "if the model counts its classes from 1, the first label is 'background'."
            )
        if labels[index] in UNUSED_LABELS:
            continue
        detection = build_detection(labels[index], score, box, *size, keypoints, corners)
        if detection is not None:
            detections.append(detection)
            rows[id(detection)] = row
    selected = select_detections(detections, None, detection_filter.labels, detection_filter.limit)
    masks = candidates.masks
    if masks is None:
        return selected
    masked = ((detection, render_mask(masks, rows[id(detection)], detection.box, size)) for detection in selected)
    return tuple(msgspec.structs.replace(detection, mask=mask) for detection, mask in masked if mask is not None)


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

    def __init__(self, network: Network, bundle: Bundle, parameters: Parameters) -> None:
        """Raises ModelError if the spec's decoder needs one picture per batch and the network more."""
        inputs, outputs = bundle.spec.tensor_specs()
        thresholds = bundle.spec.thresholds
        self.labels = bundle.labels
        self.batch = network.fixed_batch or inputs.batch
        self.device = network.device
        self.runs_in_threads = network.runs_in_threads
        self._network = network
        self._inputs = inputs
        self._filter = build_filter(thresholds, bundle.labels, parameters.score_threshold, parameters.labels)
        decoder = self._decoder = DECODERS[outputs.decoder]
        self._nms_iou = thresholds.nms_iou if decoder.needs_nms else None
        self._layout = Layout(inputs.size, len(bundle.labels), outputs, network.output_names, bundle.spec.task)
        if decoder.one_picture and self.batch != 1:
            raise ModelError(
                f"Decoder {outputs.decoder!r} supports one picture per batch. Set batch = 1.", code="model_refused"
            )

    @property
    def input_size(self) -> Size | None:
        """(width, height) of the tensor."""
        return (self._inputs.size[1], self._inputs.size[0])

    def infer(self, pictures: Sequence[Picture]) -> list[tuple[Detection, ...]]:
        """Return the detections of each picture."""
        return infer_in_batches(self._infer_batch, pictures, self.batch)

    def _infer_batch(self, pictures: Sequence[Picture]) -> list[tuple[Detection, ...]]:
        form = self._network.form
        tensor = form.allocate(self._network.fixed_batch or len(pictures), self._inputs.size)
        fits = [
            fill_tensor(form.planes(tensor, index), picture, self._inputs) for index, picture in enumerate(pictures)
        ]
        decoded = decode(self._network.run(tensor), self._layout, self._filter.score)
        if len(decoded) < len(pictures):
            raise ModelError(
                f"The model returned results for {len(decoded)} of {len(pictures)} pictures. Set batch = 1.",
                code="model_refused",
            )
        return [
            self._to_detections(candidates, fit, picture)
            for candidates, fit, picture in zip(decoded, fits, pictures, strict=False)
        ]

    def _to_detections(self, candidates: Candidates, fit: PictureFit, picture: Picture) -> tuple[Detection, ...]:
        if self._nms_iou is not None:
            candidates = apply_nms(candidates, self._nms_iou)
        size = (picture.width, picture.height)
        mapped = candidates.map(lambda coordinates: map_to_picture(coordinates, fit))
        if not self._decoder.has_boxes:
            mapped.boxes[:] = (0, 0, *size)
        return to_detections(mapped, self.labels, self._filter, size)
