"""Find out which output of a model is what: by the spec's `order`, else by name, else by shape and type."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from vidflow.domain.detections import MAX_KEYPOINTS
from vidflow.infra.models.decoders.candidates import Layout, OutputMismatchError, Outputs

BOXES: Final = "boxes"
SCORES: Final = "scores"
CLASSES: Final = "classes"
COUNT: Final = "count"
LOGITS: Final = "logits"
KEYPOINTS: Final = "keypoints"
KEYPOINT_SCORES: Final = "keypoint_scores"
MASKS: Final = "masks"
UNUSED: Final = "unused"
NAMES: Final = (
    (UNUSED, re.compile(r"raw_|multiclass|anchor|indices|hidden")),
    (MASKS, re.compile(r"masks?$")),
    (KEYPOINT_SCORES, re.compile(r"keypoints?_score")),
    (KEYPOINTS, re.compile(r"keypoint|kpt")),
    (COUNT, re.compile(r"^num|count|valid|postprocess:3$")),
    (SCORES, re.compile(r"score|conf|prob|postprocess:2$")),
    (LOGITS, re.compile(r"logit")),
    (CLASSES, re.compile(r"class|label|categor|postprocess:1$")),
    (BOXES, re.compile(r"box|dets|postprocess(:0)?$")),
)
"""The role of an output whose name has this pattern; the first one counts. The outputs of TensorFlow Lite's last operator,
TFLite_Detection_PostProcess, are numbered."""


class Lists(msgspec.Struct, frozen=True):
    """Boxes that a model has selected: `boxes` (..., n, 4), `scores` (..., n), `classes` (..., n), `count` (batch) if it has one."""

    boxes: NDArray[Any]
    scores: NDArray[Any]
    classes: NDArray[Any]
    count: NDArray[Any] | None


class _Output(msgspec.Struct, frozen=True):
    """An output and the role that its name or the spec gives it; None if neither does."""

    values: NDArray[Any]
    role: str | None

    @property
    def is_integer(self) -> bool:
        return bool(np.issubdtype(self.values.dtype, np.integer))


def find_lists(outputs: Outputs, layout: Layout) -> Lists:
    """Return the boxes with their scores and classes. Raises OutputMismatchError if they are not recognised."""
    known = _assign_roles(outputs, layout)
    boxes = _find_boxes(known, ndims=(2, 3))
    lists = [
        output
        for output in known
        if output.values.ndim == boxes.ndim - 1
        and output.values.shape == boxes.shape[:-1]
        and output.role in {SCORES, CLASSES, LOGITS, None}
    ]
    classes = _first(lists, lambda output: output.role == CLASSES) or _first(lists, lambda output: output.is_integer)
    scores = _first(lists, lambda output: output.role == SCORES)
    if classes is None and scores is not None:
        classes = _first(lists, lambda output: output is not scores)
    if scores is None and classes is not None:
        scores = _first(lists, lambda output: output is not classes and not output.is_integer)
    if scores is None or classes is None:
        raise OutputMismatchError(
            "boxes (batch, n, 4), scores (batch, n) and classes (batch, n), of which names or types tell scores from classes; "
            "else name them in their order, such as order = ['boxes', 'classes', 'scores', 'count']"
        )
    count = _first(known, lambda output: output.role == COUNT)
    return Lists(boxes, scores.values, classes.values, None if count is None else count.values)


def find_keypoints(outputs: Outputs, layout: Layout, boxes: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return the keypoints (..., n, keypoints, 2 or 3) of boxes (..., n, 4), and their scores (..., n, keypoints) if they are apart.

    Raises OutputMismatchError if there are no keypoints.
    """
    known = [output for output in _assign_roles(outputs, layout) if output.values is not boxes]
    points = [
        output
        for output in known
        if output.values.ndim == boxes.ndim + 1
        and output.values.shape[:-2] == boxes.shape[:-1]
        and output.values.shape[-1] in {2, 3}
        and 1 <= output.values.shape[-2] <= MAX_KEYPOINTS
        and output.role in {KEYPOINTS, None}
    ]
    best = _first(points, lambda output: output.role == KEYPOINTS) or _first(points, lambda _: True)
    if best is None:
        raise OutputMismatchError("keypoints (n, keypoints, 2 or 3) for n boxes")
    scores = _first(
        known,
        lambda output: (
            output.values.shape == best.values.shape[:-1]
            and not output.is_integer
            and output.role in {KEYPOINT_SCORES, None}
        ),
    )
    return best.values, None if scores is None else scores.values


def find_masks(outputs: Outputs, layout: Layout, boxes: NDArray[Any]) -> NDArray[Any]:
    """Return the masks (..., n, rows, columns) of boxes (..., n, 4). Raises OutputMismatchError if there are none."""
    axes = boxes.ndim - 1
    masks = [
        output
        for output in _assign_roles(outputs, layout)
        if output.role in {MASKS, None}
        and output.values.shape[:axes] == boxes.shape[:-1]
        and (output.values.ndim == axes + 2 or (output.values.ndim == axes + 3 and output.values.shape[axes] == 1))
        and min(output.values.shape[axes:]) > 0
    ]
    best = _first(masks, lambda output: output.role == MASKS) or _first(masks, lambda _: True)
    if best is None:
        raise OutputMismatchError("masks (n, 1, rows, columns) for n boxes")
    values = best.values
    return values if values.ndim == axes + 2 else values.squeeze(axes)


def find_boxes_and_logits(outputs: Outputs, layout: Layout) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Return boxes (batch, queries, 4) and logits (batch, queries, classes), None if the model has selected its boxes.

    Raises OutputMismatchError if there are no boxes, or only logits of another number of classes.
    """
    known = _assign_roles(outputs, layout)
    boxes = _find_boxes(known, ndims=(2, 3))
    if any(output.is_integer and output.values.shape == boxes.shape[:-1] for output in known):
        return None
    logits = [
        output
        for output in known
        if output.values is not boxes
        and output.role not in {BOXES, MASKS, UNUSED}
        and output.values.ndim == boxes.ndim == 3
        and output.values.shape[:2] == boxes.shape[:2]
    ]
    fitting = [output for output in logits if output.values.shape[2] - layout.classes in {0, 1}]
    best = _first(fitting, lambda output: output.role == LOGITS) or _first(fitting, lambda _: True)
    if best is None and logits:
        actual = logits[0].values.shape[2]
        raise OutputMismatchError(
            f"logits for {layout.classes} classes, as many as labels, or one more for 'no object'; they are for {actual}"
        )
    return None if best is None else (boxes, best.values)


def _assign_roles(outputs: Outputs, layout: Layout) -> list[_Output]:
    order = layout.output.order
    if order is not None:
        if len(order) != len(outputs):
            raise OutputMismatchError(f"the {len(order)} outputs in the spec's `order`")
        return [_Output(values, role) for values, role in zip(outputs, order, strict=True)]
    names = layout.names or ("",) * len(outputs)
    return [_Output(values, _role_of(name)) for values, name in zip(outputs, names, strict=True)]


def _role_of(name: str) -> str | None:
    return next((role for role, pattern in NAMES if pattern.search(name.lower())), None)


def _find_boxes(outputs: Sequence[_Output], ndims: tuple[int, ...]) -> NDArray[Any]:
    """Return the boxes: of the outputs with four columns the one so named, or else the one with the most dimensions."""
    possible = [
        output
        for output in outputs
        if output.values.ndim in ndims
        and output.values.shape[-1] == 4
        and not output.is_integer
        and output.role in {BOXES, None}
    ]
    if not possible:
        raise OutputMismatchError("an output of boxes with four columns")
    return max(possible, key=lambda output: (output.role == BOXES, output.values.ndim)).values


def _first(outputs: Sequence[_Output], test: Callable[[_Output], bool]) -> _Output | None:
    return next((output for output in outputs if test(output)), None)
