"""Detect motion without weights: regions that differ from the median of the previous kept frames. There are no classes.

A result depends only on the frame and the `WINDOW` kept frames before it. A resumed run that first receives those frames
therefore gives the same results as an uninterrupted one. Frames of another size do not count as background. With fewer than
`MIN_BACKGROUND_FRAMES` frames to compare with, nothing is detected.

The model is intended for a fixed camera and a few kept frames per second. An object that stays in place for more than half of
the window becomes background.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from functools import reduce
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vidflow.domain.detections import Detection, build_detection, select_detections
from vidflow.domain.device import CPU
from vidflow.domain.messages import Parameters
from vidflow.infra.models.bundle import Bundle
from vidflow.infra.models.detector import DetectionFilter, build_filter
from vidflow.infra.models.model import Picture, Size

LABEL: Final = "motion"
THUMBNAIL_SIDE_PIXELS: Final = 320
"""The thumbnail's longer side: coarse enough to be fast and to suppress noise."""
WINDOW: Final = 8
MIN_BACKGROUND_FRAMES: Final = 3
"""A median of fewer frames contains the moving objects themselves."""
MIN_DIFFERENCE: Final = 14.0
"""Grey levels, of 255. Smaller differences are compression noise."""
NOISE_FACTOR: Final = 5.0
"""In a noisy picture, a region must differ by this multiple of the picture's median difference."""
MIN_AREA_SHARE: Final = 0.0008
"""Share of the picture's area, about eight by eight pixels of the thumbnail."""
MAX_NOISE: Final = 6.0
"""Grey levels. If half of the picture differs by more, the camera moved or the scene was cut, and nothing is detected."""
DILATION_SIZE: Final = (7, 3)
"""Rows and columns. Parts within this distance form one region. There are more rows because people stand upright."""
STEPS: Final = 18
"""Differences are counted in 18ths of a grey level, so that halves (of a median of two) and averages of nine pixels are whole numbers."""
MAX_LEVELS: Final = 2 * 255
"""The largest difference from twice the background."""
MIN_NOISE_STEPS: Final = math.floor(MIN_DIFFERENCE * STEPS / NOISE_FACTOR)
"""Less noise than this leaves the threshold at MIN_DIFFERENCE."""
MAX_NOISE_STEPS: Final = math.floor(MAX_NOISE * STEPS)

Grey = NDArray[np.uint8]
Steps = NDArray[np.int16]


class MotionModel:
    """The Model `motion`. It keeps thumbnails of the last WINDOW frames."""

    labels = (LABEL,)
    input_size = None
    warmup_frames = WINDOW
    runs_in_threads = False
    batch = 1
    device = CPU

    def __init__(self, detection_filter: DetectionFilter) -> None:
        self._filter = detection_filter
        self._recent: deque[Grey] = deque(maxlen=WINDOW)

    def infer(self, pictures: Sequence[Picture]) -> list[tuple[Detection, ...]]:
        """Return the moving regions of each picture. The pictures are the next kept frames of one video."""
        return [self._infer_one(picture) for picture in pictures]

    def _infer_one(self, picture: Picture) -> tuple[Detection, ...]:
        grey = thumbnail(picture)
        background = [recent for recent in self._recent if recent.shape == grey.shape]
        self._recent.append(grey)
        if len(background) < MIN_BACKGROUND_FRAMES:
            return ()
        size = (picture.width, picture.height)
        scaled = [_detection(score, box, grey, size) for score, box in regions(grey, background)]
        detections = [detection for detection in scaled if detection is not None]
        return select_detections(detections, self._filter.score, self._filter.labels, self._filter.limit)


def load_motion(bundle: Bundle, parameters: Parameters) -> MotionModel:
    """Return the model with the thresholds of its spec. Raises ParameterError for an unknown label."""
    return MotionModel(build_filter(bundle.spec.thresholds, (LABEL,), parameters.score_threshold, parameters.labels))


def thumbnail(picture: Picture) -> Grey:
    """Return the picture in grey, its longer side at most THUMBNAIL_SIDE_PIXELS: an array (height, width)."""
    scale = min(1.0, THUMBNAIL_SIDE_PIXELS / max(picture.width, picture.height))
    width, height = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    return picture.image(width, height, "grey")


def regions(grey: Grey, background: Sequence[Grey]) -> list[tuple[float, tuple[int, int, int, int]]]:
    """Return score and box (x1, y1, x2, y2) of each region of `grey` (height, width) that moved.

    `background`: earlier pictures of this size. The score is d / (d + t), where d is the region's mean difference from the
    background and t the threshold: 0.5 for a region that barely differs, 0.9 for white on black.
    """
    signed = 2 * grey.astype(np.int16) - sum_of_middle(background)
    signed -= _median(signed, -MAX_LEVELS, MAX_LEVELS)  # ignore a change in brightness of the whole picture
    difference = np.abs(_sum_neighbours(signed))
    noise = _median(difference, MIN_NOISE_STEPS, MAX_NOISE_STEPS + 1)
    if noise > MAX_NOISE_STEPS:
        return []
    threshold = max(MIN_DIFFERENCE * STEPS, NOISE_FACTOR * noise)
    return _boxes(difference > threshold, difference, threshold)


def sum_of_middle(pictures: Sequence[Grey]) -> Steps:
    """Return the sum of the two middle values of each pixel, or twice the middle one: twice the median.

    It sorts by exchanging neighbours (odd-even transposition), a few bytes at a time on all pixels at once. That is some twenty times
    faster than NumPy's median.
    """
    sorted_pictures = list(pictures)
    for step in range(len(sorted_pictures)):
        for index in range(step % 2, len(sorted_pictures) - 1, 2):
            lower, upper = sorted_pictures[index : index + 2]
            sorted_pictures[index : index + 2] = np.minimum(lower, upper), np.maximum(lower, upper)
    lower, upper = sorted_pictures[(len(sorted_pictures) - 1) // 2], sorted_pictures[len(sorted_pictures) // 2]
    return lower.astype(np.int16) + upper


def _median(values: Steps, low: int, high: int) -> int:
    """Return the median, the lower one of two, limited to `low` to `high`.

    Counting the values below a guess is so fast that a binary search is faster than sorting, or than counting each value.
    """
    half = (values.size + 1) // 2
    return low + bisect_left(range(low, high), half, key=lambda guess: int(np.count_nonzero(values <= guess)))


def _sum_neighbours(values: Steps) -> Steps:
    """Return the sum of each value and its eight neighbours. Those of the edge count twice."""
    height, width = values.shape
    padded = np.empty((height + 2, width + 2), dtype=values.dtype)  # np.pad takes as long as all of the sums
    padded[1:-1, 1:-1], padded[0, 1:-1], padded[-1, 1:-1] = values, values[0], values[-1]
    padded[:, 0], padded[:, -1] = padded[:, 1], padded[:, -2]
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    sums: Steps = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return sums


def _near(moved: NDArray[np.bool_], axis: int, distance: int) -> NDArray[np.intp]:
    """Return the indices of an axis within `distance` of motion, and the next one after each group, which separates it from others."""
    occupied = np.any(moved, axis=1 - axis)
    reached = np.convolve(occupied, np.ones(2 * distance + 2, dtype=np.int8))
    return np.flatnonzero(reached[distance : distance + len(occupied)])


def _dilate(moved: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return where a pixel within half of DILATION_SIZE has moved."""
    height, width = moved.shape
    rows, columns = (size // 2 for size in DILATION_SIZE)
    padded = np.pad(moved, ((rows, rows), (columns, columns)))
    upright = reduce(np.bitwise_or, (padded[row : row + height] for row in range(2 * rows + 1)))
    return reduce(np.bitwise_or, (upright[:, column : column + width] for column in range(2 * columns + 1)))


def _boxes(
    moved: NDArray[np.bool_], difference: Steps, threshold: float
) -> list[tuple[float, tuple[int, int, int, int]]]:
    """Return score and box of each large region. Only the rows and columns near motion are labelled, often a tenth of the picture."""
    near_rows, near_columns = (_near(moved, axis, size // 2) for axis, size in enumerate(DILATION_SIZE))
    moved_near = moved[near_rows][:, near_columns]
    places = np.flatnonzero(moved_near)  # dilation joins regions but must not enlarge boxes
    if not len(places):
        return []
    joined, _ = ndimage.label(_dilate(moved_near), np.ones((3, 3), dtype=bool))
    numbers = joined.ravel()[places]
    order = np.argsort(numbers, kind="stable")
    first = np.flatnonzero(np.diff(numbers[order], prepend=0))  # of each region
    areas = np.diff(first, append=len(places))
    rows, columns = np.divmod(places[order], len(near_columns))
    rows, columns = near_rows[rows], near_columns[columns]
    means = np.add.reduceat(difference[rows, columns], first, dtype=np.int64) / areas
    left, right = np.minimum.reduceat(columns, first), np.maximum.reduceat(columns, first)
    boxes = np.stack([left, rows[first], right + 1, rows[first + areas - 1] + 1], axis=1)
    large = areas >= MIN_AREA_SHARE * moved.size
    scores = means / (means + threshold)
    return [(score, tuple(box)) for score, box in zip(scores[large].tolist(), boxes[large].tolist(), strict=True)]


def _detection(score: float, box: tuple[int, int, int, int], grey: Grey, size: Size) -> Detection | None:
    """Return the detection for a box in the thumbnail, scaled to pixels of the picture; None if nothing of it is inside."""
    scale_x, scale_y = size[0] / grey.shape[1], size[1] / grey.shape[0]
    x1, y1, x2, y2 = box
    return build_detection(LABEL, score, (x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y), *size)
