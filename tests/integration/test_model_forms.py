"""Each form in which exporters write detectors, as an ONNX file with constant outputs whose boxes are computed by hand.

Nets take pictures of 64 x 128 (height, width). They are given one of 128 x 256, twice as large in both directions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tests.onnx_nets import build_net, constant_net, floats, image_input, load_net
from tests.pictures import FramePicture, picture_of

from vidflow.domain.detections import Detection
from vidflow.domain.errors import ModelError

Outputs = dict[str, NDArray[Any]]
HEIGHT, WIDTH = 64, 128
LN_9, LN_3 = 2.1972246, 1.0986123
"""The logits of 0.9 and 0.75. Their negatives are those of 0.1 and 0.25."""
CENTRED = Detection("b", 0.8, (96.0, 48.0, 160.0, 80.0))
"""The box around (64, 32) with the size 32 x 16 in the tensor."""
LEFT = Detection("a", 0.6, (0.0, 0.0, 64.0, 128.0))
"""The left quarter."""


def picture(width: int = 2 * WIDTH, height: int = 2 * HEIGHT) -> FramePicture:
    return picture_of(np.zeros((height, width, 3), dtype=np.uint8))


def spec(output: str, more_input: str = "", labels: str = '["a", "b"]') -> str:
    return f"labels = {labels}\n[input]\nsize = [{HEIGHT}, {WIDTH}]\n{more_input}\n[output]\n{output}"


def image(*shape: int | str) -> Any:
    return image_input(*(shape or (1, 3, HEIGHT, WIDTH)))


def in_rows(*rows: list[float]) -> NDArray[np.float32]:
    return floats([rows])


YOLOV5_ROWS = in_rows(
    [64, 32, 32, 16, 0.8, 0.25, 1.0],  # 0.8 of b
    [65, 32, 32, 16, 0.7, 0.25, 1.0],  # overlaps the first one
    [16, 32, 32, 64, 0.75, 0.8, 0.1],  # 0.6 of a
    [64, 32, 32, 16, 0.3, 1.0, 0.1],  # below the threshold
)
YOLOV8_ROWS = in_rows(
    [64, 32, 32, 16, 0.3, 0.8],
    [65, 32, 32, 16, 0.3, 0.7],
    [16, 32, 32, 64, 0.6, 0.1],
    [64, 32, 32, 16, 0.3, 0.2],
    [64, 32, 32, 16, 0.1, 0.2],
)
END2END_ROWS = in_rows([48, 24, 80, 40, 0.8, 1], [0, 0, 32, 64, 0.6, 0], [0, 0, 10, 10, 0.1, 0], [0, 0, 0, 0, 0, 0])
NORMALISED_CENTRES = in_rows([0.5, 0.5, 0.25, 0.25], [0.125, 0.5, 0.25, 1.0], [0.5, 0.5, 0.1, 0.1])
PROBABILITIES = floats([[[0.05, 0.8], [0.6, 0.1], [0.1, 0.2]]])
LOGITS = np.log(PROBABILITIES / (1 - PROBABILITIES))
NORMALISED_YXYX = in_rows([0.375, 0.375, 0.625, 0.625], [0, 0, 1, 0.25], [0, 0, 1, 1])
PIXELS = in_rows([48, 24, 80, 40], [0, 0, 32, 64], [0, 0, 10, 10])
SCORES = floats([[0.8, 0.6, 0.1]])
CLASSES = np.array([[1, 0, 0]], dtype=np.int64)
SURPLUS_SCORES = floats([[0.8, 0.6, 0.9]])
"""The third box lies beyond the count of two."""

FORMS: dict[str, tuple[str, Outputs]] = {
    "yolov5": ('decoder = "yolov5"', {"output0": YOLOV5_ROWS}),
    "yolov5 with its raw maps": (
        'decoder = "yolov5"',
        {"output0": YOLOV5_ROWS, "339": np.zeros((1, 3, 8, 16, 7), dtype=np.float32)},
    ),
    "yolov5 from 0 to 1": (
        'decoder = "yolov5"\ncoordinates = "normalised"',
        {"output0": YOLOV5_ROWS / floats([WIDTH, HEIGHT, WIDTH, HEIGHT, 1, 1, 1])},
    ),
    "yolov8": ('decoder = "yolov8"', {"output0": YOLOV8_ROWS.transpose(0, 2, 1).copy()}),
    "yolov8 transposed": ('decoder = "yolov8"', {"output0": YOLOV8_ROWS}),
    "yolov8 in half precision": (
        'decoder = "yolov8"',
        {"output0": YOLOV8_ROWS.transpose(0, 2, 1).astype(np.float16)},
    ),
    "yolov8 with as many cells as rows": (
        'decoder = "yolov8"',
        {"output0": np.concatenate([YOLOV8_ROWS, np.zeros((1, 1, 6), np.float32)], axis=1).transpose(0, 2, 1).copy()},
    ),
    "yolo_end2end": ('decoder = "yolo_end2end"', {"output0": END2END_ROWS}),
    "rt-detr": ('decoder = "detr"', {"logits": LOGITS, "pred_boxes": NORMALISED_CENTRES}),
    "rt-detr without names": ('decoder = "detr"', {"1": NORMALISED_CENTRES, "2": LOGITS}),
    "detr": (
        'decoder = "detr"',
        {
            "pred_logits": np.log(floats([[[0.05, 0.8, 0.15], [0.6, 0.1, 0.3], [0.05, 0.05, 0.9]]])) + 3,
            "pred_boxes": NORMALISED_CENTRES,
        },
    ),
    "rf-detr": ('decoder = "detr"', {"dets": NORMALISED_CENTRES, "labels": LOGITS}),
    "rf-detr with an unused class": (
        'decoder = "detr"',
        {"dets": NORMALISED_CENTRES, "labels": np.concatenate([LOGITS, np.full((1, 3, 1), 9, np.float32)], axis=2)},
    ),
    "sigmoid by the spec": (
        'decoder = "detr"\nactivation = "sigmoid"',
        {
            "pred_logits": np.concatenate([LOGITS, np.full((1, 3, 1), 9, np.float32)], axis=2),
            "pred_boxes": NORMALISED_CENTRES,
        },
    ),
    "detr with probabilities": (
        'decoder = "detr"\nactivation = "none"\norder = ["logits", "boxes", "unused"]',
        {"0": PROBABILITIES, "1": NORMALISED_CENTRES, "2": PROBABILITIES * 0},
    ),
    "detr in one output": (
        'decoder = "detr"',
        {"output0": np.concatenate([NORMALISED_CENTRES, PROBABILITIES], axis=2)},
    ),
    "detr decoded": ('decoder = "detr"', {"labels": CLASSES, "boxes": PIXELS, "scores": SCORES}),
    "detr decoded, from 0 to 1": (
        'decoder = "detr"\ncoordinates = "normalised"',
        {"labels": CLASSES, "boxes": PIXELS / floats([WIDTH, HEIGHT, WIDTH, HEIGHT]), "scores": SCORES},
    ),
    "tensorflow": (
        'decoder = "tf"',
        {
            "detection_anchor_indices": floats([[7, 8, 9]]),
            "detection_boxes": NORMALISED_YXYX,
            "detection_classes": CLASSES.astype(np.float32),
            "detection_multiclass_scores": floats([[[0, 0, 0, 1]] * 3]),
            "detection_scores": SURPLUS_SCORES,
            "num_detections": floats([2]),
            "raw_detection_boxes": NORMALISED_YXYX / 2,
            "raw_detection_scores": floats([[[0, 1]] * 3]),
        },
    ),
    "ssd": (
        'decoder = "ssd"',
        {
            "boxes": NORMALISED_YXYX,
            "scores": SURPLUS_SCORES,
            "classes": CLASSES.astype(np.float32),
            "count": np.array([[2]], dtype=np.int32),
        },
    ),
    "tensorflow lite": (
        'decoder = "ssd"',
        {
            "TFLite_Detection_PostProcess": NORMALISED_YXYX,
            "TFLite_Detection_PostProcess:1": CLASSES.astype(np.float32),
            "TFLite_Detection_PostProcess:2": SURPLUS_SCORES,
            "TFLite_Detection_PostProcess:3": floats([2]),
        },
    ),
    "ssd in the order of the spec": (
        'decoder = "ssd"\norder = ["scores", "boxes", "count", "classes"]',
        {"out:1": SURPLUS_SCORES, "out:3": NORMALISED_YXYX, "out:0": floats([2]), "out:2": CLASSES.astype(np.float32)},
    ),
    "ssd in pixels": (
        'decoder = "ssd"\ncoordinates = "pixels"',
        {"boxes": PIXELS[..., [1, 0, 3, 2]], "scores": SCORES, "classes": CLASSES},
    ),
    "torchvision": (
        'decoder = "torchvision"',
        {"boxes": PIXELS[0], "scores": SCORES[0], "labels": CLASSES[0]},
    ),
    "torchvision from 0 to 1": (
        'decoder = "torchvision"\ncoordinates = "normalised"',
        {"bboxes": PIXELS / floats([WIDTH, HEIGHT, WIDTH, HEIGHT]), "labels": CLASSES, "scores": SCORES},
    ),
}


def assert_equal(found: tuple[Detection, ...], expected: tuple[Detection, ...]) -> None:
    assert [detection.label for detection in found] == [detection.label for detection in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-3)
        assert one.box == pytest.approx(other.box, abs=0.5)


@pytest.mark.parametrize("form", FORMS)
def test_outputs_of_each_form_become_the_boxes_computed_by_hand(tmp_path: Path, form: str) -> None:
    output, outputs = FORMS[form]
    model = load_net(tmp_path, constant_net(outputs, image()), spec(output))
    (found,) = model.infer([picture()])
    assert_equal(found, (CENTRED, LEFT))


@pytest.mark.parametrize(
    ("place", "expected"), [("centre", (96.0, 16.0, 160.0, 48.0)), ("corner", (96.0, 48.0, 160.0, 64.0))]
)
def test_boxes_are_mapped_back_from_a_letterbox(tmp_path: Path, place: str, expected: tuple[float, ...]) -> None:
    """The picture of 256 x 64 fills 128 x 32 pixels of the tensor, which start in row 16 or in row 0."""
    letterbox = f'resize = "letterbox"\nplace = "{place}"'
    net = constant_net({"output0": END2END_ROWS[:, :1]}, image())
    model = load_net(tmp_path, net, spec('decoder = "yolo_end2end"', letterbox))
    (found,) = model.infer([picture(256, 64)])
    assert_equal(found, (Detection("b", 0.8, expected),))  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [2, "n"])
@pytest.mark.parametrize(
    ("decoder", "outputs"),
    [
        ("yolov5", {"out": np.concatenate([YOLOV5_ROWS, YOLOV5_ROWS[:, ::-1] * 0])}),
        ("yolov8", {"out": np.concatenate([YOLOV8_ROWS, YOLOV8_ROWS * 0]).transpose(0, 2, 1).copy()}),
        ("yolo_end2end", {"out": np.concatenate([END2END_ROWS, END2END_ROWS * 0])}),
        (
            "detr",
            {"logits": np.concatenate([LOGITS, LOGITS * 0 - 5]), "boxes": np.concatenate([NORMALISED_CENTRES] * 2)},
        ),
        (
            "ssd",
            {
                "boxes": np.concatenate([NORMALISED_YXYX] * 2),
                "scores": np.concatenate([SCORES] * 2),
                "classes": np.concatenate([CLASSES] * 2),
                "count": floats([2, 0]),
            },
        ),
    ],
)
def test_pictures_of_a_batch_are_decoded_separately(
    tmp_path: Path, decoder: str, outputs: Outputs, batch: int | str
) -> None:
    net = constant_net(outputs, image(batch, 3, HEIGHT, WIDTH))
    model = load_net(tmp_path, net, spec(f'decoder = "{decoder}"', "batch = 2"))
    first, second = model.infer([picture(), picture()])
    assert_equal(first, (CENTRED, LEFT))
    assert second == ()


@pytest.mark.parametrize(("dtype", "batch"), [(TensorProto.INT64, 1), (TensorProto.INT64, "n"), (TensorProto.FLOAT, 1)])
def test_orig_target_sizes_are_given_as_width_and_height(tmp_path: Path, dtype: int, batch: int | str) -> None:
    """The net multiplies its boxes from 0 to 1 by the second input twice, as RT-DETR's and D-FINE's exports do."""
    fractions = PIXELS / floats([WIDTH, HEIGHT, WIDTH, HEIGHT])
    nodes = [
        helper.make_node("Cast", ["orig_target_sizes"], ["sizes"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["sizes", "sizes"], ["scale"], axis=1),
        helper.make_node("Mul", ["fractions", "scale"], ["boxes"]),
        helper.make_node("Identity", ["labels value"], ["labels"]),
        helper.make_node("Identity", ["scores value"], ["scores"]),
    ]
    net = build_net(
        nodes,
        {"fractions": fractions, "labels value": CLASSES, "scores value": SCORES},
        {"labels": CLASSES, "boxes": PIXELS, "scores": SCORES},
        image(batch, 3, HEIGHT, WIDTH),
        image_input(batch, 2, dtype=dtype, name="orig_target_sizes"),
    )
    (found,) = load_net(tmp_path, net, spec('decoder = "detr"')).infer([picture()])
    assert_equal(found, (CENTRED, LEFT))


@pytest.mark.parametrize(("mask", "pixels"), [((1, 64, 64), 64 * 64), (("n", "h", "w"), HEIGHT * WIDTH)])
def test_a_pixel_mask_is_filled_with_ones(tmp_path: Path, mask: tuple[int | str, ...], pixels: int) -> None:
    """The net's only score is the mask's sum divided by its number of pixels."""
    nodes = [
        helper.make_node("Cast", ["pixel_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["mask"], ["sum"], keepdims=0),
        helper.make_node("Div", ["sum", "pixels"], ["share"]),
        helper.make_node("Reshape", ["share", "shape"], ["scores"]),
        helper.make_node("Identity", ["boxes value"], ["boxes"]),
        helper.make_node("Identity", ["labels value"], ["labels"]),
    ]
    net = build_net(
        nodes,
        {
            "pixels": floats(pixels),
            "shape": np.array([1, 1], dtype=np.int64),
            "boxes value": PIXELS[:, :1],
            "labels value": CLASSES[:, :1],
        },
        {"boxes": PIXELS[:, :1], "labels": CLASSES[:, :1], "scores": SCORES[:, :1]},
        image(),
        image_input(*mask, dtype=TensorProto.INT64, name="pixel_mask"),
    )
    (found,) = load_net(tmp_path, net, spec('decoder = "detr"')).infer([picture()])
    assert_equal(found, (Detection("b", 1.0, CENTRED.box),))


def test_a_query_of_detr_may_have_two_classes(tmp_path: Path) -> None:
    """The logistic function of ln 3 is 0.75."""
    logits = floats([[[LN_9, LN_3], [-LN_9, -LN_9]]])
    net = constant_net({"logits": logits, "boxes": NORMALISED_CENTRES[:, :2]}, image())
    (found,) = load_net(tmp_path, net, spec('decoder = "detr"')).infer([picture()])
    assert_equal(found, (Detection("a", 0.9, CENTRED.box), Detection("b", 0.75, CENTRED.box)))


def test_more_boxes_are_not_mistaken_for_logits_of_four_classes(tmp_path: Path) -> None:
    outputs: Outputs = {
        "pred_boxes": NORMALISED_CENTRES,
        "encoder_boxes": NORMALISED_CENTRES / 2,
        "output": np.concatenate([LOGITS, np.full((1, 3, 2), -9, np.float32)], axis=2),
    }
    model = load_net(tmp_path, constant_net(outputs, image()), spec('decoder = "detr"', labels='["a", "b", "c", "d"]'))
    (found,) = model.infer([picture()])
    assert_equal(found, (CENTRED, LEFT))


@pytest.mark.parametrize(
    ("decoder", "outputs", "reason"),
    [
        ("yolox", {"out": YOLOV8_ROWS.transpose(0, 2, 1).copy()}, r"out \(1, 6, 5\) float32.*needs \(batch, 168, 7\).*fit 'yolov8'\."),
        ("yolov8", {"out": YOLOV5_ROWS}, r"\(batch, 6, cells\) for 2 labels, or its transpose.*fit 'yolov5'"),
        ("yolov8", {"out": END2END_ROWS[:, :, :5]}, r"Check the spec's decoder, strides, size and labels\.$"),
        ("yolo_end2end", {"out": YOLOV5_ROWS}, r"\(batch, detections, 6\)"),
        ("detr", {"logits": floats([[[0] * 5] * 3]), "boxes": PIXELS}, "logits for 2 classes.*they are for 5"),
        ("ssd", {"1": PIXELS, "2": SCORES, "3": CLASSES.astype(np.float32)}, r"order = \['boxes', 'classes'"),
        ("ssd", {"boxes": PIXELS, "scores": SCORES, "classes": CLASSES, "count": floats([1, 1])}, "one count"),
        ("torchvision", {"out": YOLOV5_ROWS}, "boxes with four columns"),
    ],
)  # fmt: skip
def test_outputs_of_another_form_are_refused_with_what_they_fit(
    tmp_path: Path, decoder: str, outputs: Outputs, reason: str
) -> None:
    model = load_net(tmp_path, constant_net(outputs, image()), spec(f'decoder = "{decoder}"'))
    with pytest.raises(ModelError, match=reason) as refused:
        model.infer([picture()])
    assert refused.value.code == "model_refused"


def test_an_order_of_another_number_of_outputs_is_refused(tmp_path: Path) -> None:
    outputs: Outputs = {"1": PIXELS, "2": SCORES, "3": CLASSES}
    model = load_net(tmp_path, constant_net(outputs, image()), spec('decoder = "ssd"\norder = ["boxes", "scores"]'))
    with pytest.raises(ModelError, match="the 2 outputs in the spec's `order`"):
        model.infer([picture()])


def test_outputs_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    outputs: Outputs = {"names": np.array([b"x"], dtype=object), "output0": END2END_ROWS}
    model = load_net(tmp_path, constant_net(outputs, image()), spec('decoder = "yolo_end2end"'))
    (found,) = model.infer([picture()])
    assert_equal(found, (CENTRED, LEFT))
    only_text = constant_net({"names": outputs["names"]}, image())
    with pytest.raises(ModelError, match="returns no tensor of numbers"):
        load_net(tmp_path, only_text, spec('decoder = "yolo_end2end"'))
