"""Decoder of the DETR family: a fixed number of queries, each with a box and the logits of its classes."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidflow.infra.models.decoders.activations import sigmoid, softmax
from vidflow.infra.models.decoders.candidates import (
    Candidates,
    FloatArray,
    IntArray,
    Layout,
    Outputs,
    above_threshold,
    centred_boxes,
    to_pixels,
)
from vidflow.infra.models.decoders.lists import XYXY, decode_lists
from vidflow.infra.models.decoders.masks import LOGIT, masks_of_tensor
from vidflow.infra.models.decoders.roles import find_boxes_and_logits, find_masks

BOX: Final = 4
RF_DETR_NAMES: Final = frozenset({"dets", "labels"})
"""RF-DETR may have one logit more than labels, but no class for \"no object\"."""


def decode_detr(outputs: Outputs, layout: Layout, score: float) -> list[Candidates]:
    """Decode one of three forms.

    * boxes (batch, queries, 4): centre and size from 0 to 1, and logits (batch, queries, classes): DETR, RT-DETR, RF-DETR. With
      one logit more than labels, the last one is DETR's "no object";
    * both in one output (batch, queries, 4 + classes), with probabilities instead of logits;
    * boxes x1 y1 x2 y2 in the units of the input `orig_target_sizes`, scores and classes: RT-DETR and D-FINE with their
      post-processing inside the model.

    For the task instance_segmentation, the first form has the logits of masks (batch, queries, rows, columns) of the whole tensor.
    """
    joined = _find_joined(outputs, layout)
    if joined is not None:
        return [_best_classes(rows[:, :BOX], rows[:, BOX:], None, layout, score) for rows in joined]
    found = find_boxes_and_logits(outputs, layout)
    if found is None:
        return decode_lists(outputs, layout, score, XYXY, "pixels")
    boxes, logits = (array.astype(np.float32, copy=False) for array in found)
    masks = find_masks(outputs, layout, found[0]) if layout.task == "instance_segmentation" else [None] * len(boxes)
    return [_picture(*picture, layout, score) for picture in zip(boxes, logits, masks, strict=True)]


def _find_joined(outputs: Outputs, layout: Layout) -> FloatArray | None:
    if (
        layout.task != "detection"
        or len(outputs) != 1
        or outputs[0].ndim != 3
        or outputs[0].shape[2] != BOX + layout.classes
    ):
        return None
    return outputs[0].astype(np.float32, copy=False)


def _picture(
    boxes: FloatArray, logits: FloatArray, masks: NDArray[Any] | None, layout: Layout, score: float
) -> Candidates:
    activation = layout.output.activation or _default_activation(logits.shape[1], layout)
    if activation == "softmax":
        return _best_classes(boxes, softmax(logits)[:, : layout.classes], masks, layout, score)
    scores = sigmoid(logits) if activation == "sigmoid" else logits
    return _best_pairs(boxes, scores[:, : layout.classes], masks, layout, score)


def _default_activation(logits: int, layout: Layout) -> str:
    has_no_object = logits == layout.classes + 1 and not set(layout.names) >= RF_DETR_NAMES
    return "softmax" if has_no_object else "sigmoid"


def _best_classes(
    boxes: FloatArray, scores: FloatArray, masks: NDArray[Any] | None, layout: Layout, score: float
) -> Candidates:
    """Return each query with its best class."""
    best = scores.max(axis=1)
    queries = np.flatnonzero(above_threshold(best, score))
    classes = scores[queries].argmax(axis=1)
    return _take(queries, classes, best[queries], boxes, masks, layout)


def _best_pairs(
    boxes: FloatArray, scores: FloatArray, masks: NDArray[Any] | None, layout: Layout, score: float
) -> Candidates:
    """Return the best pairs of a query and a class, at most as many as there are queries. A query may have several classes."""
    queries, classes = np.nonzero(above_threshold(scores, score))
    best = np.argsort(-scores[queries, classes], kind="stable")[: len(boxes)]
    queries, classes = queries[best], classes[best]
    return _take(queries, classes, scores[queries, classes], boxes, masks, layout)


def _take(
    queries: IntArray,
    classes: IntArray,
    scores: FloatArray,
    boxes: FloatArray,
    masks: NDArray[Any] | None,
    layout: Layout,
) -> Candidates:
    """Return these queries with the boxes and masks that they have among all."""
    boxes = boxes[queries]
    in_pixels = to_pixels(centred_boxes(boxes[:, :2], boxes[:, 2:]), layout, "normalised")
    grids = None if masks is None else masks_of_tensor(masks[queries], layout.size, LOGIT)
    return Candidates(in_pixels, scores, classes, masks=grids)
