"""Decode a model's output tensors into boxes, scores and classes, and suppress overlapping boxes. It needs only numpy.

A decoder takes the outputs of one batch and returns one Candidates per picture, with boxes (x1, y1, x2, y2) in pixels of the
tensor and at least the given score. It raises ModelError if the outputs do not have the decoder's shape, and InferenceError if
a score is not a finite number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from vidflow.domain.detections import InferenceError
from vidflow.domain.errors import ModelError

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
MAX_CANDIDATES: Final = 3000
"""Suppression takes quadratic time, so only this many of the best boxes are considered."""
MAX_EXPONENT: Final = np.float32(20.0)
"""e**20 strides are wider than any tensor. Larger boxes are clipped to the frame anyway and must not overflow."""


class Candidates(msgspec.Struct, frozen=True):
    """Possible detections on one picture: `boxes` (n, 4), `scores` (n), `classes` (n)."""

    boxes: FloatArray
    scores: FloatArray
    classes: IntArray

    def take(self, selection: IntArray | NDArray[np.bool_]) -> Candidates:
        """Return the candidates at these indices, or where this mask is true."""
        return Candidates(self.boxes[selection], self.scores[selection], self.classes[selection])


class Layout(msgspec.Struct, frozen=True):
    """What a decoder needs to know about the model: the tensor's `size` (height, width), strides and number of classes."""

    size: tuple[int, int]
    strides: tuple[int, ...]
    classes: int


Decoder = Callable[[Sequence[NDArray[Any]], Layout, float], list[Candidates]]


def decode_yolox(outputs: Sequence[NDArray[Any]], layout: Layout, score: float) -> list[Candidates]:
    """Decode one output (batch, cells, 5 + classes): centre relative to the cell and log of the size, in strides."""
    grid, stride = _grid(layout.size, layout.strides)
    (raw,) = _check_shapes(outputs, [(None, len(grid), 5 + layout.classes)], "yolox")
    return [_yolox_picture(rows, grid, stride, score) for rows in raw.astype(np.float32, copy=False)]


def _yolox_picture(rows: FloatArray, grid: FloatArray, stride: FloatArray, score: float) -> Candidates:
    classes = rows[:, 5:].argmax(axis=1)
    scores = rows[:, 4] * rows[np.arange(len(rows)), 5 + classes]
    selection = _above_threshold(scores, score)
    rows, grid, stride = rows[selection], grid[selection], stride[selection]
    centre = (rows[:, :2] + grid) * stride
    half = np.exp(np.minimum(rows[:, 2:4], MAX_EXPONENT)) * stride / 2
    return Candidates(np.concatenate([centre - half, centre + half], axis=1), scores[selection], classes[selection])


def decode_fastestdet(outputs: Sequence[NDArray[Any]], layout: Layout, score: float) -> list[Candidates]:
    """Decode one output (batch, 5 + classes, rows, columns): objectness, tanh offset, sigmoid size, class probabilities."""
    (raw,) = _check_shapes(outputs, [(None, 5 + layout.classes, None, None)], "fastestdet")
    return [_fastestdet_picture(cells, layout.size, score) for cells in raw.astype(np.float32, copy=False)]


def _fastestdet_picture(cells: FloatArray, size: tuple[int, int], score: float) -> Candidates:
    _, rows, columns = cells.shape
    classes = cells[5:].argmax(axis=0)
    best = np.take_along_axis(cells[5:], classes[None], axis=0)[0]
    scores = np.maximum(cells[0], 0) ** np.float32(0.6) * np.maximum(best, 0) ** np.float32(0.4)
    y, x = np.nonzero(_above_threshold(scores, score))
    shape = np.array([columns, rows], dtype=np.float32)
    pixels = np.array([size[1], size[0]], dtype=np.float32)
    centre = (np.tanh(cells[1:3, y, x].T) + np.stack([x, y], axis=1).astype(np.float32)) / shape * pixels
    half = pixels / (1 + np.exp(np.minimum(-cells[3:5, y, x].T, MAX_EXPONENT))) / 2
    return Candidates(np.concatenate([centre - half, centre + half], axis=1), scores[y, x], classes[y, x])


def decode_torchvision(outputs: Sequence[NDArray[Any]], _layout: Layout, score: float) -> list[Candidates]:
    """Decode the outputs of one picture. The first three are boxes (n, 4), scores (n) and integer labels (n), in any order."""
    integers = [output for output in outputs[:3] if np.issubdtype(output.dtype, np.integer)]
    floats = sorted(
        (output for output in outputs[:3] if np.issubdtype(output.dtype, np.floating)), key=lambda output: output.ndim
    )
    if len(integers) != 1 or len(floats) != 2 or not floats[1].size == 4 * floats[0].size == 4 * integers[0].size:
        raise _shape_error("torchvision", outputs)
    candidates = Candidates(
        floats[1].reshape(-1, 4).astype(np.float32),
        floats[0].reshape(-1).astype(np.float32),
        integers[0].reshape(-1).astype(np.int64),
    )
    return [candidates.take(_above_threshold(candidates.scores, score))]


DECODERS: Final[dict[str, Decoder]] = {
    "yolox": decode_yolox,
    "fastestdet": decode_fastestdet,
    "torchvision": decode_torchvision,
}


def apply_nms(candidates: Candidates, nms_iou: float) -> Candidates:
    """Return the best of each group of boxes of one class that overlap by more than `nms_iou`, best first.

    Equal scores keep their order, so that every run gives the same result.
    """
    order = np.argsort(-candidates.scores, kind="stable")[:MAX_CANDIDATES]
    boxes, classes = candidates.boxes[order].astype(np.float64), candidates.classes[order]
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    alive = np.ones(len(order), dtype=bool)
    for index in range(len(order)):
        if not alive[index]:
            continue
        rest = np.flatnonzero(alive[index + 1 :] & (classes[index + 1 :] == classes[index])) + index + 1
        corner = np.maximum(boxes[rest, :2], boxes[index, :2])
        intersection = np.prod(np.maximum(np.minimum(boxes[rest, 2:], boxes[index, 2:]) - corner, 0), axis=1)
        union = areas[rest] + areas[index] - intersection
        alive[rest[intersection > nms_iou * union]] = False
    return candidates.take(order[alive])


@lru_cache(maxsize=8)
def _grid(size: tuple[int, int], strides: tuple[int, ...]) -> tuple[FloatArray, FloatArray]:
    """Return the column and row (n, 2) and the stride (n, 1) of each cell, ordered by stride, then by row."""
    cells, cell_strides = [], []
    for stride in strides:
        rows, columns = size[0] // stride, size[1] // stride
        y, x = np.mgrid[:rows, :columns]
        cells.append(np.stack([x.ravel(), y.ravel()], axis=1))
        cell_strides.append(np.full((rows * columns, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(cell_strides).astype(np.float32)


def _above_threshold(scores: FloatArray, score: float) -> NDArray[np.bool_]:
    if not np.isfinite(scores).all():
        raise InferenceError("The model returned scores that are not finite. Check its weights and its [input].")
    return scores >= score


def _check_shapes(
    outputs: Sequence[NDArray[Any]], shapes: list[tuple[int | None, ...]], decoder: str
) -> Sequence[NDArray[Any]]:
    """Return the outputs. Raises ModelError if they do not have these shapes (None: any length)."""
    fits = len(outputs) == len(shapes) and all(
        output.ndim == len(shape)
        and all(length in {None, actual} for actual, length in zip(output.shape, shape, strict=True))
        for output, shape in zip(outputs, shapes, strict=True)
    )
    if not fits:
        raise _shape_error(decoder, outputs, shapes)
    return outputs


def _shape_error(
    decoder: str, outputs: Sequence[NDArray[Any]], shapes: list[tuple[int | None, ...]] | None = None
) -> ModelError:
    expected = f"outputs of shape {shapes}" if shapes else "boxes, labels and scores"
    return ModelError(
        f"The model's outputs have the shapes {[output.shape for output in outputs]}; decoder {decoder!r} needs {expected}. "
        "Check the spec's decoder, strides, size and labels.",
        code="model_refused",
    )
