"""What a model saw on a frame: detections and frame results, their one form and rounding. No pixels, no inference.

The rules that make a frame's result the same text at every run are here and nowhere else:

* a box is `(x1, y1, x2, y2)` in pixels of the frame as displayed, clipped to it, rounded to `BOX_DECIMALS`;
* a score is rounded to `SCORE_DECIMALS` and lies in 0 to 1;
* a box with no area left after clipping and rounding is no detection;
* the order is: highest score first, then by label, then by box; at most `limit` of them;
* what is no finite number is never stored: it raises InferenceError, since a model that gives such numbers is broken.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Annotated, Final

import msgspec

from vidflow.domain.errors import VidflowError

BOX_DECIMALS: Final = 2
"""A hundredth of a pixel: finer than any model, coarse enough to keep messages small."""
SCORE_DECIMALS: Final = 4
MAX_DETECTIONS: Final = 300
"""A frame's default limit: with the longest labels its result stays far below the size of a Kafka message."""

Label = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Score = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Coordinate = Annotated[float, msgspec.Meta(ge=0.0, le=65535.0)]
Dimension = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Box = tuple[float, float, float, float]


class InferenceError(VidflowError):
    """A model failed on a frame, or gave what cannot be: another attempt may mend it, else the frame is poisonous."""

    default_code = "inference_failed"
    retry = True


class Detection(msgspec.Struct, frozen=True, gc=False):
    """One thing that a model saw. `box` is (x1, y1, x2, y2), pixels of the displayed frame. Made by `build_detection`."""

    label: Label
    score: Score
    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate]


class FrameResult(msgspec.Struct, frozen=True):
    """A frame's result as users get it, over HTTP as in ndjson; `width` and `height` of the displayed frame."""

    frame_number: Annotated[int, msgspec.Meta(ge=0)]
    time_s: float
    width: Dimension
    height: Dimension
    detections: tuple[Detection, ...]


def build_detection(label: str, score: float, box: Iterable[float], width: int, height: int) -> Detection | None:
    """The detection in its one form, or None where nothing of the box lies within the frame.

    `box` in pixels of the displayed frame of `width` x `height`, not yet clipped. Raises InferenceError for numbers
    that are not finite, and for a score that is far from 0 to 1.
    """
    x1, y1, x2, y2 = (float(value) for value in box)
    if not all(math.isfinite(value) for value in (score, x1, y1, x2, y2)):
        raise InferenceError(
            f"the model gave a {label!r} whose score or box is no finite number; check its weights and its [input]"
        )
    if not -0.001 <= score <= 1.001:  # float32 rounding may pass 1 by a hair
        raise InferenceError(
            f"the model gave a {label!r} a score of {score:.3f}, outside 0 to 1; check the spec's decoder"
        )
    clipped = clip((x1, y1, x2, y2), width, height)
    rounded = _round_box(clipped)
    if area(rounded) <= 0:
        return None
    return Detection(label, round(min(max(float(score), 0.0), 1.0), SCORE_DECIMALS), rounded)


def select_detections(
    detections: Iterable[Detection],
    score_threshold: float | None = None,
    labels: Collection[str] | None = None,
    limit: int = MAX_DETECTIONS,
) -> tuple[Detection, ...]:
    """Those with at least this score and one of these labels (None: any), in the order of results, at most `limit`."""
    kept = [
        detection
        for detection in detections
        if (score_threshold is None or detection.score >= score_threshold)
        and (labels is None or detection.label in labels)
    ]
    return tuple(sorted(kept, key=_rank)[:limit])


def clip(box: Box, width: float, height: float) -> Box:
    """The part of the box within a frame of this size; its area is 0 where there is none."""
    x1, y1, x2, y2 = box
    return (_clamp(x1, width), _clamp(y1, height), _clamp(x2, width), _clamp(y2, height))


def area(box: Box) -> float:
    """Square pixels; 0 for a box that is turned inside out."""
    x1, y1, x2, y2 = box
    return max(x2 - x1, 0.0) * max(y2 - y1, 0.0)


def iou(one: Box, other: Box) -> float:
    """Intersection over union, 0 to 1; 0 where both are empty."""
    shared = area((max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])))
    union = area(one) + area(other) - shared
    return shared / union if union > 0 else 0.0


def _clamp(value: float, end: float) -> float:
    return min(max(value, 0.0), float(end))


def _round_box(box: Box) -> Box:
    x1, y1, x2, y2 = (round(value, BOX_DECIMALS) for value in box)
    return (x1, y1, x2, y2)


def _rank(detection: Detection) -> tuple[float, str, Box]:
    return (-detection.score, detection.label, detection.box)
