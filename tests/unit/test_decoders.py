"""Decoders, non-maximum suppression and the mapping between pictures and tensors, on inputs with known results."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.boxes import iou
from tests.pictures import picture_of

from vidflow.domain.detections import InferenceError
from vidflow.domain.errors import ModelError
from vidflow.infra.models.decoders import Candidates, Layout, apply_nms, decode
from vidflow.infra.models.detector import DetectionFilter, to_detections
from vidflow.infra.models.spec import TASK_DECODERS, InputSpec, OutputSpec, Task
from vidflow.infra.models.tensors import TensorForm, fill_tensor, fit_picture, map_to_picture

YOLOX = Layout((64, 64), 3, OutputSpec("yolox", strides=(8, 16, 32)))
CELLS = 64 + 16 + 4


def candidates(*rows: tuple[float, float, float, float, float, int]) -> Candidates:
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return Candidates(table[:, :4].astype(np.float32), table[:, 4].astype(np.float32), table[:, 5].astype(np.int64))


def test_a_yolox_cell_becomes_a_box_around_its_centre() -> None:
    raw = np.zeros((1, CELLS, 8), dtype=np.float32)
    cell = 64 + 4 * 2 + 1  # stride 16, row 2, column 1
    raw[0, cell] = [0.5, 0.25, np.log(2), np.log(1), 0.9, 0.1, 0.8, 0.0]
    (found,) = decode([raw], YOLOX, 0.5)
    assert found.classes.tolist() == [1]
    assert found.scores[0] == pytest.approx(0.72)
    assert found.boxes[0] == pytest.approx([24 - 16, 36 - 8, 24 + 16, 36 + 8])


def test_a_yolox_size_that_overflows_stays_finite() -> None:
    raw = np.zeros((1, CELLS, 8), dtype=np.float32)
    raw[0, 0] = [0, 0, 1e4, 1e4, 1, 1, 0, 0]
    (found,) = decode([raw], YOLOX, 0.5)
    assert np.isfinite(found.boxes).all()


def test_each_picture_of_a_batch_is_decoded_separately() -> None:
    raw = np.zeros((3, CELLS, 8), dtype=np.float32)
    raw[1, 5, 4:6] = 1
    assert [len(found.scores) for found in decode([raw], YOLOX, 0.5)] == [0, 1, 0]


@pytest.mark.parametrize("shape", [(1, CELLS, 7), (1, CELLS - 1, 8), (CELLS, 8)])
def test_outputs_of_the_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="yolox"):
        decode([np.zeros(shape, dtype=np.float32)], YOLOX, 0.5)


def test_nan_scores_are_refused_and_not_dropped() -> None:
    raw = np.zeros((1, CELLS, 8), dtype=np.float32)
    raw[0, 3, 4] = np.nan
    with pytest.raises(InferenceError, match="finite"):
        decode([raw], YOLOX, 0.5)


def test_a_fastestdet_cell_becomes_a_box_relative_to_the_tensor_size() -> None:
    raw = np.zeros((1, 5 + 3, 4, 8), dtype=np.float32)
    raw[0, :, 1, 2] = [1, 0, 0, 0, 0, 0.0, 0.0, 1.0]
    (found,) = decode([raw], Layout((64, 128), 3, OutputSpec("fastestdet")), 0.9)
    assert found.classes.tolist() == [2]
    assert found.boxes[0] == pytest.approx([32 - 32, 16 - 16, 32 + 32, 16 + 16])


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
@pytest.mark.parametrize("count", [0, 1, 4])
def test_torchvision_outputs_are_recognized_in_any_order(
    batched: bool, order: tuple[int, int, int], count: int
) -> None:
    boxes = np.arange(4 * count, dtype=np.float32).reshape(count, 4)
    outputs: list[NDArray[Any]] = [boxes, np.arange(count), np.full(count, 0.9, dtype=np.float32)]
    ordered = [outputs[index][None] if batched else outputs[index] for index in order]
    (found,) = decode(ordered, Layout((64, 64), 3, OutputSpec("torchvision")), 0.5)
    assert found.boxes.tolist() == boxes.tolist()
    assert found.classes.tolist() == list(range(count))


def test_nms_keeps_the_best_of_overlapping_boxes_of_a_class() -> None:
    found = candidates((0, 0, 10, 10, 0.5, 0), (1, 0, 11, 10, 0.9, 0), (50, 0, 60, 10, 0.4, 0))
    assert apply_nms(found, 0.45).scores.tolist() == pytest.approx([0.9, 0.4])


def test_nms_keeps_overlapping_boxes_of_two_classes() -> None:
    assert len(apply_nms(candidates((0, 0, 10, 10, 0.5, 0), (0, 0, 10, 10, 0.9, 1)), 0.45).scores) == 2


def test_nms_keeps_a_box_that_overlaps_only_a_removed_box() -> None:
    chain = candidates((0, 0, 10, 10, 0.9, 0), (4, 0, 14, 10, 0.8, 0), (8, 0, 18, 10, 0.7, 0))
    assert apply_nms(chain, 0.4).scores.tolist() == pytest.approx([0.9, 0.7])


def test_nms_agrees_with_a_plain_implementation_on_random_boxes() -> None:
    random = np.random.default_rng(7)
    corners = random.uniform(0, 80, (200, 2))
    rows = np.hstack(
        [
            corners,
            corners + random.uniform(5, 40, (200, 2)),
            random.uniform(0, 1, (200, 1)),
            random.integers(0, 3, (200, 1)),
        ]
    )
    found = candidates(*[tuple(row) for row in rows])
    assert apply_nms(found, 0.5).scores.tolist() == _plain_nms(found, 0.5)


def _plain_nms(found: Candidates, limit: float) -> list[float]:
    ranked = sorted(zip(found.scores.tolist(), found.boxes.tolist(), found.classes.tolist(), strict=True), reverse=True)
    kept: list[tuple[float, list[float], int]] = []
    for score, box, label in ranked:
        if not any(label == other[2] and iou(tuple(box), tuple(other[1])) > limit for other in kept):  # type: ignore[arg-type]
            kept.append((score, box, label))
    return [score for score, _, _ in kept]


@pytest.mark.parametrize("place", ["corner", "centre"])
@pytest.mark.parametrize("size", [(640, 360), (360, 640), (64, 64), (1, 900)])
def test_a_letterboxed_box_is_mapped_back_to_the_picture(size: tuple[int, int], place: str) -> None:
    placed = fit_picture(size, InputSpec((416, 416), resize="letterbox", place=place))  # type: ignore[arg-type]
    picture_box = np.array(
        [[placed.left, placed.top, placed.left + placed.size[0], placed.top + placed.size[1]]], dtype=np.float32
    )
    assert map_to_picture(picture_box, placed)[0] == pytest.approx([0, 0, *size], abs=1e-3)


def test_a_letterboxed_picture_is_placed_in_the_corner_and_padded() -> None:
    spec = InputSpec((32, 32), resize="letterbox", pad=114, channels="bgr")
    tensor = np.zeros((3, 32, 32), dtype=np.float32)
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[..., 0] = 200
    fill_tensor(tensor, picture_of(pixels), spec)
    assert tensor[2, :16].min() == pytest.approx(200, abs=1)
    assert tensor[0, :16].max() == pytest.approx(0, abs=1)
    assert (tensor[:, 16:] == 114).all()


@pytest.mark.parametrize(
    ("size", "crop", "scaled", "corner"),
    [
        ((512, 256), 0.875, (512, 256), (144, 16)),
        ((256, 512), 0.875, (256, 512), (16, 144)),
        ((448, 224), 1.0, (448, 224), (112, 0)),
        ((1024, 512), 0.875, (512, 256), (144, 16)),
        ((112, 112), 0.5, (448, 448), (112, 112)),
    ],
)
def test_a_cropped_picture_shows_its_centre(
    size: tuple[int, int], crop: float, scaled: tuple[int, int], corner: tuple[int, int]
) -> None:
    """The tensor shows the centre of the picture whose shorter side is 224 / `crop`, as torchvision's transforms of ImageNet do."""
    spec = InputSpec((224, 224), resize="crop", crop=crop)
    shown = picture_of(np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    tensor = np.zeros((3, 224, 224), dtype=np.float32)
    fit = fill_tensor(tensor, shown, spec)
    x, y = corner
    assert (tensor.transpose(1, 2, 0) == shown.image(*scaled)[y : y + 224, x : x + 224]).all()
    factor = size[0] / scaled[0]
    expected = [x * factor, y * factor, (x + 224) * factor, (y + 224) * factor]
    whole = np.array([[0, 0, 224, 224]], dtype=np.float32)
    assert map_to_picture(whole, fit)[0] == pytest.approx(expected, abs=0.01)


def test_a_picture_that_would_be_huge_before_it_is_cropped_is_refused() -> None:
    with pytest.raises(InferenceError, match=r"16 x 65535 pixels cannot be cropped.*Use resize = 'letterbox'"):
        fit_picture((16, 65535), InputSpec((224, 224), resize="crop"))


@pytest.mark.parametrize(("resample", "value"), [("area", 200), ("bilinear", 150), ("bicubic", 162.5)])
def test_a_picture_is_scaled_with_the_filter_of_the_spec(resample: str, value: float) -> None:
    """Stripes of nine columns become one column each. `value` is what the filter's integral over a bright stripe, and for the
    cubic also over the next bright ones, lets through.
    """
    pixels = np.zeros((288, 288, 3), dtype=np.uint8)
    pixels[:, np.arange(288) // 9 % 2 == 0] = 200
    tensor = np.zeros((3, 32, 32), dtype=np.float32)
    fill_tensor(tensor, picture_of(pixels), InputSpec((32, 32), resample=resample))  # type: ignore[arg-type]
    assert tensor[:, 8:-8, 8:-8:2] == pytest.approx(value, abs=1.5)


def test_pixels_are_scaled_then_reduced_by_the_mean_then_divided_by_std() -> None:
    spec = InputSpec((32, 32), scale=0.5, mean=(10.0, 0.0, 20.0), std=(1.0, 2.0, 4.0))
    tensor = np.zeros((3, 32, 32), dtype=np.float32)
    fill_tensor(tensor, picture_of(np.full((32, 32, 3), 100, dtype=np.uint8)), spec)
    assert tensor[:, 0, 0] == pytest.approx([40, 25, 7.5])


@pytest.mark.parametrize(
    ("channels", "expected"),
    [("rgb", [1.30705, -0.28501, -0.93298]), ("bgr", [-0.93298, -0.28501, 1.30705])],
)
def test_imagenet_normalisation_follows_the_order_of_the_channels(channels: str, expected: list[float]) -> None:
    """(200 / 255 - 0.485) / 0.229, (100 / 255 - 0.456) / 0.224 and (50 / 255 - 0.406) / 0.225."""
    spec = InputSpec((32, 32), normalise="imagenet", channels=channels)  # type: ignore[arg-type]
    tensor = np.zeros((3, 32, 32), dtype=np.float32)
    fill_tensor(tensor, picture_of(np.full((32, 32, 3), (200, 100, 50), dtype=np.uint8)), spec)
    assert tensor[:, 5, 5] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("normalise", "expected"),
    [("none", [255, 0, 51]), ("unit", [1.0, 0.0, 0.2]), ("signed", [1.0, -1.0, -0.6])],
)
def test_presets_scale_pixels(normalise: str, expected: list[float]) -> None:
    tensor = np.zeros((3, 32, 32), dtype=np.float32)
    pixels = np.full((32, 32, 3), (255, 0, 51), dtype=np.uint8)
    fill_tensor(tensor, picture_of(pixels), InputSpec((32, 32), normalise=normalise))  # type: ignore[arg-type]
    assert tensor[:, 5, 5] == pytest.approx(expected, abs=1e-5)


def test_half_precision_is_normalised_in_single_precision() -> None:
    tensor = np.zeros((3, 32, 32), dtype=np.float16)
    pixels = np.full((32, 32, 3), (200, 100, 50), dtype=np.uint8)
    fill_tensor(tensor, picture_of(pixels), InputSpec((32, 32), normalise="imagenet"))
    assert tensor[:, 5, 5].tolist() == [float(np.float16(value)) for value in (1.3070468, -0.2850140, -0.9329847)]


@pytest.mark.parametrize(("scale", "expected"), [(1.0, [200, 100, 50]), (0.5, [100, 50, 25]), (2.0, [255, 200, 100])])
def test_whole_numbers_are_rounded_and_clipped(scale: float, expected: list[int]) -> None:
    tensor = np.zeros((3, 32, 32), dtype=np.uint8)
    pixels = np.full((32, 32, 3), (200, 100, 50), dtype=np.uint8)
    fill_tensor(tensor, picture_of(pixels), InputSpec((32, 32), scale=scale))
    assert tensor[:, 5, 5].tolist() == expected


NAMES = (
    "boxes", "scores", "labels", "logits", "dets", "num", "output0", "TFLite_Detection_PostProcess:1", "keypoints",
    "keypoints_scores", "masks",
)  # fmt: skip
VALUES = st.sampled_from([0.0, 0.5, 1.0, -1.0, 3.0, 1e9, 1e38, float("nan"), float("inf"), float("-inf")])


FITTING_SHAPES = [
    [1, 5, 4],
    [2, 5, 4],
    [1, 5],
    [2, 5],
    [5, 4],
    [5],
    [1],
    [2],
    [1, 5, 3],
    [1, 7, 5],
    [1, 84, 8],
    [1, 5, 6],
    [1, 8, 4, 4],
    [1, 3],
    [3],
    [1, 5, 13],
    [1, 13, 7],
    [1, 5, 12],
    [1, 5, 14],
    [1, 5, 9],
    [1, 10, 7],
    [2, 5, 8],
    [1, 2, 4, 4],
    [2, 1, 9, 3],
    [1, 5, 2, 3],
    [5, 2, 3],
    [5, 2],
    [5, 1, 4, 4],
    [1, 5, 8, 8],
]
"""Shapes that decoders accept for three labels and two keypoints."""


def filled(shape: list[int], values: list[float], dtype: str) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        return np.resize(np.array(values), shape).astype(dtype)


ARRAYS = st.builds(
    filled,
    st.sampled_from(FITTING_SHAPES) | st.lists(st.integers(0, 9), max_size=4),
    st.lists(VALUES, min_size=1, max_size=7),
    st.sampled_from(["float32", "float16", "float64", "int64", "int32", "uint8", "bool"]),
)


@pytest.mark.parametrize(
    ("task", "decoder"), [(task, decoder) for task, decoders in TASK_DECODERS.items() for decoder in decoders]
)
@given(
    outputs=st.lists(st.tuples(st.sampled_from(NAMES), ARRAYS), max_size=4),
    order=st.none()
    | st.lists(st.sampled_from(["boxes", "scores", "classes", "count", "logits", "keypoints", "masks"]), max_size=4),
    coordinates=st.sampled_from([None, "pixels", "normalised"]),
    activation=st.sampled_from([None, "softmax", "sigmoid", "none"]),
    score=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_outputs_of_any_shape_are_decoded_or_refused(
    task: Task,
    decoder: Any,
    outputs: list[tuple[str, NDArray[Any]]],
    order: Any,
    coordinates: Any,
    activation: Any,
    score: float,
) -> None:
    spec = OutputSpec(decoder, coordinates=coordinates, activation=activation, order=order, keypoints=2)
    layout = Layout((64, 64), 3, spec, tuple(name for name, _ in outputs), task)
    try:
        pictures = decode([array for _, array in outputs], layout, score)
    except (ModelError, InferenceError):
        return
    for found in pictures:
        assert found.boxes.shape == (len(found.scores), 4)
        assert found.classes.shape == found.scores.shape
        assert (found.scores >= score).all()
        assert len(apply_nms(found, 0.5).scores) <= len(found.scores)
        with suppress(InferenceError):
            to_detections(found, ("a", "b", "c"), DetectionFilter(score, None, 300), (64, 64))


def test_a_form_without_a_batch_axis_has_one_picture() -> None:
    form = TensorForm("uint8", "nhwc", has_batch_axis=False)
    tensor = form.allocate(1, (16, 32))
    assert tensor.shape == (16, 32, 3)
    assert tensor.dtype == np.uint8
    form.planes(tensor, 0)[2, 5, 6] = 7
    assert tensor[5, 6, 2] == 7
