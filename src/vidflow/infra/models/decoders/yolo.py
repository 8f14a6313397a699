"""Decoders of the YOLO family: one output with a row or a column of numbers per cell or per detection."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidflow.infra.models.decoders.candidates import (
    Candidates,
    FloatArray,
    IntArray,
    Layout,
    OutputMismatchError,
    Outputs,
    above_threshold,
    centred_boxes,
    describe_labels,
    describe_shape,
    to_pixels,
    to_whole_numbers,
)
from vidflow.infra.models.decoders.keypoints import keypoints_from_rows
from vidflow.infra.models.decoders.masks import LOGIT, masks_of_tensor
from vidflow.infra.models.decoders.oriented import enclosing_boxes, rotate_boxes

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
    raw = _find_output(outputs, layout, ("batch", len(grid), BOX_AND_OBJECTNESS + layout.classes))
    return [_yolox_picture(rows, grid, stride, score) for rows in raw]


def _yolox_picture(rows: FloatArray, grid: FloatArray, stride: FloatArray, score: float) -> Candidates:
    cells, scores, classes = _best_cells(rows[:, BOX:], score)
    rows, grid, stride = rows[cells], grid[cells], stride[cells]
    centre = (rows[:, :2] + grid) * stride
    size = np.exp(np.minimum(rows[:, 2:4], MAX_EXPONENT)) * stride
    return Candidates(centred_boxes(centre, size), scores, classes)


def decode_yolov5(outputs: Outputs, layout: Layout, score: float) -> list[Candidates]:
    """Decode (batch, cells, 5 + classes): centre and size in pixels, objectness, classes. Other outputs are not used.

    YOLOv5, v6 and v7 export it, and YOLOX with its decoding inside the model. Numbers of other tasks follow the classes.
    """
    length = BOX_AND_OBJECTNESS + layout.classes
    raw = _find_output(outputs, layout, *(("batch", "cells", length + more) for more in _more_columns(outputs, layout)))
    prototypes = _find_prototypes(outputs, layout, len(raw), raw.shape[2] - length)
    return [_yolov5_picture(rows, more, layout, score) for rows, more in zip(raw, prototypes, strict=True)]


def _yolov5_picture(rows: FloatArray, prototypes: FloatArray | None, layout: Layout, score: float) -> Candidates:
    length = BOX_AND_OBJECTNESS + layout.classes
    cells, scores, classes = _best_cells(rows[:, BOX:length], score)
    rows = rows[cells]
    found = Candidates(centred_boxes(rows[:, :2], rows[:, 2:4]), scores, classes)
    return _add_columns(found, rows[:, length:], prototypes, layout)


def decode_yolov8(outputs: Outputs, layout: Layout, score: float) -> list[Candidates]:
    """Decode (batch, 4 + classes, cells) or its transpose: centre and size in pixels, classes. There is no objectness.

    YOLOv8, v9, 11 and 12 export it. Numbers of other tasks follow the classes.
    """
    lengths = [BOX + layout.classes + more for more in _more_columns(outputs, layout)]
    try:
        raw = _find_output(outputs, layout, *(("batch", length, "cells") for length in lengths))
    except OutputMismatchError as mismatch:
        try:
            raw = _find_output(outputs, layout, *(("batch", "cells", length) for length in lengths)).transpose(0, 2, 1)
        except OutputMismatchError:
            raise OutputMismatchError(f"{mismatch}, or its transpose") from None
    prototypes = _find_prototypes(outputs, layout, len(raw), raw.shape[1] - BOX - layout.classes)
    return [_yolov8_picture(columns, more, layout, score) for columns, more in zip(raw, prototypes, strict=True)]


def _yolov8_picture(columns: FloatArray, prototypes: FloatArray | None, layout: Layout, score: float) -> Candidates:
    length = BOX + layout.classes
    scores = columns[BOX:length].max(axis=0)
    selection = np.flatnonzero(above_threshold(scores, score))
    columns = columns[:, selection]
    boxes = centred_boxes(columns[:2].T, columns[2:4].T)
    found = Candidates(boxes, scores[selection], columns[BOX:length].argmax(axis=0))
    return _add_columns(found, columns[length:].T, prototypes, layout)


def decode_yolo_end2end(outputs: Outputs, layout: Layout, score: float) -> list[Candidates]:
    """Decode (batch, detections, 6): corners x1 y1 x2 y2 in pixels, score, class. The model has selected the boxes.

    YOLOv10 and YOLO26 export it, and the others when their export includes the suppression of overlapping boxes. Numbers of other
    tasks follow the class. Oriented boxes have their centre and size instead of corners.
    """
    lengths = [END2END_COLUMNS + more for more in _more_columns(outputs, layout)]
    raw = _find_output(outputs, layout, *(("batch", "detections", length) for length in lengths))
    prototypes = _find_prototypes(outputs, layout, len(raw), raw.shape[2] - END2END_COLUMNS)
    return [_end2end_picture(rows, more, layout, score) for rows, more in zip(raw, prototypes, strict=True)]


def _end2end_picture(rows: FloatArray, prototypes: FloatArray | None, layout: Layout, score: float) -> Candidates:
    rows = rows[above_threshold(rows[:, 4], score)]
    boxes = rows[:, :4] if layout.task != "oriented_boxes" else centred_boxes(rows[:, :2], rows[:, 2:4])
    found = Candidates(boxes, rows[:, 4], to_whole_numbers(rows[:, 5], "class"))
    return _add_columns(found, rows[:, END2END_COLUMNS:], prototypes, layout)


def _more_columns(outputs: Outputs, layout: Layout) -> Sequence[int]:
    """Return how many numbers for the layout's task may follow the classes. Raises OutputMismatchError."""
    match layout.task:
        case "keypoints":
            if layout.output.keypoints is None:
                raise OutputMismatchError("the number of `keypoints` in [output]")
            return (3 * layout.output.keypoints, 2 * layout.output.keypoints)
        case "oriented_boxes":
            return (1,)
        case "instance_segmentation":
            channels = [output.shape[1] for output in outputs if _may_be_prototypes(output)]
            if not channels:
                raise OutputMismatchError("prototypes of masks (batch, channels, rows, columns)")
            return channels
        case _:
            return (0,)


def _find_prototypes(
    outputs: Outputs, layout: Layout, batch: int, channels: int
) -> Sequence[FloatArray] | Sequence[None]:
    """Return the prototypes of masks (channels, rows, columns) of each picture, None for other tasks. Raises OutputMismatchError."""
    if layout.task != "instance_segmentation":
        return [None] * batch
    for output in outputs:
        if _may_be_prototypes(output) and output.shape[:2] == (batch, channels):
            return list(output)
    raise OutputMismatchError(f"prototypes of masks ({batch}, {channels}, rows, columns)")


def _may_be_prototypes(output: NDArray[Any]) -> bool:
    return output.ndim == 4 and min(output.shape[1:]) > 0


def _add_columns(found: Candidates, columns: FloatArray, prototypes: FloatArray | None, layout: Layout) -> Candidates:
    """Return the candidates with what the columns (n, numbers) after the classes mean for the layout's task."""
    boxes, scores, classes = to_pixels(found.boxes, layout, "pixels"), found.scores, found.classes
    match layout.task:
        case "keypoints":
            return Candidates(boxes, scores, classes, keypoints=keypoints_from_rows(columns, layout))
        case "oriented_boxes":
            corners = rotate_boxes(boxes, columns[:, 0])
            return Candidates(enclosing_boxes(corners), scores, classes, corners=corners)
        case "instance_segmentation":
            masks = masks_of_tensor(columns, layout.size, LOGIT, prototypes)
            return Candidates(boxes, scores, classes, masks=masks)
        case _:
            return Candidates(boxes, scores, classes)


def decode_fastestdet(outputs: Outputs, layout: Layout, score: float) -> list[Candidates]:
    """Decode (batch, 5 + classes, rows, columns): objectness, tanh offset, sigmoid size, class probabilities."""
    raw = _find_output(outputs, layout, ("batch", BOX_AND_OBJECTNESS + layout.classes, "rows", "columns"))
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
    return Candidates(centred_boxes(centre, box_size), scores[y, x], classes[y, x])


def _best_cells(rows: FloatArray, score: float) -> tuple[IntArray, FloatArray, IntArray]:
    """Return the indices, scores and classes of the rows (objectness, classes) that reach `score`.

    A class has at most the probability 1, so that classes are compared only where the objectness suffices.
    """
    cells = np.flatnonzero(above_threshold(rows[:, 0] * MAX_PROBABILITY, score))
    classes = rows[cells, 1:].argmax(axis=1)
    scores = rows[cells, 0] * rows[cells, 1 + classes]
    selection = above_threshold(scores, score)
    return cells[selection], scores[selection], classes[selection]


def _find_output(outputs: Outputs, layout: Layout, *shapes: tuple[int | str, ...]) -> FloatArray:
    """Return the first output of one of these shapes, in which a text stands for any length. Raises OutputMismatchError."""
    for shape in shapes:
        for output in outputs:
            if output.ndim == len(shape) and all(
                isinstance(length, str) or length == actual for length, actual in zip(shape, output.shape, strict=True)
            ):
                return output.astype(np.float32, copy=False)
    described = " or ".join(map(describe_shape, shapes))
    raise OutputMismatchError(f"{described} for {describe_labels(layout)}")


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
