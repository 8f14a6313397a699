"""Suppress overlapping boxes."""

from __future__ import annotations

from typing import Final

import numpy as np

from vidflow.infra.models.decoders.candidates import Candidates
from vidflow.infra.models.decoders.oriented import Points, bound_shared_areas, polygon_areas, shared_areas

MAX_CANDIDATES: Final = 3000
"""Suppression takes quadratic time, so only this many of the best boxes are considered."""
ROUNDING: Final = 1e-6
"""Share by which a bound of an area may be too small."""


@np.errstate(all="ignore")  # boxes that are not finite are refused when they become detections
def apply_nms(candidates: Candidates, nms_iou: float) -> Candidates:
    """Return the best of each group of boxes of one class that overlap by more than `nms_iou`, best first.

    Equal scores keep their order, so that every run gives the same result. The overlap of oriented boxes is that of their areas.
    """
    order = np.argsort(-candidates.scores, kind="stable")[:MAX_CANDIDATES]
    boxes, classes = candidates.boxes[order].astype(np.float64), candidates.classes[order]
    corners = None if candidates.corners is None else candidates.corners[order].astype(np.float64)
    areas = _area(boxes[:, :2], boxes[:, 2:]) if corners is None else np.abs(polygon_areas(corners))
    alive = np.ones(len(order), dtype=bool)
    for index in range(len(order)):
        if not alive[index]:
            continue
        rest = np.flatnonzero(alive[index + 1 :] & (classes[index + 1 :] == classes[index])) + index + 1
        corner = np.maximum(boxes[rest, :2], boxes[index, :2])
        intersection = _area(corner, np.minimum(boxes[rest, 2:], boxes[index, 2:]))
        if corners is not None:  # enclosing boxes share at least as much as the boxes in them
            rest = rest[intersection > nms_iou * np.maximum(areas[rest], areas[index])]
            least = nms_iou / (1 + nms_iou) * (areas[rest] + areas[index])  # that an overlap of nms_iou takes
            rest = rest[~(bound_shared_areas(corners[index], corners[rest]) < least * (1 - ROUNDING))]
            intersection = shared_areas(corners[index], corners[rest])
        union = areas[rest] + areas[index] - intersection
        alive[rest[intersection > nms_iou * union]] = False
    return candidates.take(order[alive])


def _area(top_left: Points, bottom_right: Points) -> Points:
    area: Points = np.prod(np.maximum(bottom_right - top_left, 0), axis=1)
    return area
