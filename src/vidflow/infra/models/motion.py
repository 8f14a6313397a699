"""Finds what moves, without weights: what differs from the median of the kept frames just before. It knows no classes.

A result is a function of the frame and of the `WINDOW` kept frames before it, and of nothing else: a run that resumes and
is first shown those frames sees what an undisturbed one saw. Frames of another size than the present one are no
background for it; with fewer than `MIN_BACKGROUND_FRAMES` frames to compare with, nothing is found.

It is meant for a camera that stands still and a few kept frames a second: what stays where it is for more than half of
the window becomes background.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vidflow.domain.detections import Detection, build_detection, select_detections
from vidflow.infra.models.detector import DetectionFilter
from vidflow.infra.models.model import Picture, Size

LABEL: Final = "motion"
THUMBNAIL_SIDE_PIXELS: Final = 320
"""Pixels of the thumbnail's longer side: coarse enough to be quick and to swallow noise."""
WINDOW: Final = 8
MIN_BACKGROUND_FRAMES: Final = 3
"""A median of fewer frames holds what moves itself."""
MIN_DIFFERENCE: Final = 14.0
"""Grey levels, of 255: below it lies the noise of compression."""
NOISE_FACTOR: Final = 5.0
"""A noisy picture must differ by this many of its own median differences."""
MIN_AREA_SHARE: Final = 0.0008
"""Share of the picture, about eight by eight pixels of the thumbnail."""
MAX_NOISE: Final = 6.0
"""Grey levels: where half of the picture differs by more, the camera moved or the scene was cut, and nothing is found."""
DILATION_SIZE: Final = (7, 3)
"""Rows and columns: parts of one body that lie so near become one region; bodies stand upright."""
LUMA: Final = np.array([77, 150, 29], dtype=np.uint16)
"""Red, green and blue in 256ths of grey: whole numbers, so that grey is the same on every machine."""

Grey = NDArray[np.uint8]
FloatArray = NDArray[np.float32]


class MotionModel:
    """The Model `motion`; it remembers thumbnails of the last WINDOW frames."""

    labels = (LABEL,)
    input_size = None
    warmup_frames = WINDOW
    batch = 1

    def __init__(self, keep: DetectionFilter) -> None:
        self._filter = keep
        self._recent: deque[Grey] = deque(maxlen=WINDOW)

    def infer(self, pictures: Sequence[Picture]) -> list[tuple[Detection, ...]]:
        """What moves on each picture, which are the next kept frames of one video."""
        return [self._infer_one(picture) for picture in pictures]

    def _infer_one(self, picture: Picture) -> tuple[Detection, ...]:
        grey = thumbnail(picture)
        before = [other for other in self._recent if other.shape == grey.shape]
        self._recent.append(grey)
        if len(before) < MIN_BACKGROUND_FRAMES:
            return ()
        size = (picture.width, picture.height)
        found = [_detection(score, box, grey, size) for score, box in regions(grey, np.stack(before))]
        kept = [detection for detection in found if detection is not None]
        return select_detections(kept, self._filter.score, self._filter.labels, self._filter.limit)


def thumbnail(picture: Picture) -> Grey:
    """The picture in grey, its longer side at most WIDTH pixels: an array (height, width)."""
    shrink = min(1.0, THUMBNAIL_SIDE_PIXELS / max(picture.width, picture.height))
    width, height = max(round(picture.width * shrink), 1), max(round(picture.height * shrink), 1)
    weighted = picture.image(width, height).astype(np.uint16) * LUMA
    grey: Grey = (weighted.sum(axis=2, dtype=np.uint16) >> 8).astype(np.uint8)
    return grey


def regions(grey: Grey, before: Grey) -> list[tuple[float, tuple[int, int, int, int]]]:
    """Score and box (x1, y1, x2, y2) of each region of `grey` (height, width) that moved since `before` (n, height, width).

    The score is d / (d + t), d the region's mean difference from the background and t the difference that was asked for:
    from 0.5 for what is hardly there to 0.9 for white on black.
    """
    signed = grey.astype(np.float32) - np.median(before, axis=0).astype(np.float32)
    signed -= np.median(signed)  # the whole picture grew lighter or darker
    difference = np.abs(ndimage.uniform_filter(signed, 3))
    noise = float(np.median(difference))
    if noise > MAX_NOISE:
        return []
    threshold = max(MIN_DIFFERENCE, NOISE_FACTOR * noise)
    return _boxes(difference > threshold, difference, threshold)


def _boxes(
    moved: NDArray[np.bool_], difference: FloatArray, threshold: float
) -> list[tuple[float, tuple[int, int, int, int]]]:
    joined, count = ndimage.label(
        ndimage.binary_dilation(moved, np.ones(DILATION_SIZE, dtype=bool)), np.ones((3, 3), dtype=bool)
    )
    numbered = np.where(moved, joined, 0)  # the dilation joins, but widens no box
    numbers = np.arange(1, count + 1)
    areas = ndimage.sum_labels(moved, numbered, numbers)
    means = ndimage.mean(difference, numbered, numbers)
    found = []
    for place, box in enumerate(ndimage.find_objects(numbered, max_label=count)):
        if box is None or areas[place] < MIN_AREA_SHARE * moved.size:
            continue
        rows, columns = box
        score = float(means[place]) / (float(means[place]) + threshold)
        found.append((score, (columns.start, rows.start, columns.stop, rows.stop)))
    return found


def _detection(score: float, box: tuple[int, int, int, int], grey: Grey, size: Size) -> Detection | None:
    """A region of the thumbnail in pixels of the picture."""
    scale_x, scale_y = size[0] / grey.shape[1], size[1] / grey.shape[0]
    x1, y1, x2, y2 = box
    return build_detection(LABEL, score, (x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y), *size)
