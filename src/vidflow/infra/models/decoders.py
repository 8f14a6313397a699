"""From a model's output tensors to boxes, scores and class indices, and the thinning out of overlapping boxes. Numpy only.

A decoder takes the outputs of one batch and gives one Candidates a picture: boxes (x1, y1, x2, y2) in the tensor's
pixels, only those with at least the wanted score. Raises ModelError where the outputs have not the decoder's shape,
InferenceError where a score is no number.
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
"""Thinning out takes time by the square of the boxes; of more than these the best are looked at."""
MAX_EXPONENT: Final = np.float32(20.0)
"""e**20 strides are wider than any tensor: a size past it is clipped to the frame anyway, and must not overflow."""


class Candidates(msgspec.Struct, frozen=True):
    """What one picture may hold: `boxes` (n, 4), `scores` (n), `classes` (n)."""

    boxes: FloatArray
    scores: FloatArray
    classes: IntArray

    def take(self, places: IntArray | NDArray[np.bool_]) -> Candidates:
        """Those at these indices, or where this mask is true."""
        return Candidates(self.boxes[places], self.scores[places], self.classes[places])


class Layout(msgspec.Struct, frozen=True):
    """What a decoder must know of the model: the tensor's (height, width), the strides, how many classes there are."""

    size: tuple[int, int]
    strides: tuple[int, ...]
    classes: int


Decoder = Callable[[Sequence[NDArray[Any]], Layout, float], list[Candidates]]


def decode_yolox(outputs: Sequence[NDArray[Any]], layout: Layout, score: float) -> list[Candidates]:
    """One output (batch, cells, 5 + classes): centre relative to the cell and log of the size, in strides."""
    grid, stride = _grid(layout.size, layout.strides)
    (raw,) = _check_shapes(outputs, [(None, len(grid), 5 + layout.classes)], "yolox")
    return [_yolox_picture(rows, grid, stride, score) for rows in raw.astype(np.float32, copy=False)]


def _yolox_picture(rows: FloatArray, grid: FloatArray, stride: FloatArray, score: float) -> Candidates:
    classes = rows[:, 5:].argmax(axis=1)
    scores = rows[:, 4] * rows[np.arange(len(rows)), 5 + classes]
    strong = _above_threshold(scores, score)
    rows, grid, stride = rows[strong], grid[strong], stride[strong]
    centre = (rows[:, :2] + grid) * stride
    half = np.exp(np.minimum(rows[:, 2:4], MAX_EXPONENT)) * stride / 2
    return Candidates(np.concatenate([centre - half, centre + half], axis=1), scores[strong], classes[strong])


def decode_fastestdet(outputs: Sequence[NDArray[Any]], layout: Layout, score: float) -> list[Candidates]:
    """One output (batch, 5 + classes, rows, columns): objectness, tanh offset, sigmoid size, class probabilities."""
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
    """The first three outputs are boxes (n, 4), scores (n) and labels (n) of whole numbers, in any order, of one picture."""
    whole = [output for output in outputs[:3] if np.issubdtype(output.dtype, np.integer)]
    real = sorted((output for output in outputs[:3] if np.issubdtype(output.dtype, np.floating)), key=lambda o: o.ndim)
    if len(whole) != 1 or len(real) != 2 or not real[1].size == 4 * real[0].size == 4 * whole[0].size:
        raise _shape_error("torchvision", outputs)
    found = Candidates(
        real[1].reshape(-1, 4).astype(np.float32),
        real[0].reshape(-1).astype(np.float32),
        whole[0].reshape(-1).astype(np.int64),
    )
    return [found.take(_above_threshold(found.scores, score))]


DECODERS: Final[dict[str, Decoder]] = {
    "yolox": decode_yolox,
    "fastestdet": decode_fastestdet,
    "torchvision": decode_torchvision,
}


def apply_nms(found: Candidates, nms_iou: float) -> Candidates:
    """The best box of each group of boxes of one class that overlap by more than `nms_iou`, best first.

    Equal scores keep their order, so that the outcome is the same at every run.
    """
    order = np.argsort(-found.scores, kind="stable")[:MAX_CANDIDATES]
    boxes, classes = found.boxes[order].astype(np.float64), found.classes[order]
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    alive = np.ones(len(order), dtype=bool)
    for place in range(len(order)):
        if not alive[place]:
            continue
        rest = np.flatnonzero(alive[place + 1 :] & (classes[place + 1 :] == classes[place])) + place + 1
        corner = np.maximum(boxes[rest, :2], boxes[place, :2])
        shared = np.prod(np.maximum(np.minimum(boxes[rest, 2:], boxes[place, 2:]) - corner, 0), axis=1)
        union = areas[rest] + areas[place] - shared
        alive[rest[shared > nms_iou * union]] = False
    return found.take(order[alive])


@lru_cache(maxsize=8)
def _grid(size: tuple[int, int], strides: tuple[int, ...]) -> tuple[FloatArray, FloatArray]:
    """The column and row (n, 2) and the stride (n, 1) of each cell, stride by stride, row by row."""
    cells, widths = [], []
    for stride in strides:
        rows, columns = size[0] // stride, size[1] // stride
        y, x = np.mgrid[:rows, :columns]
        cells.append(np.stack([x.ravel(), y.ravel()], axis=1))
        widths.append(np.full((rows * columns, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(widths).astype(np.float32)


def _above_threshold(scores: FloatArray, score: float) -> NDArray[np.bool_]:
    if not np.isfinite(scores).all():
        raise InferenceError("the model gave scores that are no finite numbers; check its weights and its [input]")
    return scores >= score


def _check_shapes(
    outputs: Sequence[NDArray[Any]], shapes: list[tuple[int | None, ...]], decoder: str
) -> Sequence[NDArray[Any]]:
    """The outputs, if they have these shapes (None: any length)."""
    fits = len(outputs) == len(shapes) and all(
        output.ndim == len(shape) and all(want in {None, have} for have, want in zip(output.shape, shape, strict=True))
        for output, shape in zip(outputs, shapes, strict=True)
    )
    if not fits:
        raise _shape_error(decoder, outputs, shapes)
    return outputs


def _shape_error(
    decoder: str, outputs: Sequence[NDArray[Any]], shapes: list[tuple[int | None, ...]] | None = None
) -> ModelError:
    wanted = f"of shape {shapes}" if shapes else "boxes, labels and scores"
    return ModelError(
        f"the model gives outputs of shape {[output.shape for output in outputs]}, the decoder {decoder!r} wants {wanted}; "
        "check the spec's decoder, strides, size and labels",
        code="model_refused",
    )
