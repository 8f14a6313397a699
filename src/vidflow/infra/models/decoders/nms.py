"""Suppress overlapping boxes."""

from __future__ import annotations

from typing import Final

import numpy as np

from vidflow.infra.models.decoders.candidates import Candidates

MAX_CANDIDATES: Final = 3000
"""Suppression takes quadratic time, so only this many of the best boxes are considered."""


@np.errstate(all="ignore")  # boxes that are not finite are refused when they become detections
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
