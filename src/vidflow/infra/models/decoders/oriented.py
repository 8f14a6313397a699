"""Oriented boxes: rotation, and the area that two of them share."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vidflow.infra.models.decoders.candidates import FloatArray

Points = NDArray[np.float64]
"""Coordinates, or what is computed from them."""
FLAT: Final = 1e-9
"""Part of a rectangle's side by which a line may rise and still be level: far below what shows in an area."""


def rotate_boxes(boxes: FloatArray, angles: FloatArray) -> FloatArray:
    """Return the corners (n, 4, 2) of boxes (n, 4) that are rotated about their centres by `angles` (n), in radians clockwise.

    They are clockwise and start with the corner that was at the top left.
    """
    centres = ((boxes[:, :2].astype(np.float64) + boxes[:, 2:]) / 2)[:, None]
    x, y = np.moveaxis(boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2) - centres, -1, 0)
    cosine, sine = (function(angles.astype(np.float64))[:, None] for function in (np.cos, np.sin))
    rotated = np.stack([x * cosine - y * sine, x * sine + y * cosine], axis=-1)
    corners: FloatArray = (centres + rotated).astype(np.float32)
    return corners


def enclosing_boxes(corners: FloatArray) -> FloatArray:
    """Return the boxes (n, 4) that enclose corners (n, 4, 2)."""
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def polygon_areas(polygons: Points) -> Points:
    """Return the areas (n) of polygons (n, corners, 2). They are positive if the corners are clockwise, with y downwards."""
    areas: Points = _cross(polygons, np.roll(polygons, -1, axis=1)).sum(axis=1) / 2
    return areas


def shared_areas(rectangle: Points, others: Points) -> Points:
    """Return the areas (n) that a rectangle (4, 2) shares with `others` (n, 4, 2), which are convex.

    In coordinates in which the rectangle is the square from 0 to 1, such an area is the integral along the other's outline, by x, of the
    square's part below it: edges in one direction add what edges in the other one subtract.
    """
    right, down = rectangle[1] - rectangle[0], rectangle[3] - rectangle[0]
    area = _cross(right, down)
    if area == 0:
        return np.zeros(len(others))
    points = others - rectangle[0]
    x, y = _cross(points, down) / area, _cross(right, points) / area
    next_x, next_y = (np.roll(values, -1, axis=1) for values in (x, y))
    start, end = np.clip(x, 0, 1), np.clip(next_x, 0, 1)
    width = end - start
    slope = np.divide(next_y - y, next_x - x, out=np.zeros_like(x), where=width != 0)
    heights = _mean_heights(y + (start - x) * slope, y + (end - x) * slope)
    shared: Points = np.abs((width * heights).sum(axis=1) * area)
    return shared


@np.errstate(divide="ignore", invalid="ignore")
def bound_shared_areas(rectangle: Points, others: Points) -> Points:
    """Return areas (n) that are no smaller than what a rectangle (4, 2) shares with other ones (n, 4, 2), at a tenth of the cost.

    Each rectangle lies in two strips, one as wide as it is high, the other one as wide as it is. A strip of each of two rectangles share
    the product of their widths, divided by the sine of the angle between them.
    """
    along, across = _measure_sides(rectangle)
    others_along, others_across = _measure_sides(others)
    sides = rectangle[1] - rectangle[0], others[:, 1] - others[:, 0]
    lengths = along * others_along
    sine, cosine = np.abs(_cross(*sides)) / lengths, np.abs((sides[0] * sides[1]).sum(axis=-1)) / lengths
    turned = np.minimum(along * others_across, across * others_along) / cosine
    bounds: Points = np.fmin(np.minimum(lengths, across * others_across) / sine, turned)
    return bounds


def _measure_sides(rectangles: Points) -> tuple[Points, Points]:
    """Return the lengths of the first and the last side of rectangles (..., 4, 2)."""
    first, last = rectangles[..., 1, :] - rectangles[..., 0, :], rectangles[..., 3, :] - rectangles[..., 0, :]
    return np.hypot(first[..., 0], first[..., 1]), np.hypot(last[..., 0], last[..., 1])


def _mean_heights(start: Points, end: Points) -> Points:
    """Return the mean height of the part of the square from 0 to 1 that lies below lines from height `start` to height `end`."""
    low, high = np.clip(start, 0, 1), np.clip(end, 0, 1)
    rise = np.abs(end - start)
    above = np.abs(np.maximum(end, 1) - np.maximum(start, 1))  # in the share of the line that lies above the square
    mean = (low + high) / 2
    heights: Points = np.divide(np.abs(high - low) * mean + above, rise, out=mean.copy(), where=rise > FLAT)
    return heights


def _cross(one: Points, other: Points) -> Points:
    result: Points = one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]
    return result
