"""Draw what a model found into a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from vidflow.commands.check.pictures import Pixels
from vidflow.domain.detections import Detection
from vidflow.infra.models.masks import read_mask
from vidflow.infra.models.model import Picture

COLOURS: Final = ((255, 212, 0), (0, 200, 255), (255, 80, 80), (90, 230, 90), (230, 110, 255), (255, 150, 30))
DIGITS: Final = (
    "111101101101111", "010110010010111", "111001111100111", "111001111001111", "101101111001001",
    "111100111001111", "111100111101111", "111001001001001", "111101111101111", "111101111001111",
)  # fmt: skip
"""The digits from 0 to 9, in five rows of three points."""

LINES_PER_SIDE: Final = 300
"""The width of a line is this part of the picture's shorter side."""
CLEAR_SCORE: Final = 0.5
"""Keypoints of a lower score are drawn smaller."""

Colour = tuple[int, int, int]
Point = tuple[float, float]


def draw_detections(picture: Picture, detections: Sequence[Detection]) -> Pixels:
    """Return the picture with what each detection has, and its number in the list, from 1, in its first corner.

    That is the box, or the outline of an oriented box; the pixels of a mask, half covered by its colour; a dot for each keypoint.
    """
    pixels = picture.image().copy()
    height, width = pixels.shape[:2]
    line = max(2, min(width, height) // LINES_PER_SIDE)
    colours: dict[str, Colour] = {}
    for number, detection in reversed(list(enumerate(detections, 1))):  # the best one is on top
        colour = colours.setdefault(detection.label, COLOURS[len(colours) % len(COLOURS)])
        if detection.mask is not None:
            inside = read_mask(detection.mask)
            pixels[inside] = pixels[inside] // 2 + np.array(colour, dtype=np.uint8) // 2
        _draw_outline(pixels, detection, line, colour)
        for x, y, score in detection.keypoints:
            side = 3 * line if score >= CLEAR_SCORE else line
            _fill(pixels, round(x - side / 2), round(y - side / 2), side, side, colour)
        x, y = detection.corners[0] if detection.corners else detection.box[:2]
        left, top = (round(min(max(value, 0), side - line)) for value, side in ((x, width), (y, height)))
        _draw_number(pixels, number, left + line, top + line, 2 * line, colour)
    return pixels


def _draw_outline(pixels: Pixels, detection: Detection, line: int, colour: Colour) -> None:
    """Draw the corners of an oriented box, or else the box, whose lines lie inside it."""
    for start, end in zip(detection.corners, (*detection.corners[1:], *detection.corners[:1]), strict=True):
        _draw_line(pixels, start, end, line, colour)
    if detection.corners:
        return
    height, width = pixels.shape[:2]
    x1, y1, x2, y2 = (round(value) for value in detection.box)
    x1, y1 = min(x1, width - line), min(y1, height - line)
    x2, y2 = max(x2, x1 + line), max(y2, y1 + line)
    for x, y, across, down in (
        (x1, y1, x2 - x1, line), (x1, y2 - line, x2 - x1, line), (x1, y1, line, y2 - y1), (x2 - line, y1, line, y2 - y1),
    ):  # fmt: skip
        _fill(pixels, x, y, across, down, colour)


def _draw_line(pixels: Pixels, start: Point, end: Point, line: int, colour: Colour) -> None:
    """Draw a line between two points, as far as it lies in the picture."""
    steps = int(max(abs(end[0] - start[0]), abs(end[1] - start[1]))) + 1
    points = np.rint(np.linspace(start, end, steps + 1)).astype(np.int64) - line // 2
    height, width = pixels.shape[:2]
    for down in range(line):
        for across in range(line):
            x, y = points[:, 0] + across, points[:, 1] + down
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            pixels[y[inside], x[inside]] = colour


def _fill(pixels: Pixels, x: int, y: int, across: int, down: int, colour: Colour) -> None:
    """Fill a rectangle, as far as it lies in the picture."""
    pixels[max(y, 0) : max(y + down, 0), max(x, 0) : max(x + across, 0)] = colour


def _draw_number(pixels: Pixels, number: int, x: int, y: int, scale: int, colour: Colour) -> None:
    """Draw a number in black on a field of `colour`, as far as it lies in the picture. A point is `scale` / 2 pixels wide."""
    point = max(scale // 2, 1) + 1
    glyphs = [np.array([int(point) for point in DIGITS[int(digit)]], dtype=bool).reshape(5, 3) for digit in str(number)]
    points = np.pad(np.concatenate([np.pad(glyph, ((0, 0), (0, 1))) for glyph in glyphs], axis=1), ((1, 1), (1, 0)))
    mask = points.repeat(point, axis=0).repeat(point, axis=1)
    field = pixels[y : y + mask.shape[0], x : x + mask.shape[1]]
    mask = mask[: field.shape[0], : field.shape[1]]
    field[:] = colour
    field[mask] = 0
