"""Convert logits to scores."""

from __future__ import annotations

from typing import Final

import numpy as np

from vidflow.infra.models.decoders.candidates import FloatArray

MIN_LOGIT: Final = np.float32(-80.0)
"""Its sigmoid is 0 in a score's precision, and its exponential does not overflow."""


def softmax(logits: FloatArray) -> FloatArray:
    """Return the probabilities of classes of which exactly one is right. The classes are the last axis."""
    exponentials: FloatArray = np.exp(logits - logits.max(axis=-1, keepdims=True))
    exponentials /= exponentials.sum(axis=-1, keepdims=True)
    return exponentials


def sigmoid(logits: FloatArray) -> FloatArray:
    """Return the probability of each class by itself."""
    return np.reciprocal(np.float32(1) + np.exp(-np.maximum(logits, MIN_LOGIT)))
