"""What decoders take and return: Layout and Candidates, and the checks that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from vidflow.domain.detections import InferenceError
from vidflow.infra.models.decoders.masks import Masks
from vidflow.infra.models.spec import OutputSpec, Task

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Outputs = Sequence[NDArray[Any]]
NORMALISED: Final = "normalised"
WHOLE_TOLERANCE: Final = 0.01
"""Distance from a whole number beyond which a class or a count is not a rounding error of half precision."""


class Candidates(msgspec.Struct, frozen=True):
    """Possible detections on one picture: `boxes` (n, 4), `scores` (n), `classes` (n).

    What else they have depends on the task: `keypoints` (n, keypoints, 3), each x, y and score; `corners` (n, 4, 2) of
    oriented boxes, clockwise; `masks`.
    """

    boxes: FloatArray
    scores: FloatArray
    classes: IntArray
    keypoints: FloatArray | None = None
    corners: FloatArray | None = None
    masks: Masks | None = None

    def take(self, selection: IntArray | NDArray[np.bool_]) -> Candidates:
        """Return the candidates at these indices, or where this mask is true."""
        return Candidates(
            self.boxes[selection],
            self.scores[selection],
            self.classes[selection],
            None if self.keypoints is None else self.keypoints[selection],
            None if self.corners is None else self.corners[selection],
            None if self.masks is None else self.masks.take(selection),
        )

    def map(self, mapping: Callable[[FloatArray], FloatArray]) -> Candidates:
        """Return the candidates in other coordinates. `mapping` takes arrays (..., 2) or (..., 4), each row x, y or x, y, x, y."""
        keypoints, corners, masks = self.keypoints, self.corners, self.masks
        if keypoints is not None:
            keypoints = np.concatenate([mapping(keypoints[..., :2]), keypoints[..., 2:]], axis=-1)
        if corners is not None:
            corners = mapping(corners)
        if masks is not None:
            masks = masks.map(mapping)
        return Candidates(mapping(self.boxes), self.scores, self.classes, keypoints, corners, masks)


class Layout(msgspec.Struct, frozen=True):
    """What a decoder needs to know about the model.

    `size` is the tensor's (height, width), `classes` the number of labels, `output` the spec's [output], and `names` are the
    names of the outputs in their order, empty if the runtime has none. `task` is the spec's.
    """

    size: tuple[int, int]
    classes: int
    output: OutputSpec
    names: tuple[str, ...] = ()
    task: Task = "detection"


class OutputMismatchError(Exception):
    """The outputs do not have the shapes that a decoder needs. Its text completes the sentence "decoder 'x' needs ..."."""


DecodeFunction = Callable[[Outputs, Layout, float], list[Candidates]]


class Decoder(msgspec.Struct, frozen=True):
    """A decoder.

    `needs_nms`: whether its boxes still overlap. `one_picture`: whether the model takes one picture per call. `has_boxes`: whether
    the boxes are parts of the picture, and not the whole tensor.
    """

    decode: DecodeFunction
    needs_nms: bool = True
    one_picture: bool = False
    has_boxes: bool = True


def above_threshold(scores: FloatArray, score: float) -> NDArray[np.bool_]:
    """Return where the scores reach `score`. Raises InferenceError if one of them is not a finite number."""
    if not np.isfinite(scores).all():
        raise InferenceError("The model returned scores that are not finite. Check its weights and its [input].")
    return scores >= score


def centred_boxes(centre: NDArray[np.floating[Any]], size: NDArray[np.floating[Any]]) -> FloatArray:
    """Return boxes (x1, y1, x2, y2) with these centres (n, 2) and sizes (n, 2)."""
    half = size / 2
    return np.concatenate([centre - half, centre + half], axis=1, dtype=np.float32)


def to_pixels(coordinates: FloatArray, layout: Layout, default: Literal["pixels", "normalised"]) -> FloatArray:
    """Return boxes (..., 4) or points (..., 2) in pixels of the tensor. Without an entry in the spec they are in `default`."""
    if (layout.output.coordinates or default) != NORMALISED:
        return coordinates
    height, width = layout.size
    scale: FloatArray = np.array([width, height] * (coordinates.shape[-1] // 2), dtype=np.float32)
    return coordinates * scale


def to_whole_numbers(values: NDArray[Any], kind: Literal["class", "count"]) -> IntArray:
    """Return classes or counts as integers. Raises InferenceError if one is not a whole number."""
    rounded = np.rint(values)
    if not (np.abs(values - rounded) < WHOLE_TOLERANCE).all():
        raise InferenceError(f"The model returned a {kind} that is not a whole number. Check the spec's decoder.")
    whole: IntArray = rounded.astype(np.int64)
    return whole


def describe_shape(shape: Sequence[int | str]) -> str:
    """Return a shape for an error, such as "(batch, 84, cells)"."""
    return f"({', '.join(str(length) for length in shape)})"


def describe_labels(layout: Layout) -> str:
    """Return the number of labels for an error."""
    return f"{layout.classes} label{'s' if layout.classes != 1 else ''}"
