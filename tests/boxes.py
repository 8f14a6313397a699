"""Overlap of boxes, to compare detections."""

from __future__ import annotations

from vidflow.domain.detections import Box, area


def iou(box: Box, other: Box) -> float:
    """Return intersection over union, 0 to 1. It is 0 if both boxes are empty."""
    shared = area((max(box[0], other[0]), max(box[1], other[1]), min(box[2], other[2]), min(box[3], other[3])))
    union = area(box) + area(other) - shared
    return shared / union if union > 0 else 0.0
