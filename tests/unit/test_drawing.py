"""What `vidflow models check` draws into a picture: boxes, oriented boxes, keypoints and masks."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.pictures import picture_of

from vidflow.commands.check.drawing import COLOURS, draw_detections
from vidflow.domain.detections import Corner, Detection, Mask
from vidflow.infra.models.masks import encode_counts

GREY = 90
HEIGHT, WIDTH = 100, 200
BOX = (20.0, 20.0, 180.0, 80.0)


def draw(*detections: Detection, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    return draw_detections(picture_of(np.full((height, width, 3), GREY, dtype=np.uint8)), detections)


def coloured(pixels: NDArray[np.uint8], colour: tuple[int, int, int] = COLOURS[0]) -> NDArray[np.bool_]:
    marked: NDArray[np.bool_] = (pixels == colour).all(axis=2)
    return marked


def test_a_box_is_drawn_inside_its_edges() -> None:
    marked = coloured(draw(Detection("a", 0.9, BOX)))
    assert marked[20:22, 20:180].all()
    assert marked[78:80, 20:180].all()
    assert marked[20:80, 20:22].all()
    assert marked[20:80, 178:180].all()
    assert not marked[50, 22:178].any()
    assert not marked[:20].any()
    assert not marked[80:].any()


def test_an_oriented_box_is_drawn_by_its_corners_and_not_by_the_box_around_them() -> None:
    corners: tuple[Corner, ...] = ((100.0, 10.0), (140.0, 50.0), (100.0, 90.0), (60.0, 50.0))
    marked = coloured(draw(Detection("a", 0.9, (60.0, 10.0, 140.0, 90.0), corners=corners)))
    for x, y in (*corners, (120, 30), (120, 70), (80, 70), (80, 30)):
        assert marked[round(y) - 1 : round(y) + 1, round(x) - 1 : round(x) + 1].any(), (x, y)
    assert not marked[50, 70:130].any()
    assert not marked[88:90, 60:90].any()


def test_keypoints_are_dots_and_those_of_a_low_score_small_ones() -> None:
    pixels = draw(Detection("a", 0.9, BOX, keypoints=((100.0, 50.0, 0.9), (140.0, 50.0, 0.1))))
    marked = coloured(pixels)[45:55]
    assert marked[:, 90:110].sum() == 36
    assert marked[:, 130:150].sum() == 4
    assert marked[5, 100]
    assert marked[5, 140]


def test_a_mask_half_covers_its_pixels() -> None:
    inside = np.zeros((HEIGHT, WIDTH), dtype=bool)
    inside[40:60, 50:150] = True
    changes = np.flatnonzero(np.diff(inside.T.ravel())) + 1
    counts = np.diff(np.concatenate([[0], changes, [inside.size]]))
    pixels = draw(Detection("a", 0.9, BOX, mask=Mask((HEIGHT, WIDTH), encode_counts(counts))))
    red, green, blue = (GREY // 2 + value // 2 for value in COLOURS[0])
    assert np.array_equal(coloured(pixels, (red, green, blue)), inside)


@pytest.mark.parametrize("height", [1, 16, 100])
def test_what_lies_beside_the_picture_is_left_out(height: int) -> None:
    far = 65_000.0
    box = (0.0, 0.0, 16.0, float(height))
    corners = ((-far, -far), (far, -far), (far, far), (-far, far))
    points = ((0.0, 0.0, 1.0), (16.0, float(height), 1.0))
    pixels = draw(Detection("a", 0.9, box, points, corners), Detection("b", 0.8, box, points), height=height, width=16)
    assert pixels.shape == (height, 16, 3)
    assert coloured(pixels, COLOURS[1])[0, 0]


def test_each_label_has_its_colour() -> None:
    marked = draw(Detection("a", 0.9, (0.0, 0.0, 50.0, 50.0)), Detection("b", 0.8, (100.0, 0.0, 150.0, 50.0)))
    assert {tuple(map(int, marked[0, 20])), tuple(map(int, marked[0, 120]))} == set(COLOURS[:2])
