"""Decoders of the YOLO family: one output with a row or a column of numbers per cell or per detection."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

from vidflow.infra.models.decoders.candidates import (
    Candidates,
    FloatArray,
    IntArray,
    Layout,
    OutputMismatchError,
    Outputs,
    above_threshold,
    corners,
    describe_labels,
    describe_shape,
    to_pixels,
    to_whole_numbers,
)

MAX_EXPONENT: Final = np.float32(20.0)
"""e**20 strides are wider than any tensor. Larger boxes are clipped to the frame anyway and must not overflow."""
BOX: Final = 4
BOX_AND_OBJECTNESS: Final = 5
END2END_COLUMNS: Final = 6
MAX_PROBABILITY: Final = np.float32(1.001)
"""Rounding may exceed 1 slightly."""


def decode_yolox(outputs: Outputs, layout: Layout, score: float) -> list[Candidates]:
    """Decode (batch, cells, 5 + classes): centre relative to the cell and log of the size, in strides; objectness; classes."""
    grid, stride = _grid(layout.size, layout.output.strides)
    raw = _find_output(outputs, ("batch", len(grid), BOX_AND_OBJECTNESS + layout.classes), layout)
    return [_yolox_picture(rows, grid, stride, score) for rows in raw]


def _yolox_picture(rows: FloatArray, grid: FloatArray, stride: FloatArray, score: float) -> Candidates:
    cells, scores, classes = _best_cells(rows, score)
    rows, grid, stride = rows[cells], grid[cells], stride[cells]
    centre = (rows[:, :2] + grid) * stride
    size = np.exp(np.minimum(rows[:, 2:4], MAX_EXPONENT)) * stride
    return Candidates(corners(centre, size), scores, classes)


def decode_yolov5(outputs: Outputs, layout: Layout, score: float) -> list[Candidates]:
    """Decode (batch, cells, 5 + classes): centre and size in pixels, objectness, classes. Other outputs are not used.

    YOLOv5, v6 and v7 export it, and YOLOX with its decoding inside the model.
    """
    raw = _find_output(outputs, ("batch", "cells", BOX_AND_OBJECTNESS + layout.classes), layout)
    return [_yolov5_picture(rows, layout, score) for rows in raw]


def _yolov5_picture(rows: FloatArray, layout: Layout, score: float) -> Candidates:
    cells, scores, classes = _best_cells(rows, score)
    boxes = corners(rows[cells, :2], rows[cells, 2:4])
    return Candidates(to_pixels(boxes, layout, "pixels"), scores, classes)


def decode_yolov8(outputs: Outputs, layout: Layout, score: float) -> list[Candidates]:
    """Decode (batch, 4 + classes, cells) or its transpose: centre and size in pixels, classes. There is no objectness.

    YOLOv8, v9, 11 and 12 export it.
    """
    length = BOX + layout.classes
    shapes: tuple[tuple[int | str, ...], ...] = (("batch", length, "cells"), ("batch", "cells", length))
    try:
        raw = _find_output(outputs, shapes[0], layout)
    except OutputMismatchError as mismatch:
        try:
            raw = _find_output(outputs, shapes[1], layout).transpose(0, 2, 1)
        except OutputMismatchError:
            raise OutputMismatchError(f"{mismatch}, or its transpose") from None
    return [_yolov8_picture(columns, layout, score) for columns in raw]


def _yolov8_picture(columns: FloatArray, layout: Layout, score: float) -> Candidates:
    scores = columns[BOX:].max(axis=0)
    selection = np.flatnonzero(above_threshold(scores, score))
    columns = columns[:, selection]
    boxes = corners(columns[:2].T, columns[2:4].T)
    return Candidates(to_pixels(boxes, layout, "pixels"), scores[selection], columns[BOX:].argmax(axis=0))


def decode_yolo_end2end(outputs: Outputs, layout: Layout, score: float) -> list[Candidates]:
    """Decode (batch, detections, 6): corners x1 y1 x2 y2 in pixels, score, class. The model has selected the boxes.

    YOLOv10 and YOLO26 export it, and the others when their export includes the suppression of overlapping boxes.
    """
    raw = _find_output(outputs, ("batch", "detections", END2END_COLUMNS), layout)
    return [_end2end_picture(rows, layout, score) for rows in raw]


def _end2end_picture(rows: FloatArray, layout: Layout, score: float) -> Candidates:
    rows = rows[above_threshold(rows[:, 4], score)]
    return Candidates(to_pixels(rows[:, :4], layout, "pixels"), rows[:, 4], to_whole_numbers(rows[:, 5], "class"))


def decode_fastestdet(outputs: Outputs, layout: Layout, score: float) -> list[Candidates]:
    """Decode (batch, 5 + classes, rows, columns): objectness, tanh offset, sigmoid size, class probabilities."""
    raw = _find_output(outputs, ("batch", BOX_AND_OBJECTNESS + layout.classes, "rows", "columns"), layout)
    return [_fastestdet_picture(cells, layout.size, score) for cells in raw]


def _fastestdet_picture(cells: FloatArray, size: tuple[int, int], score: float) -> Candidates:
    _, rows, columns = cells.shape
    classes = cells[5:].argmax(axis=0)
    best = np.take_along_axis(cells[5:], classes[None], axis=0)[0]
    scores = np.maximum(cells[0], 0) ** np.float32(0.6) * np.maximum(best, 0) ** np.float32(0.4)
    y, x = np.nonzero(above_threshold(scores, score))
    shape = np.array([columns, rows], dtype=np.float32)
    pixels = np.array([size[1], size[0]], dtype=np.float32)
    centre = (np.tanh(cells[1:3, y, x].T) + np.stack([x, y], axis=1).astype(np.float32)) / shape * pixels
    box_size = pixels / (1 + np.exp(np.minimum(-cells[3:5, y, x].T, MAX_EXPONENT)))
    return Candidates(corners(centre, box_size), scores[y, x], classes[y, x])


def _best_cells(rows: FloatArray, score: float) -> tuple[IntArray, FloatArray, IntArray]:
    """Return the indices, scores and classes of the rows (box, objectness, classes) that reach `score`.

    A class has at most the probability 1, so that classes are compared only where the objectness suffices.
    """
    cells = np.flatnonzero(above_threshold(rows[:, BOX] * MAX_PROBABILITY, score))
    classes = rows[cells, BOX_AND_OBJECTNESS:].argmax(axis=1)
    scores = rows[cells, BOX] * rows[cells, BOX_AND_OBJECTNESS + classes]
    selection = above_threshold(scores, score)
    return cells[selection], scores[selection], classes[selection]


def _find_output(outputs: Outputs, shape: tuple[int | str, ...], layout: Layout) -> FloatArray:
    """Return the first output of this shape (text: any length). Raises OutputMismatchError if there is none."""
    for output in outputs:
        if output.ndim == len(shape) and all(
            isinstance(length, str) or length == actual for length, actual in zip(shape, output.shape, strict=True)
        ):
            return output.astype(np.float32, copy=False)
    raise OutputMismatchError(f"{describe_shape(shape)} for {describe_labels(layout)}")


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
