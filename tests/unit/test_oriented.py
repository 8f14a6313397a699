"""Areas that oriented boxes share, beside values computed by hand and by counting points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vidflow.infra.models.decoders.oriented import polygon_areas, rotate_boxes, shared_areas


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
