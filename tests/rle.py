"""Read COCO's run-length encoding, to compare masks with pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vidflow.domain.detections import Mask


def read_mask(mask: Mask | None) -> NDArray[np.bool_]:
    """Return the pixels of a mask as an array of (height, width)."""
    assert mask is not None
    counts: list[int] = []
    value = shift = 0
    for character in mask.counts:
        group = ord(character) - 48
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    height, width = mask.size
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    assert len(pixels) == height * width
    return pixels.reshape(width, height).T
