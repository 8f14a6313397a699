"""Oriented boxes: rotation, and the area that two of them share."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vidflow.infra.models.decoders.candidates import FloatArray

Points = NDArray[np.float64]
"""Coordinates, or what is computed from them."""
TOLERANCE: Final = 1e-6
"""Square pixels by which a point may lie outside an edge and count as inside: far above rounding, and invisible in an area."""


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


def shared_areas(quadrangle: Points, others: Points) -> Points:
    """Return the areas (n) that a convex quadrangle (4, 2) shares with `others` (n, 4, 2).

    The corners of the intersection are the corners of each one that lie inside the other, and the points where their edges meet. The
    intersection is convex, so that the angles around its centre give their order.
    """
    if not len(others):
        return np.zeros(0)
    ones = np.broadcast_to(quadrangle, others.shape)
    points, valid = (
        np.concatenate(parts, axis=1)
        for parts in zip(
            (ones, _contain(others, ones)), (others, _contain(ones, others)), _meeting_points(ones, others), strict=True
        )
    )
    number = np.maximum(valid.sum(axis=1), 1)[:, None]
    centred = points - (np.where(valid[..., None], points, 0).sum(axis=1) / number)[:, None]
    angles = np.where(valid, np.arctan2(centred[..., 1], centred[..., 0]), np.inf)
    order = np.argsort(angles, axis=1)
    order = np.where(
        np.take_along_axis(valid, order, axis=1), order, order[:, :1]
    )  # points that are none repeat the first one
    outline = np.take_along_axis(centred, order[..., None], axis=1)
    return np.where(valid.any(axis=1), polygon_areas(outline), 0)


def _contain(polygons: Points, points: Points) -> NDArray[np.bool_]:
    """Return which points (n, points, 2) lie in the convex polygons (n, corners, 2)."""
    edges = np.roll(polygons, -1, axis=1) - polygons
    sides = _cross(edges[:, None], points[:, :, None] - polygons[:, None])
    turn = np.sign(polygon_areas(polygons))[:, None]
    inside: NDArray[np.bool_] = np.logical_and.reduce(sides * turn[..., None] >= -TOLERANCE, axis=2) & (turn != 0)
    return inside


def _meeting_points(ones: Points, others: Points) -> tuple[Points, NDArray[np.bool_]]:
    """Return the points (n, 16, 2) where edges of two quadrangles meet, and which of them exist."""
    starts, edges = ones[:, :, None], (np.roll(ones, -1, axis=1) - ones)[:, :, None]
    other_edges = (np.roll(others, -1, axis=1) - others)[:, None]
    between = others[:, None] - starts
    denominators = _cross(edges, other_edges)
    denominators[denominators == 0] = np.nan  # parallel edges meet nowhere
    along, along_other = (_cross(between, vectors) / denominators for vectors in (other_edges, edges))
    valid = (along >= 0) & (along <= 1) & (along_other >= 0) & (along_other <= 1)
    points = starts + edges * np.where(valid, along, 0)[..., None]
    return points.reshape(len(ones), -1, 2), valid.reshape(len(ones), -1)


def _cross(one: Points, other: Points) -> Points:
    result: Points = one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]
    return result
