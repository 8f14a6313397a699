"""Areas that oriented boxes share, beside values computed by hand and by counting points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vidflow.infra.models.decoders import Candidates, apply_nms
from vidflow.infra.models.decoders.oriented import (
    bound_shared_areas,
    enclosing_boxes,
    polygon_areas,
    rotate_boxes,
    shared_areas,
)


def oriented(x: float, y: float, width: float, height: float, degrees: float) -> NDArray[np.float64]:
    box = np.array([[x - width / 2, y - height / 2, x + width / 2, y + height / 2]], dtype=np.float32)
    corners: NDArray[np.float64] = rotate_boxes(box, np.radians(np.array([degrees], dtype=np.float32))).astype(
        np.float64
    )
    one: NDArray[np.float64] = corners[0]
    return one


def shared(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(shared_areas(one, other[None])[0])


@pytest.mark.parametrize(
    ("one", "other", "area"),
    [
        ((0, 0, 10, 4, 0), (0, 0, 10, 4, 0), 40),  # the same
        ((0, 0, 10, 4, 37), (0, 0, 10, 4, 37), 40),
        ((0, 0, 10, 4, 37), (0, 0, 10, 4, 217), 40),  # half a turn
        ((0, 0, 10, 10, 0), (0, 0, 10, 10, 45), 200 * (2**0.5 - 1)),  # an octagon
        ((0, 0, 10, 4, 0), (0, 0, 10, 4, 90), 16),  # a cross
        ((0, 0, 10, 10, 0), (5, 5, 10, 10, 0), 25),
        ((0, 0, 10, 10, 0), (10, 0, 10, 10, 0), 0),  # a common edge
        ((0, 0, 10, 10, 0), (5, 5, 0.2, 0.2, 0), 0.01),
        ((0, 0, 10, 10, 20), (0, 0, 2, 2, 65), 4),  # one inside the other
        ((0, 0, 10, 10, 0), (30, 0, 10, 10, 45), 0),
        ((0, 0, 10, 0, 0), (0, 0, 10, 10, 0), 0),  # no area
    ],
)
def test_shared_areas_are_those_computed_by_hand(one: Any, other: Any, area: float) -> None:
    assert shared(oriented(*one), oriented(*other)) == pytest.approx(area, abs=1e-3)
    assert shared(oriented(*other), oriented(*one)) == pytest.approx(area, abs=1e-3)
    assert shared(oriented(*one)[::-1], oriented(*other)) == pytest.approx(area, abs=1e-3)


def test_shared_areas_of_random_boxes_are_the_points_that_both_contain() -> None:
    random = np.random.default_rng(5)
    values = random.uniform((30, 30, 10, 10, -180), (70, 70, 60, 60, 180), (40, 5))
    y, x = np.mgrid[-15:115:0.25, -15:115:0.25] + 0.125
    inside = [contains(box, x, y) for box in values]
    boxes = np.stack([oriented(*box) for box in values])
    assert polygon_areas(boxes) == pytest.approx(values[:, 2] * values[:, 3], rel=1e-4)
    for box, points in zip(boxes, inside, strict=True):
        counted = [float((points & other).sum()) / 16 for other in inside]
        assert shared_areas(box, boxes) == pytest.approx(counted, abs=8)  # half a point at each end of up to 160 rows


def contains(box: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which points lie in a box: turned back, they lie within half its sides."""
    centre_x, centre_y, width, height, degrees = box
    turned = ((x - centre_x) + 1j * (y - centre_y)) * np.exp(-1j * np.radians(degrees))
    inside: NDArray[np.bool_] = (abs(turned.real) < width / 2) & (abs(turned.imag) < height / 2)
    return inside


def clip_polygon(polygon: list[complex], box: list[complex]) -> list[complex]:
    """Return the part of a polygon that lies in a convex one, cut along each edge in turn (Sutherland and Hodgman)."""
    for start, end in zip(box, box[1:] + box[:1], strict=True):
        sides = [((end - start).conjugate() * (point - start)).imag for point in polygon]
        cut: list[complex] = []
        for index, (point, side) in enumerate(zip(polygon, sides, strict=True)):
            before, side_before = polygon[index - 1], sides[index - 1]
            if (side >= 0) != (side_before >= 0):
                cut.append(before + (point - before) * (side_before / (side_before - side)))
            if side >= 0:
                cut.append(point)
        polygon = cut
    return polygon


def area_of(polygon: list[complex]) -> float:
    return (
        sum(
            ((one.conjugate() * other).imag for one, other in zip(polygon, polygon[1:] + polygon[:1], strict=True)), 0.0
        )
        / 2
    )


def random_boxes(count: int, seed: int, place: float = 100.0) -> NDArray[np.float32]:
    """Return the corners of boxes that overlap in all ways, from squares to lines of half a pixel's width."""
    random = np.random.default_rng(seed)
    centres = place + random.uniform(-20, 20, (count, 2))
    sizes = np.exp(random.uniform(-0.7, 5, (count, 2)))
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1).astype(np.float32)
    angles = random.choice([random.uniform(-4, 4, count), np.round(random.uniform(-4, 4, count)) * np.pi / 4], axis=0)
    return rotate_boxes(boxes, angles.astype(np.float32))


def as_polygons(corners: NDArray[Any]) -> list[list[complex]]:
    return [[complex(x, y) for x, y in box] for box in corners.astype(np.float64).tolist()]


@pytest.mark.parametrize(("seed", "place"), [(1, 100.0), (2, 100.0), (3, 3000.0)])
def test_shared_areas_are_those_of_polygons_that_are_cut(seed: int, place: float) -> None:
    corners = random_boxes(60, seed, place)
    polygons, boxes = as_polygons(corners), corners.astype(np.float64)
    for box, polygon in zip(boxes, polygons, strict=True):
        expected = np.array([area_of(clip_polygon(other, polygon)) for other in polygons])
        assert shared_areas(box, boxes) == pytest.approx(expected, abs=1e-2 * place / 100, rel=1e-3)
        assert (bound_shared_areas(box, boxes) >= expected * (1 - 1e-3) - 1e-2 * place / 100).all()


@pytest.mark.parametrize("nms_iou", [0.1, 0.3, 0.6])
def test_the_weaker_of_oriented_boxes_that_overlap_are_suppressed(nms_iou: float) -> None:
    corners = random_boxes(150, 4)
    polygons = as_polygons(corners)
    random = np.random.default_rng(6)
    scores, classes = random.random(150).astype(np.float32), random.integers(0, 3, 150)
    kept: list[int] = []
    for index in np.argsort(-scores).tolist():
        overlaps = [
            (
                area_of(clip_polygon(polygons[index], polygons[other])),
                area_of(polygons[index]) + area_of(polygons[other]),
            )
            for other in kept
            if classes[other] == classes[index]
        ]
        if not any(shared > nms_iou * (both - shared) for shared, both in overlaps):
            kept.append(index)
    found = apply_nms(Candidates(enclosing_boxes(corners), scores, classes, corners=corners), nms_iou)
    assert found.scores.tolist() == scores[kept].tolist()
    assert 20 < len(kept) < 150
