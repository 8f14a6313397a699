"""Detections in their canonical form.

These rules make the result of a frame the same text in every run:

* a box is `(x1, y1, x2, y2)` in pixels of the displayed frame, clipped to the frame and rounded to `BOX_DECIMALS`;
* a score lies in 0 to 1 and is rounded to `SCORE_DECIMALS`;
* a box without area after clipping and rounding is dropped;
* keypoints are `(x, y, score)` in the model's order, clipped and rounded like boxes and scores;
* a mask has at least one pixel, or its detection is dropped;
* corners of an oriented box are rounded, but not clipped: it would no longer be a rectangle;
* detections are ordered by descending score, then label, box and the rest, and cut at `limit`;
* a number that is not finite raises InferenceError, since a model that returns one is broken.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Final

import msgspec

from vidflow.domain.errors import VidflowError

BOX_DECIMALS: Final = 2
"""A hundredth of a pixel is finer than any model and keeps messages small."""
SCORE_DECIMALS: Final = 4
MAX_DETECTIONS: Final = 300
"""Default limit for a frame. With the longest labels, the result stays far below the size limit of a Kafka message."""
MAX_LABEL_CHARACTERS: Final = 200
CORNERS: Final = 4
MAX_SIDE: Final = 65535
"""The longest side of a frame in pixels. The corners of an oriented box are at most so far beside the frame."""
MAX_KEYPOINTS: Final = 1000
"""Keypoints of one detection. A person's whole body has 133, a face's mesh 478."""

_NOT_IN_LABELS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line separators, what changes the direction of the text around a label, and lone surrogates."""

Label = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_LABEL_CHARACTERS)]
Score = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Coordinate = Annotated[float, msgspec.Meta(ge=0.0, le=65535.0)]
OuterCoordinate = Annotated[float, msgspec.Meta(ge=-65535.0, le=131070.0)]
Box = tuple[float, float, float, float]
Keypoint = tuple[Coordinate, Coordinate, Score]
Corner = tuple[OuterCoordinate, OuterCoordinate]
Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]


class InferenceError(VidflowError):
    """A model failed on a frame or returned impossible values. A retry may succeed; a frame that fails every attempt is poisonous."""

    default_code = "inference_failed"


class Mask(msgspec.Struct, frozen=True, gc=False):
    """The pixels of an object in COCO's run-length encoding. `size` is (height, width) of the displayed frame.

    `counts` is as long as the object's outline is complicated. A message that is too long for Kafka fails the scenario, so it has no bound
    of its own.
    """

    size: tuple[Side, Side]
    counts: Annotated[str, msgspec.Meta(pattern=r"\A[0-o]+\Z")]


class Detection(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One detected object. `box` is (x1, y1, x2, y2) in pixels of the displayed frame. Create it with `build_detection`.

    A label of the whole frame is a detection with the frame as its box. `keypoints` are (x, y, score), in the model's order.
    `corners` are (x, y), clockwise, of an oriented box: the first to the second along its width. `box` then encloses them.
    `mask` has the object's pixels, within its box.
    """

    label: Label
    score: Score
    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate]
    keypoints: Annotated[tuple[Keypoint, ...], msgspec.Meta(min_length=1, max_length=MAX_KEYPOINTS)] = ()
    corners: Annotated[tuple[Corner, ...], msgspec.Meta(min_length=CORNERS, max_length=CORNERS)] = ()
    mask: Mask | None = None


def find_label_fault(label: str) -> str | None:
    """Return why a text cannot be a label, None if it can. Labels are text of any script, joiners and all kinds of spaces included."""
    if len(label) > MAX_LABEL_CHARACTERS:
        return f"is longer than {MAX_LABEL_CHARACTERS} characters"
    found = _NOT_IN_LABELS.search(label)
    if found is None:
        return None
    return f"contains U+{ord(found[0]):04X}: labels have no control characters, line separators or direction overrides"


def build_detection(
    label: str,
    score: float,
    box: Iterable[float],
    width: int,
    height: int,
    keypoints: Iterable[Sequence[float]] = (),
    corners: Iterable[Sequence[float]] = (),
) -> Detection | None:
    """Return the detection in canonical form, or None if no part of the box lies within the frame.

    `box`, `keypoints` (x, y, score) and `corners` (x, y) are in pixels of the displayed frame of `width` x `height` and need not be
    clipped. Raises InferenceError if a number is not finite, a corner is more than `MAX_SIDE` beside the frame, or a score lies
    outside 0 to 1 by more than rounding explains.
    """
    x1, y1, x2, y2 = (float(value) for value in box)
    _require_finite(label, score, x1, y1, x2, y2)
    clipped = clip((x1, y1, x2, y2), width, height)
    rounded = _round_box(clipped)
    if area(rounded) <= 0:
        return None
    points = tuple(_build_keypoint(label, point, width, height) for point in keypoints)
    outline = tuple(_build_corner(label, corner, width, height) for corner in corners)
    return Detection(label, _round_score(label, score), rounded, points, outline)


def select_detections(
    detections: Iterable[Detection],
    score_threshold: float | None = None,
    labels: Collection[str] | None = None,
    limit: int = MAX_DETECTIONS,
) -> tuple[Detection, ...]:
    """Return at most `limit` detections with at least this score and one of these labels (None: any), best first."""
    kept = [
        detection
        for detection in detections
        if (score_threshold is None or detection.score >= score_threshold)
        and (labels is None or detection.label in labels)
    ]
    return tuple(sorted(kept, key=_rank)[:limit])


def clip(box: Box, width: float, height: float) -> Box:
    """Return the part of the box that lies within a frame of this size. Its area is 0 if there is none."""
    x1, y1, x2, y2 = box
    return (_clamp(x1, width), _clamp(y1, height), _clamp(x2, width), _clamp(y2, height))


def area(box: Box) -> float:
    """Return the area in square pixels, 0 if a corner pair is swapped."""
    x1, y1, x2, y2 = box
    return max(x2 - x1, 0.0) * max(y2 - y1, 0.0)


def _build_keypoint(label: str, point: Sequence[float], width: int, height: int) -> Keypoint:
    x, y, score = point
    _require_finite(label, x, y, score)
    return (
        round(_clamp(x, width), BOX_DECIMALS), round(_clamp(y, height), BOX_DECIMALS), _round_score(label, score),
    )  # fmt: skip


def _build_corner(label: str, corner: Sequence[float], width: int, height: int) -> Corner:
    x, y = (float(value) for value in corner)
    _require_finite(label, x, y)
    if not (-MAX_SIDE <= x <= width + MAX_SIDE and -MAX_SIDE <= y <= height + MAX_SIDE):
        raise InferenceError(
            f"The model returned a {label!r} with a corner at ({x:.0f}, {y:.0f}), far beside the frame. Check the spec's decoder "
            "and coordinates."
        )
    return (round(x, BOX_DECIMALS) + 0.0, round(y, BOX_DECIMALS) + 0.0)  # no -0.0


def _require_finite(label: str, *values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise InferenceError(
            f"The model returned a {label!r} with a number that is not finite. Check its weights and the spec's [input]."
        )


def _round_score(label: str, score: float) -> float:
    if not -0.001 <= score <= 1.001:  # float32 rounding may exceed 1 slightly
        raise InferenceError(
            f"The model returned a {label!r} with score {score:.3f}, outside 0 to 1. Check the spec's decoder and activation."
        )
    return round(min(max(float(score), 0.0), 1.0), SCORE_DECIMALS)


def _clamp(value: float, end: float) -> float:
    return min(max(value, 0.0), float(end))


def _round_box(box: Box) -> Box:
    x1, y1, x2, y2 = (round(value, BOX_DECIMALS) for value in box)
    return (x1, y1, x2, y2)


def _rank(detection: Detection) -> tuple[object, ...]:
    return (-detection.score, detection.label, detection.box, detection.keypoints, detection.corners)
