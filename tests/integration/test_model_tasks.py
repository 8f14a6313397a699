"""Models of tasks beyond detection, as ONNX files with constant outputs whose results are computed by hand.

Nets take pictures of 64 x 128 (height, width). They are given one of 128 x 256, twice as large in both directions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.onnx_nets import constant_net, floats, image_input, load_net
from tests.pictures import FramePicture, picture_of

from vidflow.domain.detections import Detection, InferenceError
from vidflow.domain.errors import ModelError
from vidflow.infra.models.model import Model

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
