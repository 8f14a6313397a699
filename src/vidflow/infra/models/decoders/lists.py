"""Decoders of models that select their boxes themselves and return lists of boxes, scores and classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from vidflow.infra.models.decoders.candidates import (
    Candidates,
    FloatArray,
    Layout,
    OutputMismatchError,
    Outputs,
    above_threshold,
    to_pixels,
    to_whole_numbers,
)
from vidflow.infra.models.decoders.keypoints import build_keypoints
from vidflow.infra.models.decoders.masks import PROBABILITY, Masks, masks_of_boxes, masks_of_tensor
from vidflow.infra.models.decoders.roles import Lists, find_keypoints, find_lists, find_masks

XYXY: Final = (0, 1, 2, 3)
YXYX: Final = (1, 0, 3, 2)


def decode_torchvision(outputs: Outputs, layout: Layout, score: float) -> list[Candidates]:
    """Decode boxes x1 y1 x2 y2 in pixels, scores and classes, of one picture (n, 4) or of a batch (batch, n, 4)."""
    return decode_lists(outputs, layout, score, XYXY, "pixels")


def decode_ssd(outputs: Outputs, layout: Layout, score: float) -> list[Candidates]:
    """Decode boxes y1 x1 y2 x2 from 0 to 1, scores, classes and their count, as TensorFlow's detectors return them."""
    return decode_lists(outputs, layout, score, YXYX, "normalised")


def decode_lists(
    outputs: Outputs, layout: Layout, score: float, columns: Sequence[int], unit: Literal["pixels", "normalised"]
) -> list[Candidates]:
    """Decode lists whose boxes have x1, y1, x2, y2 in these `columns`, in `unit` unless the spec names another."""
    lists = find_lists(outputs, layout)
    boxes, scores, classes = (_with_batch(values, lists) for values in (lists.boxes, lists.scores, lists.classes))
    keypoints = _decode_keypoints(outputs, layout, lists) if layout.task == "keypoints" else None
    masks = (
        _with_batch(find_masks(outputs, layout, lists.boxes), lists) if layout.task == "instance_segmentation" else None
    )
    boxes, scores = boxes[..., list(columns)].astype(np.float32), scores.astype(np.float32, copy=False)
    all_rows = np.full(len(boxes), boxes.shape[1])
    counts = all_rows if lists.count is None else to_whole_numbers(lists.count.reshape(-1), "count")
    if len(counts) != len(boxes):
        raise OutputMismatchError(f"one count per picture, that is {len(boxes)}")
    found = []
    for index, count in enumerate(np.maximum(counts, 0)):
        selection = np.flatnonzero(above_threshold(scores[index, :count], score))
        in_pixels = to_pixels(boxes[index, selection], layout, unit)
        found.append(
            Candidates(
                in_pixels,
                scores[index, selection],
                to_whole_numbers(classes[index, selection], "class"),
                None if keypoints is None else keypoints[index, selection],
                masks=None if masks is None else decode_masks(masks[index, selection], in_pixels, layout.size),
            )
        )
    return found


def _decode_keypoints(outputs: Outputs, layout: Layout, lists: Lists) -> FloatArray:
    """Return the keypoints (batch, n, keypoints, 3)."""
    points, logits = find_keypoints(outputs, layout, lists.boxes)
    keypoints = build_keypoints(
        points.astype(np.float32, copy=False), None if logits is None else logits.astype(np.float32, copy=False), layout
    )
    return _with_batch(keypoints, lists)


def decode_masks(values: NDArray[Any], boxes: FloatArray, size: tuple[int, int]) -> Masks:
    """Return masks of probabilities (n, rows, columns): of the tensor if they have its size (height, width), or else of the boxes."""
    if values.shape[1:] == size:
        return masks_of_tensor(values, size, PROBABILITY)
    return masks_of_boxes(values, boxes)


def _with_batch(values: NDArray[Any], lists: Lists) -> NDArray[Any]:
    """Return an array with an axis for the batch, which lists of one picture do not have."""
    return values[None] if lists.boxes.ndim == 2 else values
