"""Convert a mask of a model to a mask in pixels of the frame, run-length encoded as COCO and its tools write it, and back to pixels.

Pixels are numbered down the columns. Counts are the lengths of runs, of pixels outside and inside in turn, beginning with outside.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidflow.domain.detections import Box, InferenceError, Mask
from vidflow.infra.models.decoders.masks import FloatArray, Masks
from vidflow.infra.models.model import Size

BLOCK_PIXELS: Final = 2**18
"""Pixels that are computed at once: few enough to stay in a processor's cache."""
GROUP_BITS: Final = 5
GROUP_VALUES: Final = 2**GROUP_BITS
FIRST_CHARACTER: Final = ord("0")
MAX_GROUPS: Final = 7
"""35 bits: a count of a frame has at most 32, and its difference to another one a sign."""


@np.errstate(all="ignore")  # values that are not finite are refused
def render_mask(masks: Masks, index: int, box: Box, size: Size) -> Mask | None:
    """Return one of the masks, whose areas are in pixels of a frame of `size` (width, height), None if it has no pixel.

    A pixel belongs to it if its centre is inside `box` and the value there, interpolated between those of the grid, is above the
    threshold. Raises InferenceError if a value is not finite.
    """
    width, height = size
    x_pixels, y_pixels = _pixels(box[0], box[2], width), _pixels(box[1], box[3], height)
    if not x_pixels or not y_pixels:
        return None
    x1, y1, x2, y2 = masks.areas[index].tolist()
    rows, columns = masks.grid_size
    left, right, x_share = _neighbours(x_pixels, x1, x2, columns)
    top, bottom, y_share = _neighbours(y_pixels, y1, y2, rows)
    grid = masks.grid(index, slice(top[0], bottom[-1] + 1), slice(left[0], right[-1] + 1))
    if not np.isfinite(grid).all():
        raise InferenceError(
            "The model returned a mask with a number that is not finite. Check its weights and its [input]."
        )
    # Runs go down the columns of the frame, so that its columns are rows from here on.
    lines = _mix(grid, top - top[0], bottom - top[0], y_share).T
    changes = []
    block = max(BLOCK_PIXELS // len(y_pixels), 1)
    for start in range(0, len(x_pixels), block):
        part = slice(start, start + block)
        values = _mix(lines, left[part] - left[0], right[part] - left[0], x_share[part])
        first_pixel = (x_pixels.start + start) * height + y_pixels.start
        changes.append(_changes(values > masks.threshold, first_pixel, height))
    counts = _counts(np.concatenate(changes), width * height)
    return None if len(counts) == 1 else Mask((height, width), encode_counts(counts))


def encode_counts(counts: NDArray[np.int64]) -> str:
    """Return counts as COCO's text.

    From the fourth on, a count is written as its difference to the one two before. A number is written in groups of five bits, the lowest
    first, until the rest is only its sign. Each group is a character: "0" plus the group, plus 32 if more groups follow.
    """
    numbers = counts.copy()
    numbers[3:] -= counts[1:-2]
    groups = np.zeros((len(numbers), MAX_GROUPS), dtype=np.uint8)
    unfinished = np.ones(len(numbers), dtype=bool)
    for place in range(MAX_GROUPS):
        group = numbers % GROUP_VALUES
        numbers >>= GROUP_BITS
        sign = np.where(group < GROUP_VALUES // 2, 0, -1)
        more = numbers != sign
        groups[:, place] = np.where(unfinished, FIRST_CHARACTER + group + GROUP_VALUES * more, 0)
        unfinished &= more
    text: bytes = groups[groups != 0].tobytes()
    return text.decode("ascii")


def read_mask(mask: Mask) -> NDArray[np.bool_]:
    """Return the pixels of a mask that `render_mask` made, as an array (height, width)."""
    counts: list[int] = []
    number = bits = 0
    for character in mask.counts.encode("ascii"):
        group = character - FIRST_CHARACTER
        number |= (group % GROUP_VALUES) << bits
        bits += GROUP_BITS
        if group >= GROUP_VALUES:
            continue
        if group >= GROUP_VALUES // 2:
            number -= 1 << bits
        counts.append(number + counts[-2] if len(counts) > 2 else number)
        number = bits = 0
    height, width = mask.size
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return pixels.reshape(width, height).T


def _pixels(start: float, end: float, length: int) -> range:
    """Return the pixels of a row or a column whose centres lie between `start` and `end`."""
    return range(max(math.ceil(start - 0.5), 0), min(math.ceil(end - 0.5), length))


def _neighbours(
    pixels: range, start: float, end: float, cells: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], FloatArray]:
    """Return for each pixel's centre the cells before and after it, and the share of the latter.

    `cells` lie between `start` and `end`. Beyond the centres of the first and the last one, the values are theirs.
    """
    if not (math.isfinite(start) and start < end < math.inf):
        raise InferenceError(
            "The model returned a mask for a box that is not finite. Check its weights and its [input]."
        )
    places = (np.arange(pixels.start, pixels.stop) + 0.5 - start) / (end - start) * cells - 0.5
    places = np.clip(places, 0, cells - 1)
    before = places.astype(np.int64)
    return before, np.minimum(before + 1, cells - 1), (places - before).astype(np.float32)


def _mix(lines: FloatArray, before: NDArray[np.int64], after: NDArray[np.int64], share: FloatArray) -> FloatArray:
    """Return lines between two lines each: `share` of the one `after`, and the rest of the one `before`."""
    return lines[before] * (1 - share)[:, None] + lines[after] * share[:, None]


def _changes(inside: NDArray[np.bool_], first: int, height: int) -> NDArray[np.int64]:
    """Return the numbers of the pixels (columns, rows) at which runs start and end in turn.

    `first` is the number of the first pixel, and `height` that of the frame.
    """
    columns, rows = inside.shape
    padded = np.zeros((columns, rows + 2), dtype=bool)
    padded[:, 1:-1] = inside
    column, row = np.divmod(np.flatnonzero(padded[:, 1:] != padded[:, :-1]), rows + 1)
    changes: NDArray[np.int64] = first + column * height + row
    return changes


def _counts(changes: NDArray[Any], pixels: int) -> NDArray[np.int64]:
    """Return the lengths of runs that start and end in turn. A run that ends where the next one starts is one with it."""
    joined = np.flatnonzero(changes[1:] == changes[:-1])
    changes = np.delete(changes, np.concatenate([joined, joined + 1]))
    ends = [pixels] if not len(changes) or changes[-1] < pixels else []
    places = np.concatenate([[0], changes, ends]).astype(np.int64)
    return places[1:] - places[:-1]
