"""Overlap and distances of boxes, to compare detections."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vidflow.domain.detections import Box, Detection, area


def iou(box: Box, other: Box) -> float:
    """Return intersection over union, 0 to 1. It is 0 if both boxes are empty."""
    shared = area((max(box[0], other[0]), max(box[1], other[1]), min(box[2], other[2]), min(box[3], other[3])))
    union = area(box) + area(other) - shared
    return shared / union if union > 0 else 0.0


def largest_differences(
    found: Iterable[Detection], expected: Iterable[tuple[str, float, Sequence[float]]], width: int, height: int
) -> tuple[int, float, float]:
    """Return the number of detections, and by how much their boxes and scores differ at most from the expected ones.

    Each expected label, score and box (x1, y1, x2, y2) is compared with the nearest detection of that label. Boxes are clipped to the
    picture, and those without an area in it are left out, as vidflow does. Fails if the labels are not the same.
    """
    rest = list(found)
    count, box_difference, score_difference = len(rest), 0.0, 0.0
    for label, score, box in expected:
        clipped = [min(max(value, 0), limit) for value, limit in zip(box, (width, height) * 2, strict=True)]
        if round(clipped[2], 2) <= round(clipped[0], 2) or round(clipped[3], 2) <= round(clipped[1], 2):
            continue
        distances = [
            (max(abs(a - b) for a, b in zip(each.box, clipped, strict=True)), abs(each.score - score), index)
            for index, each in enumerate(rest)
            if each.label == label
        ]
        assert distances, f"no {label} of {score} at {clipped}"
        nearest = min(distances)
        box_difference, score_difference = max(box_difference, nearest[0]), max(score_difference, nearest[1])
        del rest[nearest[2]]
    assert not rest, f"not expected: {rest}"
    return count, box_difference, score_difference
