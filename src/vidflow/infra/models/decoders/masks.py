"""Masks of candidates as models return them: grids of numbers, each over a part of the picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
PROBABILITY: Final = 0.5
LOGIT: Final = 0.0
"""Values above which a point belongs to the object."""


class Masks(msgspec.Struct, frozen=True):
    """Masks of n objects, each a grid of numbers over an area (n, 4), x1 y1 x2 y2. Above `threshold`, a point belongs to the object.

    `values` are the grids (n, rows, columns), or with `prototypes` (channels, rows, columns) the factors (n, channels) of their sum.
    """

    values: NDArray[Any]
    areas: FloatArray
    threshold: float
    prototypes: NDArray[Any] | None = None

    def take(self, selection: NDArray[Any]) -> Masks:
        """Return the masks at these indices, or where this mask is true."""
        return Masks(self.values[selection], self.areas[selection], self.threshold, self.prototypes)

    def map(self, mapping: Callable[[FloatArray], FloatArray]) -> Masks:
        """Return the masks over areas in other coordinates."""
        return Masks(self.values, mapping(self.areas), self.threshold, self.prototypes)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the grids."""
        rows, columns = (self.values if self.prototypes is None else self.prototypes).shape[1:]
        return (rows, columns)

    def grid(self, index: int, rows: slice, columns: slice) -> FloatArray:
        """Return a part of one grid."""
        values = self.values[index]
        if self.prototypes is None:
            part: FloatArray = values[rows, columns].astype(np.float32, copy=False)
            return part
        prototypes = self.prototypes[:, rows, columns].astype(np.float32, copy=False)
        total: FloatArray = np.tensordot(values.astype(np.float32, copy=False), prototypes, axes=1)
        return total


def masks_of_tensor(
    values: NDArray[Any], size: tuple[int, int], threshold: float, prototypes: NDArray[Any] | None = None
) -> Masks:
    """Return masks whose grids cover the whole tensor of `size` (height, width)."""
    areas = np.tile(np.array([0, 0, size[1], size[0]], dtype=np.float32), (len(values), 1))
    return Masks(values, areas, threshold, prototypes)


def masks_of_boxes(values: NDArray[Any], boxes: FloatArray) -> Masks:
    """Return masks whose grids (n, rows, columns) of probabilities cover their boxes (n, 4).

    Each gets a margin of zeros, so that it ends at its box, as torchvision does.
    """
    rows, columns = values.shape[1:]
    margin = (boxes[:, 2:] - boxes[:, :2]) / np.array([columns, rows], dtype=np.float32)
    areas = np.concatenate([boxes[:, :2] - margin, boxes[:, 2:] + margin], axis=1, dtype=np.float32)
    return Masks(np.pad(values, ((0, 0), (1, 1), (1, 1))), areas, PROBABILITY)
