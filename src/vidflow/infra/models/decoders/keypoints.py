"""Keypoints of candidates: x, y and a score each."""

from __future__ import annotations

import numpy as np

from vidflow.infra.models.decoders.activations import sigmoid
from vidflow.infra.models.decoders.candidates import FloatArray, Layout, to_pixels


def keypoints_from_rows(rows: FloatArray, layout: Layout) -> FloatArray:
    """Return the keypoints (n, keypoints, 3) in rows of two or three numbers for each of the spec's keypoints."""
    number = layout.output.keypoints or 1  # `parse_spec` has checked that it is there
    return build_keypoints(rows.reshape(len(rows), number, rows.shape[1] // number), None, layout)


def build_keypoints(points: FloatArray, logits: FloatArray | None, layout: Layout) -> FloatArray:
    """Return keypoints (..., 3) in pixels of the tensor, from points (..., 2 or 3) in the model's unit.

    Their scores are the sigmoid of `logits` (...), unless the spec says that these are scores already; or else the third number;
    or else 1.
    """
    if logits is not None:
        scores = logits if layout.output.activation == "none" else sigmoid(logits)
    elif points.shape[-1] == 3:
        scores = points[..., 2]
    else:
        scores = np.ones(points.shape[:-1], dtype=np.float32)
    return np.concatenate([to_pixels(points[..., :2], layout, "pixels"), scores[..., None]], axis=-1, dtype=np.float32)
