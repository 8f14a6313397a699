"""Models of tasks beyond detection, as ONNX files with constant outputs whose results are computed by hand.

Nets take pictures of 64 x 128 (height, width). They are given one of 128 x 256, twice as large in both directions.
"""

from __future__ import annotations

import uuid
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper
from tests import clips
from tests.integration.test_video_pixels import CORNERS, RED, TURNS, WHITE, read_first, write_rotated
from tests.onnx_nets import build_net, constant_net, floats, image_input, load_net
from tests.pictures import FramePicture, picture_of
from tests.rle import read_mask

from vidflow.domain.detections import Detection, InferenceError
from vidflow.domain.errors import ModelError
from vidflow.domain.messages import Frame, decode_result, encode
from vidflow.infra.models.model import Model
from vidflow.infra.video import KeptFrame

Outputs = dict[str, NDArray[Any]]
HEIGHT, WIDTH = 64, 128
FRAME = (0.0, 0.0, 2.0 * WIDTH, 2.0 * HEIGHT)


def picture(width: int = 2 * WIDTH, height: int = 2 * HEIGHT) -> FramePicture:
    return picture_of(np.zeros((height, width, 3), dtype=np.uint8))


def load(
    folder: Path,
    outputs: Outputs,
    task: str,
    output: str,
    more: str = "",
    labels: str = '["a", "b", "c"]',
    batch: Any = 1,
) -> Model:
    spec = f'task = "{task}"\nlabels = {labels}\n[input]\nsize = [{HEIGHT}, {WIDTH}]\n[output]\n{output}\n{more}'
    return load_net(folder, constant_net(outputs, image_input(batch, 3, HEIGHT, WIDTH)), spec)


def infer(model: Model, *pictures: FramePicture) -> tuple[Detection, ...]:
    return model.infer(pictures or [picture()])[0]


# --- classification

LOGITS = np.log(floats([[0.1, 0.7, 0.2]])) + 5
"""The logits of these probabilities, by softmax."""
INDEPENDENT = np.log(floats([[0.9, 0.1, 0.6]]) / floats([[0.1, 0.9, 0.4]]))
"""The logits of 0.9, 0.1 and 0.6, by sigmoid."""
LOW = "[thresholds]\nscore = 0.15"


@pytest.mark.parametrize(
    ("activation", "outputs", "expected"),
    [
        ("softmax", {"logits": LOGITS}, [("b", 0.7), ("c", 0.2)]),
        ("softmax", {"logits": LOGITS[0]}, [("b", 0.7), ("c", 0.2)]),
        ("softmax", {"logits": LOGITS[..., None, None]}, [("b", 0.7), ("c", 0.2)]),
        ("softmax", {"features": floats([[0] * 512]), "logits": LOGITS}, [("b", 0.7), ("c", 0.2)]),
        ("softmax", {"logits": LOGITS.astype(np.float16)}, [("b", 0.7), ("c", 0.2)]),
        ("sigmoid", {"logits": INDEPENDENT}, [("a", 0.9), ("c", 0.6)]),
        ("none", {"output0": floats([[0.1, 0.7, 0.2]])}, [("b", 0.7), ("c", 0.2)]),
    ],
)
def test_a_classifier_gives_the_best_labels_of_the_whole_frame(
    tmp_path: Path, activation: str, outputs: Outputs, expected: list[tuple[str, float]]
) -> None:
    model = load(tmp_path, outputs, "classification", f'decoder = "classes"\nactivation = "{activation}"', LOW)
    found = infer(model)
    assert [one.label for one in found] == [label for label, _ in expected]
    assert [one.score for one in found] == pytest.approx([score for _, score in expected], abs=1e-3)
    assert {one.box for one in found} == {FRAME}


@pytest.mark.parametrize(("score", "limit", "labels"), [(0.0, 2, ["b", "c"]), (0.0, 9, ["b", "c", "a"]), (0.8, 9, [])])
def test_the_thresholds_bound_the_score_and_the_number_of_labels(
    tmp_path: Path, score: float, limit: int, labels: list[str]
) -> None:
    thresholds = f"[thresholds]\nscore = {score}\nmax_detections = {limit}"
    model = load(tmp_path, {"x": LOGITS}, "classification", 'decoder = "classes"\nactivation = "softmax"', thresholds)
    assert [one.label for one in infer(model)] == labels


@pytest.mark.parametrize("resize", ["crop", "letterbox", "stretch"])
def test_a_label_is_of_the_whole_frame_however_it_is_resized(tmp_path: Path, resize: str) -> None:
    net = constant_net({"x": LOGITS}, image_input(1, 3, HEIGHT, WIDTH))
    spec = (
        f'task = "classification"\nlabels = ["a", "b", "c"]\n[input]\nsize = [{HEIGHT}, {WIDTH}]\nresize = "{resize}"'
    )
    model = load_net(tmp_path, net, f'{spec}\n[output]\ndecoder = "classes"\nactivation = "softmax"')
    assert [one.box for one in infer(model, picture(100, 300))] == [(0.0, 0.0, 100.0, 300.0)]


def test_pictures_of_a_batch_are_classified_separately(tmp_path: Path) -> None:
    logits = np.concatenate([LOGITS, LOGITS[:, [1, 0, 2]]])
    model = load(tmp_path, {"x": logits}, "classification", 'decoder = "classes"\nactivation = "softmax"', batch=2)
    first, second = model.infer([picture(), picture()])
    assert ([one.label for one in first], [one.label for one in second]) == (["b"], ["a"])


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("activation", ["softmax", "none"])
def test_scores_of_classes_that_are_not_finite_are_refused(tmp_path: Path, wrong: float, activation: str) -> None:
    logits = floats([[0.1, wrong, 0.3]])
    model = load(tmp_path, {"x": logits}, "classification", f'decoder = "classes"\nactivation = "{activation}"')
    with pytest.raises(InferenceError, match="finite"):
        infer(model)


def test_logits_that_are_taken_for_probabilities_are_refused(tmp_path: Path) -> None:
    model = load(tmp_path, {"x": LOGITS}, "classification", 'decoder = "classes"\nactivation = "none"')
    with pytest.raises(InferenceError, match="Check the spec's decoder and activation"):
        infer(model)


def test_a_classifier_of_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    outputs: Outputs = {"x": floats([[1] * 1000])}
    model = load(tmp_path, outputs, "classification", 'decoder = "classes"\nactivation = "softmax"')
    with pytest.raises(ModelError, match=r"\(1, 1000\) float32; decoder 'classes' needs \(batch, 3\) for 3 labels"):
        infer(model)


def test_a_classifier_that_is_taken_for_a_detector_is_refused_with_its_task(tmp_path: Path) -> None:
    model = load(tmp_path, {"x": LOGITS}, "detection", 'decoder = "yolov8"')
    with pytest.raises(ModelError, match="These outputs fit 'classes' with task 'classification'"):
        infer(model)


# --- keypoints

POSES = floats(
    [
        [
            [64, 32, 32, 16, 0.8, 50, 25, 0.9, 80, 40, 0.25],
            [65, 32, 32, 16, 0.7, 51, 26, 0.8, 81, 41, 0.5],  # overlaps the first one
            [16, 32, 32, 64, 0.6, -9, 10, 0.9, 200, 63, 1.0],  # both points lie beside the picture
            [64, 32, 32, 16, 0.2, 50, 25, 0.9, 80, 40, 0.25],  # below the threshold
        ]
    ]
)
POINTS = [((100, 50, 0.9), (160, 80, 0.25)), ((0, 20, 0.9), (256, 126, 1.0))]
"""The keypoints of the first and the third row, in a picture twice as large, clipped to it."""
ROWS = POSES[:, [0, 2]]
BOXES = floats([[[48, 24, 80, 40], [0, 0, 32, 64]]])
SCORES = floats([[0.8, 0.6]])
SELECTED = np.concatenate([BOXES, SCORES[..., None], floats([[[0], [0]]]), ROWS[..., 5:]], axis=2)
KEYPOINTS = ROWS[..., 5:].reshape(1, 2, 2, 3)
LISTS: Outputs = {"boxes": BOXES, "labels": np.array([[0, 0]]), "scores": SCORES}
SCORE_LOGITS = np.log(floats([[[0.9, 0.25], [0.9, 0.75]]]) / floats([[[0.1, 0.75], [0.1, 0.25]]]))
VISIBLE = np.concatenate([KEYPOINTS[..., :2], np.ones((1, 2, 2, 1), np.float32)], axis=-1)
UNSCORED = [((100, 50, 1), (160, 80, 1)), ((0, 20, 1), (256, 126, 1))]
LOGIT_SCORED = [POINTS[0], ((0, 20, 0.9), (256, 126, 0.75))]
IN_TENSOR = floats([WIDTH, HEIGHT, WIDTH, HEIGHT, 1, WIDTH, HEIGHT, 1, WIDTH, HEIGHT, 1])
UNBATCHED = {name: values[0] for name, values in LISTS.items()}

KEYPOINT_FORMS: dict[str, tuple[str, Outputs, list[Any]]] = {
    "yolov8": ('decoder = "yolov8"\nkeypoints = 2', {"x": POSES.transpose(0, 2, 1).copy()}, POINTS),
    "yolov8 transposed": ('decoder = "yolov8"\nkeypoints = 2', {"x": POSES}, POINTS),
    "yolov8 without scores": ('decoder = "yolov8"\nkeypoints = 2', {"x": POSES[..., [0, 1, 2, 3, 4, 5, 6, 8, 9]]}, UNSCORED),
    "yolov8 from 0 to 1": ('decoder = "yolov8"\nkeypoints = 2\ncoordinates = "normalised"', {"x": POSES / IN_TENSOR}, POINTS),
    "yolov5": ('decoder = "yolov5"\nkeypoints = 2', {"x": np.insert(POSES, 5, 1, axis=2)}, POINTS),
    "end2end": ('decoder = "yolo_end2end"\nkeypoints = 2', {"x": SELECTED}, POINTS),
    "end2end in half precision": ('decoder = "yolo_end2end"\nkeypoints = 2', {"x": SELECTED.astype(np.float16)}, POINTS),
    "torchvision": (
        'decoder = "torchvision"',
        UNBATCHED | {"keypoints": VISIBLE[0], "keypoints_scores": SCORE_LOGITS[0]},
        LOGIT_SCORED,
    ),
    "torchvision without names": (
        'decoder = "torchvision"\norder = ["boxes", "classes", "scores", "keypoint_scores", "keypoints"]',
        UNBATCHED | {"3": SCORE_LOGITS[0], "4": VISIBLE[0]},
        LOGIT_SCORED,
    ),
    "torchvision with scores": (
        'decoder = "torchvision"\nactivation = "none"',
        LISTS | {"keypoints": VISIBLE, "keypoint_scores": KEYPOINTS[..., 2]},
        POINTS,
    ),
    "torchvision with scores among the keypoints": ('decoder = "torchvision"', LISTS | {"kpts": KEYPOINTS}, POINTS),
}  # fmt: skip


def load_pose(folder: Path, outputs: Outputs, output: str, more: str = "") -> Model:
    return load(folder, outputs, "keypoints", output, more, labels='["person"]')


@pytest.mark.parametrize("form", KEYPOINT_FORMS)
def test_keypoints_of_each_form_are_those_computed_by_hand(tmp_path: Path, form: str) -> None:
    output, outputs, expected = KEYPOINT_FORMS[form]
    found = infer(load_pose(tmp_path, outputs, output))
    assert [one.box for one in found] == [
        pytest.approx((96, 48, 160, 80), abs=0.5), pytest.approx((0, 0, 64, 128), abs=0.5),
    ]  # fmt: skip
    assert [one.score for one in found] == pytest.approx([0.8, 0.6], abs=1e-3)
    for one, points in zip(found, expected, strict=True):
        assert len(one.keypoints) == len(points)
        for actual, point in zip(one.keypoints, points, strict=True):
            assert actual[:2] == pytest.approx(point[:2], abs=0.5)
            assert actual[2] == pytest.approx(point[2], abs=1e-3)


@pytest.mark.parametrize(
    ("resize", "size", "expected"),
    [
        ('resize = "letterbox"\nplace = "centre"', (256, 64), (100, 18)),
        ('resize = "letterbox"', (64, 64), (50, 25)),
        ('resize = "crop"\ncrop = 1.0', (128, 128), (50, 57)),
        ('resize = "crop"\ncrop = 0.5', (128, 64), (57, 28.5)),
    ],
)
def test_keypoints_are_mapped_back_to_the_picture(
    tmp_path: Path, resize: str, size: tuple[int, int], expected: tuple[float, float]
) -> None:
    """The point (50, 25) of the tensor, which is 64 x 128.

    A picture of 256 x 64 fills the tensor from row 16 on, in half its size. Of 128 x 128, the rows from 32 on are shown, and of 128 x 64
    the middle half in each direction, from (32, 16) on.
    """
    net = constant_net({"x": SELECTED}, image_input(1, 3, HEIGHT, WIDTH))
    spec = f'task = "keypoints"\nlabels = ["person"]\n[input]\nsize = [{HEIGHT}, {WIDTH}]\n{resize}'
    model = load_net(tmp_path, net, f'{spec}\n[output]\ndecoder = "yolo_end2end"\nkeypoints = 2')
    assert infer(model, picture(*size))[0].keypoints[0][:2] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", range(6, 12))
def test_keypoints_that_are_not_finite_are_refused(tmp_path: Path, wrong: float, column: int) -> None:
    rows = SELECTED.copy()
    rows[0, 1, column] = wrong
    model = load_pose(tmp_path, {"x": rows}, 'decoder = "yolo_end2end"\nkeypoints = 2')
    with pytest.raises(InferenceError, match="a 'person' with a number that is not finite"):
        infer(model)


def test_scores_of_keypoints_outside_0_to_1_are_refused(tmp_path: Path) -> None:
    rows = SELECTED.copy()
    rows[0, 1, 8] = 3.5
    with pytest.raises(InferenceError, match=r"a 'person' with score 3\.500, outside 0 to 1"):
        infer(load_pose(tmp_path, {"x": rows}, 'decoder = "yolo_end2end"\nkeypoints = 2'))


def test_outputs_for_another_number_of_keypoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"\(batch, 56, cells\) or \(batch, 39, cells\) for 1 label, or its transpose"):
        infer(load_pose(tmp_path, {"x": POSES}, 'decoder = "yolov8"\nkeypoints = 17'))
    with pytest.raises(ModelError, match=r"needs keypoints \(n, keypoints, 2 or 3\) for n boxes"):
        infer(load_pose(tmp_path, dict(LISTS), 'decoder = "torchvision"'))


def test_a_detector_of_keypoints_may_be_used_for_its_boxes_alone(tmp_path: Path) -> None:
    outputs = UNBATCHED | {"keypoints": VISIBLE[0], "keypoints_scores": SCORE_LOGITS[0]}
    found = infer(load(tmp_path, outputs, "detection", 'decoder = "torchvision"', labels='["person"]'))
    assert [one.keypoints for one in found] == [(), ()]


# --- oriented boxes

QUARTER = float(np.pi / 2)
ORIENTED = floats(
    [
        [
            [64, 32, 32, 16, 0.8, 0.1, QUARTER],
            [65, 32, 32, 16, 0.7, 0.1, QUARTER],  # overlaps the first one by 15 / 17
            [30, 30, 20, 10, 0.1, 0.6, np.pi / 6],
            [64, 32, 32, 16, 0.2, 0.1, QUARTER],  # below the threshold
        ]
    ]
)
SELECTED_ORIENTED = ORIENTED[:, [0, 2]][..., [0, 1, 2, 3, 4, 4, 6]]
SELECTED_ORIENTED[0, :, 4:6] = [[0.8, 0], [0.6, 1]]
UPRIGHT = ((144, 32), (144, 96), (112, 96), (112, 32))
"""A quarter turn takes the top left corner to the top right."""
TILTED = ((47.68, 41.34), (82.32, 61.34), (72.32, 78.66), (37.68, 58.66))
"""Around (60, 60), the sides 40 and 20 turned by 30 degrees: 20 cos 30 = 17.32, 20 sin 30 = 10, 10 cos 30 = 8.66, 10 sin 30 = 5."""
ORIENTED_IN_TENSOR = floats([WIDTH, HEIGHT, WIDTH, HEIGHT, 1, 1, 1])

ORIENTED_FORMS: dict[str, tuple[str, Outputs]] = {
    "yolov8": ('decoder = "yolov8"', {"x": ORIENTED.transpose(0, 2, 1).copy()}),
    "yolov8 transposed": ('decoder = "yolov8"', {"x": ORIENTED}),
    "yolov8 in half precision": ('decoder = "yolov8"', {"x": ORIENTED.transpose(0, 2, 1).astype(np.float16)}),
    "yolov8 from 0 to 1": ('decoder = "yolov8"\ncoordinates = "normalised"', {"x": ORIENTED / ORIENTED_IN_TENSOR}),
    "end2end": ('decoder = "yolo_end2end"', {"x": SELECTED_ORIENTED}),
}


def load_oriented(folder: Path, rows: NDArray[Any], more: str = "") -> Model:
    return load(folder, {"x": rows}, "oriented_boxes", 'decoder = "yolov8"', more, labels='["a", "b"]')


def assert_corners(one: Detection, expected: Any) -> None:
    assert [pytest.approx(corner, abs=0.5) for corner in expected] == list(one.corners)
    sides = np.array(one.corners)
    enclosing = [*np.maximum(sides.min(axis=0), 0), *np.minimum(sides.max(axis=0), FRAME[2:])]
    assert one.box == pytest.approx(enclosing, abs=0.01)


@pytest.mark.parametrize("form", ORIENTED_FORMS)
def test_oriented_boxes_of_each_form_have_the_corners_computed_by_hand(tmp_path: Path, form: str) -> None:
    output, outputs = ORIENTED_FORMS[form]
    first, second = infer(load(tmp_path, outputs, "oriented_boxes", output, labels='["a", "b"]'))
    assert (first.label, second.label) == ("a", "b")
    assert (first.score, second.score) == pytest.approx((0.8, 0.6), abs=1e-3)
    assert_corners(first, UPRIGHT)
    assert_corners(second, TILTED)


def test_crossing_boxes_in_the_same_enclosing_box_are_both_kept(tmp_path: Path) -> None:
    """Strips of 40 x 4 that cross at right angles share 16 of 304 square pixels."""
    rows = floats([[[64, 32, 40, 4, 0.8, 0.1, angle] for angle in (np.pi / 4, -np.pi / 4)]])
    found = infer(load_oriented(tmp_path, rows))
    assert len(found) == 2
    assert found[0].box == pytest.approx(found[1].box, abs=0.01)


@pytest.mark.parametrize(("iou", "kept"), [(0.88, 1), (0.89, 2)])
def test_the_overlap_of_oriented_boxes_is_that_of_their_areas(tmp_path: Path, iou: float, kept: int) -> None:
    """The boxes share 15 of 17 parts, 0.882, along a diagonal."""
    step = 1 / np.sqrt(2)
    rows = floats([[[64, 32, 32, 16, 0.8, 0, np.pi / 4], [64 + step, 32 - step, 32, 16, 0.7, 0, np.pi / 4]]])
    assert len(infer(load_oriented(tmp_path, rows, f"[thresholds]\nnms_iou = {iou}"))) == kept


def test_an_oriented_box_in_a_stretched_picture_has_the_corners_of_the_object(tmp_path: Path) -> None:
    """The picture of 128 x 128 is twice as high as the tensor, and as wide."""
    rows = floats([[[64, 32, 32, 32, 0.8, 0.1, np.pi / 4]]])
    (found,) = infer(load_oriented(tmp_path, rows), picture(128, 128))
    assert found.corners == ((64.0, 18.75), (86.63, 64.0), (64.0, 109.25), (41.37, 64.0))
    assert found.box == (41.37, 18.75, 86.63, 109.25)


def test_corners_beside_the_frame_are_kept_and_the_box_is_clipped(tmp_path: Path) -> None:
    (found,) = infer(load_oriented(tmp_path, floats([[[0, 0, 20, 10, 0.8, 0.1, 0]]])))
    assert found.corners == ((-20.0, -10.0), (20.0, -10.0), (20.0, 10.0), (-20.0, 10.0))
    assert found.box == (0.0, 0.0, 20.0, 10.0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 1, 2, 3, 6])
def test_oriented_boxes_that_are_not_finite_are_refused(tmp_path: Path, wrong: float, column: int) -> None:
    rows = ORIENTED[:, [0, 2]].copy()
    rows[0, 1, column] = wrong
    with pytest.raises(InferenceError, match="not finite"):
        infer(load_oriented(tmp_path, rows))


def test_corners_far_beside_the_frame_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match=r"far beside the frame\. Check the spec's decoder and coordinates"):
        infer(load_oriented(tmp_path, floats([[[64, 32, 1e8, 16, 0.8, 0.1, 0.5]]])))


# --- instance masks

LEFT_HALF = np.where(np.arange(32) < 16, 1, -1) * np.ones((16, 1))
TOP_HALF = np.where(np.arange(16) < 8, 1, -1)[:, None] * np.ones((1, 32))
PROTOTYPES = floats([[LEFT_HALF, TOP_HALF]])
"""Logits of which the first are above 0 in the left half of the picture, the second in the top half."""
SEGMENTS = floats(
    [
        [
            [64, 32, 32, 16, 0.1, 0.8, 2, 0],
            [65, 32, 32, 16, 0.1, 0.7, 0, 2],  # overlaps the first one
            [16, 32, 32, 64, 0.6, 0.1, 0, 3],
            [100, 32, 16, 16, 0.1, 0.5, 1, 0],  # its mask has no pixel, as it lies on the right
            [64, 32, 32, 16, 0.1, 0.2, 1, 0],  # below the threshold
        ]
    ]
)
MASKED = np.concatenate([BOXES, SCORES[..., None], floats([[[1], [0]]]), floats([[[2, 0], [0, 3]]])], axis=2)
MASK_RECTANGLES = [(slice(48, 80), slice(96, 128)), (slice(0, 64), slice(0, 64))]
"""Rows and columns of the masks: the left half of the first box, and the upper half of the second one."""
SEGMENT_LISTS: Outputs = {"boxes": BOXES, "labels": np.array([[1, 0]]), "scores": SCORES}
LEFT_CELLS = np.repeat([[1.0, 0.0]], 14, axis=1) * np.ones((28, 1))
BOX_MASKS = floats([[[LEFT_CELLS], [LEFT_CELLS.T]]])
WHOLE_MASKS = floats(
    [[[np.arange(WIDTH) < 64] * np.ones((HEIGHT, 1)), (np.arange(HEIGHT) < 32)[:, None] * np.ones((1, WIDTH))]]
)
IN_UNITS = floats([WIDTH, HEIGHT, WIDTH, HEIGHT, 1, 1, 1, 1])
PROTO: Outputs = {"output1": PROTOTYPES}

QUERY_LOGITS = floats([[[-9, -9], [-3, 1.3862944], [0.4054651, -3]]])
"""The logits of 0.8 and 0.6."""
RF_DETR: Outputs = {
    "dets": floats([[[0.5, 0.5, 0.1, 0.1], [0.5, 0.5, 0.25, 0.25], [0.125, 0.5, 0.25, 1]]]),
    "labels": QUERY_LOGITS,
}
QUERY_MASKS = floats([[np.full((16, 32), np.nan), LEFT_HALF, TOP_HALF]])
"""The first query is below the threshold, so that its mask has no effect."""

MASK_FORMS: dict[str, tuple[str, Outputs]] = {
    "yolov8": ('decoder = "yolov8"', {"output0": SEGMENTS.transpose(0, 2, 1).copy()} | PROTO),
    "yolov8 transposed": ('decoder = "yolov8"', PROTO | {"output0": SEGMENTS}),
    "yolov8 from 0 to 1": ('decoder = "yolov8"\ncoordinates = "normalised"', {"output0": SEGMENTS / IN_UNITS} | PROTO),
    "yolov8 in half precision": (
        'decoder = "yolov8"',
        {"output0": SEGMENTS.transpose(0, 2, 1).astype(np.float16), "output1": PROTOTYPES.astype(np.float16)},
    ),
    "yolov5": ('decoder = "yolov5"', {"output0": np.insert(SEGMENTS, 4, 1, axis=2)} | PROTO),
    "end2end": ('decoder = "yolo_end2end"', {"output0": MASKED} | PROTO),
    "rf-detr": ('decoder = "detr"', RF_DETR | {"masks": QUERY_MASKS}),
    "rf-detr without a name of its masks": ('decoder = "detr"', {"4245": QUERY_MASKS} | RF_DETR),
    "torchvision, in boxes": (
        'decoder = "torchvision"',
        {name: values[0] for name, values in (SEGMENT_LISTS | {"masks": BOX_MASKS}).items()},
    ),
    "torchvision, in boxes of a batch": ('decoder = "torchvision"', SEGMENT_LISTS | {"masks": BOX_MASKS[:, :, 0]}),
    "torchvision, pasted": (
        'decoder = "torchvision"\norder = ["boxes", "classes", "scores", "masks"]',
        {name: values[0] for name, values in (SEGMENT_LISTS | {"3": WHOLE_MASKS[:, :, None]}).items()},
    ),
}


def load_segmenter(folder: Path, outputs: Outputs, output: str = 'decoder = "yolo_end2end"', more: str = "") -> Model:
    return load(folder, outputs, "instance_segmentation", output, more, labels='["a", "b"]')


@pytest.mark.parametrize("form", MASK_FORMS)
def test_masks_of_each_form_have_the_pixels_computed_by_hand(tmp_path: Path, form: str) -> None:
    output, outputs = MASK_FORMS[form]
    found = infer(load_segmenter(tmp_path, outputs, output))
    assert [one.label for one in found] == ["b", "a"]
    assert [one.score for one in found] == pytest.approx([0.8, 0.6], abs=1e-3)
    assert found[0].box == pytest.approx((96, 48, 160, 80), abs=0.5)
    for one, (rows, columns) in zip(found, MASK_RECTANGLES, strict=True):
        expected = np.zeros((2 * HEIGHT, 2 * WIDTH), dtype=bool)
        expected[rows, columns] = True
        corners = np.ix_([rows.start, rows.stop - 1], [columns.start, columns.stop - 1])
        different = read_mask(one.mask) != expected
        different[corners] = False  # masks in boxes have round corners
        assert not different.any()


@pytest.mark.parametrize(
    ("resize", "size", "rows", "columns"),
    [
        ('resize = "letterbox"\nplace = "centre"', (256, 64), slice(16, 48), slice(96, 128)),
        ('resize = "letterbox"', (64, 64), slice(24, 40), slice(48, 64)),
        ('resize = "crop"\ncrop = 1.0', (128, 128), slice(56, 72), slice(48, 64)),
        ('resize = "crop"\ncrop = 0.5', (128, 64), slice(28, 36), slice(56, 64)),
    ],
)
def test_masks_are_mapped_back_to_the_picture(
    tmp_path: Path, resize: str, size: tuple[int, int], rows: slice, columns: slice
) -> None:
    """The mask covers the columns 48 to 64 and the rows 24 to 40 of the tensor."""
    outputs: Outputs = {"output0": MASKED[:, :1]} | PROTO
    net = constant_net(outputs, image_input(1, 3, HEIGHT, WIDTH))
    spec = f'task = "instance_segmentation"\nlabels = ["a", "b"]\n[input]\nsize = [{HEIGHT}, {WIDTH}]\n{resize}'
    model = load_net(tmp_path, net, f'{spec}\n[output]\ndecoder = "yolo_end2end"')
    expected = np.zeros(size[::-1], dtype=bool)
    expected[rows, columns] = True
    assert (read_mask(infer(model, picture(*size))[0].mask) == expected).all()


@pytest.mark.parametrize("batch", [2, "n"])
def test_each_picture_of_a_batch_has_the_masks_of_its_own_prototypes(tmp_path: Path, batch: int | str) -> None:
    rows, prototypes = np.concatenate([MASKED[:, :1]] * 2), np.concatenate([PROTOTYPES, PROTOTYPES[:, ::-1]])
    net = constant_net({"output0": rows, "output1": prototypes}, image_input(batch, 3, HEIGHT, WIDTH))
    spec = f'task = "instance_segmentation"\nlabels = ["a", "b"]\n[input]\nsize = [{HEIGHT}, {WIDTH}]\nbatch = 2'
    model = load_net(tmp_path, net, f'{spec}\n[output]\ndecoder = "yolo_end2end"')
    (first,), (second,) = model.infer([picture(), picture()])
    assert read_mask(first.mask).any(axis=0).nonzero()[0].tolist() == list(range(96, 128))
    assert read_mask(second.mask).any(axis=1).nonzero()[0].tolist() == list(range(48, 64))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["output0", "output1"])
def test_masks_with_numbers_that_are_not_finite_are_refused(tmp_path: Path, name: str, wrong: float) -> None:
    outputs: Outputs = {"output0": MASKED.copy(), "output1": PROTOTYPES.copy()}
    outputs[name][0, 0, 7 if name == "output0" else 8] = wrong
    with pytest.raises(InferenceError, match="mask with a number that is not finite"):
        infer(load_segmenter(tmp_path, outputs))


def test_masks_are_rendered_for_the_best_detections_only(tmp_path: Path) -> None:
    """The second mask is broken, and is not looked at if one detection suffices."""
    outputs: Outputs = {"output0": MASKED.copy()} | PROTO
    outputs["output0"][0, 1, 7] = np.nan
    (found,) = infer(load_segmenter(tmp_path, outputs, more="[thresholds]\nmax_detections = 1"))
    assert found.label == "b"


@pytest.mark.parametrize(
    ("output", "outputs", "reason"),
    [
        ('decoder = "yolov8"', {"output0": SEGMENTS}, r"needs prototypes of masks \(batch, channels, rows, columns\)"),
        ('decoder = "yolov8"', {"output0": SEGMENTS, "output1": PROTOTYPES[:, :1]}, r"needs \(batch, 7, cells\) for 2 labels"),
        ('decoder = "yolo_end2end"', {"output0": MASKED, "output1": np.tile(PROTOTYPES, (2, 1, 1, 1))}, r"prototypes of masks \(1, 2,"),
        ('decoder = "detr"', RF_DETR, r"decoder 'detr' needs masks \(n, 1, rows, columns\) for n boxes"),
        ('decoder = "torchvision"', SEGMENT_LISTS, r"needs masks \(n, 1, rows, columns\) for n boxes"),
        ('decoder = "torchvision"', SEGMENT_LISTS | {"masks": BOX_MASKS[:, :1]}, r"needs masks \(n, 1, rows, columns\)"),
    ],
)  # fmt: skip
def test_outputs_without_fitting_masks_are_refused(tmp_path: Path, output: str, outputs: Outputs, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        infer(load_segmenter(tmp_path, dict(outputs), output))


def test_a_model_of_masks_that_is_taken_for_a_detector_is_refused_with_its_task(tmp_path: Path) -> None:
    model = load(tmp_path, {"output0": SEGMENTS} | PROTO, "detection", 'decoder = "yolov8"', labels='["a", "b"]')
    with pytest.raises(ModelError, match="These outputs fit 'yolov8' with task 'instance_segmentation'"):
        infer(model)


def red_finder(folder: Path, resize: str) -> Model:
    """Return a model of one object, the whole tensor, whose mask has the pixels of the picture with much red."""
    prototypes = np.zeros((1, 1, 64, 64), dtype=np.float32)
    rows = floats([[[0, 0, 64, 64, 0.9, 0, 1]]])
    nodes = [
        helper.make_node("Gather", ["image", "red"], ["channel"], axis=1),
        helper.make_node("Sub", ["channel", "half"], ["prototypes"]),
        helper.make_node("Identity", ["rows value"], ["rows"]),
    ]
    net = build_net(
        nodes,
        {"red": np.array([0], dtype=np.int64), "half": floats(127.5), "rows value": rows},
        {"rows": rows, "prototypes": prototypes},
        image_input(1, 3, 64, 64),
    )
    spec = f'task = "instance_segmentation"\nlabels = ["red"]\n[input]\nsize = [64, 64]\n{resize}'
    return load_net(folder, net, f'{spec}\n[output]\ndecoder = "yolo_end2end"')


LETTERBOX = 'resize = "letterbox"\nplace = "centre"'


@pytest.mark.parametrize("resize", [LETTERBOX, 'resize = "stretch"', 'resize = "letterbox"'])
@pytest.mark.parametrize("turn", TURNS)
def test_a_mask_lies_on_its_object_in_a_turned_frame(tmp_path: Path, turn: str, resize: str) -> None:
    frame = read_first(write_rotated(tmp_path / "turned.mp4", turn))
    assert_red_quarters(frame, red_finder(tmp_path, resize), CORNERS[turn])


@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(1, 2), Fraction(16, 11)])
def test_a_mask_lies_on_its_object_in_a_frame_whose_pixels_are_not_square(tmp_path: Path, aspect: Fraction) -> None:
    clip = clips.write(tmp_path / "wide.mp4", [clips.quarters()], [0], pixel_aspect=aspect)
    frame = read_first(clip)
    assert (frame.width, frame.height) == (round(96 * aspect), 64)
    assert_red_quarters(frame, red_finder(tmp_path, LETTERBOX), CORNERS["upright"])


def assert_red_quarters(frame: KeptFrame, model: Model, corners: list[str]) -> None:
    """Check the mask in all quarters of the frame, up to four pixels from their edges."""
    ((found,),) = model.infer([frame])
    pixels = read_mask(found.mask)
    assert pixels.shape == (frame.height, frame.width)
    x, y = frame.width // 2, frame.height // 2
    for (top, left), colour in zip(((0, 0), (0, x), (y, 0), (y, x)), corners, strict=True):
        quarter = pixels[top : top + y, left : left + x][4:-4, 4:-4]
        assert quarter.all() if colour in {RED, WHITE} else not quarter.any()


# --- any task

ONE_OF_EACH: dict[str, tuple[Outputs, str]] = {
    "classification": ({"x": LOGITS}, 'decoder = "classes"\nactivation = "softmax"'),
    "keypoints": ({"x": POSES}, 'decoder = "yolov8"\nkeypoints = 2'),
    "oriented_boxes": ({"x": ORIENTED}, 'decoder = "yolov8"'),
    "instance_segmentation": ({"output0": SEGMENTS} | PROTO, 'decoder = "yolov8"'),
}
LABELS_OF_EACH = {"classification": '["a", "b", "c"]', "keypoints": '["person"]'}


@pytest.mark.parametrize("task", ONE_OF_EACH)
def test_the_same_frame_has_the_same_bytes_whatever_was_inferred_before(tmp_path: Path, task: str) -> None:
    outputs, output = ONE_OF_EACH[task]
    labels = LABELS_OF_EACH.get(task, '["a", "b"]')
    first = load(tmp_path, outputs, task, output, labels=labels)
    results = [msgspec.json.encode(infer(first, shown)) for shown in (picture(), picture(300, 200), picture())]
    again = msgspec.json.encode(infer(load(tmp_path, outputs, task, output, labels=labels)))
    assert results[0] == results[2] == again != results[1]


@pytest.mark.parametrize("task", ONE_OF_EACH)
def test_results_of_each_task_keep_their_bytes_in_a_message(tmp_path: Path, task: str) -> None:
    outputs, output = ONE_OF_EACH[task]
    found = infer(load(tmp_path, outputs, task, output, labels=LABELS_OF_EACH.get(task, '["a", "b"]')))
    frame = Frame(str(uuid.uuid4()), 1, 0, 0, "1/25", 0, 0.0, "2026-11-28T12:00:00Z", 256, 128, found)
    decoded = decode_result(encode(frame))
    assert isinstance(decoded, Frame)
    assert encode(decoded) == encode(frame)
    assert decoded.detections == found
