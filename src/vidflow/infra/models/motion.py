"""Detect motion without weights: regions that differ from the median of the previous kept frames. There are no classes.

A result depends only on the frame and the `WINDOW` kept frames before it. A resumed run that first receives those frames
therefore gives the same results as an uninterrupted one. Frames of another size do not count as background. With fewer than
`MIN_BACKGROUND_FRAMES` frames to compare with, nothing is detected.

The model is intended for a fixed camera and a few kept frames per second. An object that stays in place for more than half of
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
LUMA: Final = np.array([77, 150, 29], dtype=np.uint16)
"""Weights of red, green and blue in 256ths: integers, so that grey values are the same on every machine."""

Grey = NDArray[np.uint8]
FloatArray = NDArray[np.float32]


class MotionModel:
    """The Model `motion`. It keeps thumbnails of the last WINDOW frames."""

    labels = (LABEL,)
    input_size = None
    warmup_frames = WINDOW
    batch = 1

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
        scaled = [_detection(score, box, grey, size) for score, box in regions(grey, np.stack(background))]
        detections = [detection for detection in scaled if detection is not None]
        return select_detections(detections, self._filter.score, self._filter.labels, self._filter.limit)


def load_motion(bundle: Bundle, parameters: Parameters) -> MotionModel:
    """Return the model with the thresholds of its spec. Raises ParameterError for an unknown label."""
    return MotionModel(build_filter(bundle.spec.thresholds, (LABEL,), parameters.score_threshold, parameters.labels))


def thumbnail(picture: Picture) -> Grey:
    """Return the picture in grey, its longer side at most THUMBNAIL_SIDE_PIXELS: an array (height, width)."""
    scale = min(1.0, THUMBNAIL_SIDE_PIXELS / max(picture.width, picture.height))
    width, height = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    weighted = picture.image(width, height).astype(np.uint16) * LUMA
    grey: Grey = (weighted.sum(axis=2, dtype=np.uint16) >> 8).astype(np.uint8)
    return grey


def regions(grey: Grey, background: Grey) -> list[tuple[float, tuple[int, int, int, int]]]:
    """Return score and box (x1, y1, x2, y2) of each region of `grey` (height, width) that moved.

    `background` is an array (n, height, width). The score is d / (d + t), where d is the region's mean difference from the
    background and t the threshold: 0.5 for a region that barely differs, 0.9 for white on black.
    """
    signed = grey.astype(np.float32) - np.median(background, axis=0).astype(np.float32)
    signed -= np.median(signed)  # ignore a change in brightness of the whole picture
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
    numbered = np.where(moved, joined, 0)  # dilation joins regions but must not enlarge boxes
    numbers = np.arange(1, count + 1)
    areas = ndimage.sum_labels(moved, numbered, numbers)
    means = ndimage.mean(difference, numbered, numbers)
    boxes = []
    for index, box in enumerate(ndimage.find_objects(numbered, max_label=count)):
        if box is None or areas[index] < MIN_AREA_SHARE * moved.size:
            continue
        rows, columns = box
        score = float(means[index]) / (float(means[index]) + threshold)
        boxes.append((score, (columns.start, rows.start, columns.stop, rows.stop)))
    return boxes


def _detection(score: float, box: tuple[int, int, int, int], grey: Grey, size: Size) -> Detection | None:
    """Return the detection for a box in the thumbnail, scaled to pixels of the picture; None if nothing of it is inside."""
    scale_x, scale_y = size[0] / grey.shape[1], size[1] / grey.shape[0]
    x1, y1, x2, y2 = box
    return build_detection(LABEL, score, (x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y), *size)
