"""Decoder of classifiers: a score or a logit for each class of the whole picture."""

from __future__ import annotations

import numpy as np

from vidflow.infra.models.decoders.activations import sigmoid, softmax
from vidflow.infra.models.decoders.candidates import (
    Candidates,
    FloatArray,
    Layout,
    OutputMismatchError,
    Outputs,
    above_threshold,
    describe_labels,
)


def decode_classes(outputs: Outputs, layout: Layout, score: float) -> list[Candidates]:
    """Decode (batch, classes), with or without axes of length 1 after it, or (classes) of one picture.

    Each class that reaches `score` is a candidate with the box of the whole tensor.
    """
    logits = _find_logits(outputs, layout)
    if layout.output.activation == "softmax":
        scores = softmax(logits)
    else:
        scores = sigmoid(logits) if layout.output.activation == "sigmoid" else logits
    return [_picture(row, layout, score) for row in scores]


def _picture(scores: FloatArray, layout: Layout, score: float) -> Candidates:
    classes = np.flatnonzero(above_threshold(scores, score))
    height, width = layout.size
    boxes: FloatArray = np.tile(np.array([0, 0, width, height], dtype=np.float32), (len(classes), 1))
    return Candidates(boxes, scores[classes], classes)


def _find_logits(outputs: Outputs, layout: Layout) -> FloatArray:
    """Return the first output of one number per label as (batch, classes)."""
    for output in outputs:
        shape = output.shape if output.ndim > 1 else (1, *output.shape)
        if shape[1:2] == (layout.classes,) and set(shape[2:]) <= {1} and not np.issubdtype(output.dtype, np.integer):
            return output.reshape(-1, layout.classes).astype(np.float32, copy=False)
    raise OutputMismatchError(f"(batch, {layout.classes}) for {describe_labels(layout)}")
