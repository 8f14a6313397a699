"""Masks in pixels of the frame and their encoding, beside values of pycocotools 2.0.11 and pictures computed by hand."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.rle import read_mask

from vidflow.domain.detections import Box, Detection, InferenceError, Mask
from vidflow.infra.models import masks
from vidflow.infra.models.decoders.masks import LOGIT, Masks, masks_of_boxes, masks_of_tensor
from vidflow.infra.models.masks import encode_counts, render_mask


def from_pixels(pixels: NDArray[Any]) -> Mask | None:
    """Return the mask of an array of (height, width): each cell of the grid is a pixel."""
    height, width = pixels.shape
    grid = np.where(pixels, 1, -1).astype(np.float32)[None]
    return render_mask(masks_of_tensor(grid, (height, width), LOGIT), 0, (0, 0, width, height), (width, height))


def rectangle(height: int, width: int, rows: slice, columns: slice) -> NDArray[np.bool_]:
    pixels = np.zeros((height, width), dtype=bool)
    pixels[rows, columns] = True
    return pixels


def odd_shapes() -> NDArray[np.bool_]:
    """Return whole columns, which join to one run, and single pixels at the ends of columns."""
    pixels = rectangle(1000, 50, slice(None), slice(7, 9))
    pixels[0, 20] = pixels[999, 21:23] = True
    return pixels


@pytest.mark.parametrize(
    ("pixels", "counts"),
    [
        (np.array([[0, 0], [0, 1]]), "31"),
        (np.array([[1, 1], [1, 1]]), "04"),
        (np.array([[1, 0, 0], [1, 1, 0]]), "021O1"),
        (rectangle(64, 128, slice(10, 50), slice(20, 100)), "ZX1X1h0" + "0" * 157 + "fg1"),
        (odd_shapes(), "hj6`n1hg:aQNfVG0iPO0a\\i0"),
    ],
)
def test_masks_are_encoded_as_pycocotools_does(pixels: NDArray[Any], counts: str) -> None:
    mask = from_pixels(pixels)
    assert mask == Mask(pixels.shape, counts)
    assert (read_mask(mask) == pixels.astype(bool)).all()


def test_counts_of_the_largest_frame_are_encoded() -> None:
    """2**32 is 16 times 2**28: the groups are 0, 0, 0, 0, 0, 0 and 4."""
    assert encode_counts(np.array([2**32], dtype=np.int64)) == "PPPPPP4"
    assert encode_counts(np.array([0, 1, 2**32 - 1, 1, 3], dtype=np.int64))[:2] == "01"


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.98])
def test_random_masks_are_read_back(share: float) -> None:
    random = np.random.default_rng(8)
    for _ in range(50):
        pixels = random.random(random.integers(2, 40, 2)) < share
        mask = from_pixels(pixels)
        if mask is not None:
            assert np.array_equal(read_mask(mask), pixels)
            assert np.array_equal(masks.read_mask(mask), pixels)


def test_a_mask_in_several_blocks_is_one_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = rectangle(40, 90, slice(0, 40), slice(10, 70))
    whole = from_pixels(pixels)
    monkeypatch.setattr("vidflow.infra.models.masks.BLOCK_PIXELS", 100)
    assert from_pixels(pixels) == whole


def test_the_edge_of_a_mask_lies_where_the_interpolated_values_cross_the_threshold() -> None:
    """Between the cells' centres at 5 and 15, the value -3 grows to 1 and is 0 at 12.5."""
    masks = masks_of_tensor(np.array([[[-3, 1]]], dtype=np.float32), (20, 20), LOGIT)
    pixels = read_mask(render_mask(masks, 0, (0, 0, 20, 20), (20, 20)))
    assert (pixels == rectangle(20, 20, slice(None), slice(13, None))).all()


def test_a_mask_ends_at_its_box() -> None:
    masks = masks_of_tensor(np.ones((1, 4, 4), dtype=np.float32), (20, 20), LOGIT)
    pixels = read_mask(render_mask(masks, 0, (2.4, 3.6, 9.51, 20), (20, 20)))
    assert (pixels == rectangle(20, 20, slice(4, 20), slice(2, 10))).all()


def test_a_mask_of_a_box_fills_it() -> None:
    boxes = np.array([[4, 6, 12, 16]], dtype=np.float32)
    masks = masks_of_boxes(np.ones((1, 28, 28), dtype=np.float32), boxes)
    pixels = read_mask(render_mask(masks, 0, (4, 6, 12, 16), (20, 20)))
    assert (pixels == rectangle(20, 20, slice(6, 16), slice(4, 12))).all()


def test_a_mask_of_a_box_beside_the_frame_is_cut_at_the_frame() -> None:
    """The left half of the box is the object."""
    values = np.repeat([[[1.0, 0.0]]], 28, axis=1).repeat(14, axis=2).astype(np.float32)
    masks = masks_of_boxes(values, np.array([[-8, 2, 24, 50]], dtype=np.float32))
    pixels = read_mask(render_mask(masks, 0, (0, 2, 20, 20), (20, 20)))
    assert (pixels == rectangle(20, 20, slice(2, 20), slice(0, 8))).all()


@pytest.mark.parametrize("box", [(0, 0, 20, 20), (3.6, 3, 4.4, 10), (5, 5, 5.2, 5.3)])
def test_a_mask_without_a_pixel_is_none(box: Box) -> None:
    values = -np.ones((1, 4, 4), dtype=np.float32) if box[2] == 20 else np.ones((1, 4, 4), dtype=np.float32)
    masks = masks_of_tensor(values, (20, 20), LOGIT)
    assert render_mask(masks, 0, box, (20, 20)) is None


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_masks_that_are_not_finite_are_refused(wrong: float) -> None:
    grid = np.ones((1, 4, 4), dtype=np.float32)
    grid[0, 1, 2] = wrong
    with pytest.raises(InferenceError, match="mask with a number that is not finite"):
        render_mask(masks_of_tensor(grid, (20, 20), LOGIT), 0, (0, 0, 20, 20), (20, 20))
    beyond = Masks(np.ones((1, 4, 4), dtype=np.float32), np.array([[0, 0, wrong, 20]], dtype=np.float32), LOGIT)
    with pytest.raises(InferenceError, match="mask for a box that is not finite"):
        render_mask(beyond, 0, (0, 0, 20, 20), (20, 20))


@pytest.mark.parametrize(
    "mask",
    [
        {"size": [0, 5], "counts": "04"}, {"size": [5, 70000], "counts": "04"}, {"size": [5, 5], "counts": ""},
        {"size": [5, 5], "counts": "0p"}, {"size": [5, 5], "counts": "04\n"}, {"size": [5, 5], "counts": [0, 25]}, {"size": [5, 5]},
    ],
)  # fmt: skip
def test_a_decoded_detection_with_an_impossible_mask_is_refused(mask: dict[str, Any]) -> None:
    value = msgspec.json.encode({"label": "a", "score": 1, "box": [0, 0, 1, 1], "mask": mask})
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(value, type=Detection)
