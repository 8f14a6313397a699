"""Inputs of ONNX models: which types, layouts and sizes are filled, and the reasons for which others are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto, helper
from tests.onnx_nets import build_net, constant_net, floats, image_input, load_net
from tests.pictures import FramePicture, picture_of

from vidflow.domain.detections import Detection
from vidflow.domain.errors import ModelError
from vidflow.infra.models import registry

HEIGHT, WIDTH = 32, 64
ROW, COLUMN = 5, 40
COLOUR = (204, 102, 51)
"""0.8, 0.4 and 0.2 of 255."""
BOXES = floats([[[0, 0, 8, 8], [8, 8, 16, 16], [16, 16, 24, 24]]])
LABELS = np.array([[0, 1, 2]], dtype=np.int64)


def spec(more_input: str = "", size: tuple[int, int] = (HEIGHT, WIDTH)) -> str:
    return (
        'labels = ["red", "green", "blue"]\n[output]\ndecoder = "torchvision"\n[thresholds]\nscore = 0.05\n'
        f"[input]\nsize = {list(size)}\n{more_input}"
    )


def pixel_net(value: ValueInfoProto, layout: str, scale: float) -> onnx.ModelProto:
    """Return a net whose scores are the three channels of one pixel, multiplied by `scale`."""
    height, width, channel = {"nchw": (2, 3, 1), "nhwc": (1, 2, 3), "chw": (1, 2, 0), "hwc": (0, 1, 2)}[layout]
    nodes = [
        helper.make_node("Cast", [value.name], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["pixels", "from", "to", "axes"], ["pixel"]),
        helper.make_node("Reshape", ["pixel", "shape"], ["channels"]),
        helper.make_node("Mul", ["channels", "scale"], ["scores"]),
        helper.make_node("Identity", ["boxes value"], ["boxes"]),
        helper.make_node("Identity", ["labels value"], ["labels"]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "from": np.array([ROW, COLUMN, 0], dtype=np.int64),
        "to": np.array([ROW + 1, COLUMN + 1, 3], dtype=np.int64),
        "axes": np.array([height, width, channel], dtype=np.int64),
        "shape": np.array([1, 3], dtype=np.int64),
        "scale": floats(scale),
        "boxes value": BOXES,
        "labels value": LABELS,
    }
    outputs: dict[str, NDArray[Any]] = {"boxes": BOXES, "labels": LABELS, "scores": floats([[0, 0, 0]])}
    return build_net(nodes, constants, outputs, value)


def picture() -> FramePicture:
    """Return a black picture with one pixel of the colour."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[ROW, COLUMN] = COLOUR
    return picture_of(pixels)


FLOAT, HALF, BYTE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8


@pytest.mark.parametrize(
    ("shape", "layout", "more_input"),
    [
        ((1, 3, HEIGHT, WIDTH), "nchw", ""),
        ((1, HEIGHT, WIDTH, 3), "nhwc", ""),
        (("n", 3, "h", "w"), "nchw", ""),
        (("n", "h", "w", 3), "nhwc", ""),
        (("n", "c", "h", "w"), "nchw", ""),
        (("n", "h", "w", "c"), "nhwc", 'layout = "nhwc"'),
        ((None, None, None, None), "nhwc", 'layout = "nhwc"'),
        ((3, HEIGHT, WIDTH), "chw", ""),
        ((HEIGHT, WIDTH, 3), "hwc", ""),
    ],
)
@pytest.mark.parametrize(
    ("dtype", "normalise", "scale"),
    [(FLOAT, "unit", 1.0), (HALF, "unit", 1.0), (BYTE, "none", 1 / 255), (FLOAT, "none", 1 / 255)],
)
def test_the_input_is_filled_in_its_type_and_layout(
    tmp_path: Path,
    shape: tuple[int | str | None, ...],
    layout: str,
    more_input: str,
    dtype: int,
    normalise: str,
    scale: float,
) -> None:
    value = helper.make_tensor_value_info("image", dtype, shape)
    net = pixel_net(value, layout, scale)
    (found,) = load_net(tmp_path, net, spec(f'normalise = "{normalise}"\n{more_input}')).infer([picture()])
    assert [(d.label, d.box) for d in found] == [
        ("red", (0, 0, 8, 8)),
        ("green", (8, 8, 16, 16)),
        ("blue", (16, 16, 24, 24)),
    ]
    assert [d.score for d in found] == pytest.approx([0.8, 0.4, 0.2], abs=1e-3)


def outputs_net(*inputs: ValueInfoProto) -> onnx.ModelProto:
    return constant_net({"boxes": BOXES, "labels": LABELS, "scores": floats([[0.9, 0.8, 0.7]])}, *inputs)


SIZES = image_input(1, 2, dtype=TensorProto.INT64, name="orig_target_sizes")


@pytest.mark.parametrize(
    ("inputs", "more_input", "reason"),
    [
        ([image_input(1, 3, HEIGHT, WIDTH, dtype=TensorProto.INT8)], "",
         r"'image' \(tensor\(int8\) \[1, 3, 32, 64\]\) of .*net.toml has another type than tensor\(float\), tensor\(float16\)"),
        ([image_input(1, 1, HEIGHT, WIDTH)], "", "has no axis of 3 channels"),
        ([image_input(1, HEIGHT, WIDTH, 4)], "", "has no axis of 3 channels"),
        ([image_input(1, 3, HEIGHT, WIDTH)], 'layout = "nhwc"', r"is not NHWC, as \[input\] layout says"),
        ([image_input(1, 3)], "", "has 2 axes"),
        ([image_input(1, 3, HEIGHT, WIDTH, 1)], "", "has 5 axes"),
        ([image_input(1, 3, WIDTH, HEIGHT)], "", r"of height 64 and width 32, the spec's size is \[32, 64\]. Correct \[input\] size"),
        ([image_input(1, WIDTH, HEIGHT, 3)], "", r"of height 64 and width 32, the spec's size is \[32, 64\]. Correct \[input\] size"),
        ([image_input(1, 3, HEIGHT, WIDTH), image_input(1, 2, name="im_shape")], "",
         r"are 'image', 'im_shape'\. A model needs one input for pictures; besides it, only orig_target_sizes and pixel_mask"),
        ([SIZES], "", "are 'orig_target_sizes'"),
        ([], "", "are none"),
        ([image_input(1, 3, HEIGHT, WIDTH), image_input(1, 4, dtype=TensorProto.INT64, name="orig_target_sizes")], "",
         r"'orig_target_sizes' \(tensor\(int64\) \[1, 4\]\).*another type or shape"),
        ([image_input(1, 3, HEIGHT, WIDTH), image_input(1, 2, dtype=TensorProto.STRING, name="orig_target_sizes")], "",
         r"'orig_target_sizes' \(tensor\(string\) \[1, 2\]\).*another type or shape"),
        ([image_input(1, 3, HEIGHT, WIDTH), image_input(1, 64, dtype=TensorProto.INT64, name="pixel_mask")], "",
         r"'pixel_mask' \(tensor\(int64\) \[1, 64\]\).*another type or shape"),
    ],
)  # fmt: skip
def test_an_input_that_cannot_be_filled_is_refused_with_its_reason(
    tmp_path: Path, inputs: list[ValueInfoProto], more_input: str, reason: str
) -> None:
    with pytest.raises(ModelError, match=reason) as refused:
        load_net(tmp_path, outputs_net(*inputs), spec(more_input))
    assert refused.value.code == "model_refused"


def test_the_runtimes_reason_for_a_refusal_is_whole(tmp_path: Path) -> None:
    net = outputs_net(image_input(1, 3, HEIGHT, WIDTH))
    net.opset_import[0].version = 99
    with pytest.raises(ModelError) as refused:
        load_net(tmp_path, net, spec())
    assert refused.value.code == "model_refused"
    assert "onnxruntime rejects it (ONNX Runtime only *guarantees*" in refused.value.message
    assert "Opset 99 is under development" in refused.value.message
    assert "official support for domain ai.onnx is till opset" in refused.value.message


def test_an_ir_version_that_is_too_new_is_named(tmp_path: Path) -> None:
    net = outputs_net(image_input(1, 3, HEIGHT, WIDTH))
    net.ir_version = 99
    with pytest.raises(
        ModelError, match=r"rejects it \(Unsupported model IR version: 99, max supported IR version: \d+\)\."
    ):
        load_net(tmp_path, net, spec())


def test_an_operator_of_another_runtime_is_named(tmp_path: Path) -> None:
    net = outputs_net(image_input(1, 3, HEIGHT, WIDTH))
    net.graph.node.append(helper.make_node("EfficientNMS_TRT", ["boxes"], ["more"], domain="TRT"))
    net.opset_import.append(helper.make_opsetid("TRT", 1))
    with pytest.raises(ModelError, match=r"TRT:EfficientNMS_TRT.* is not a registered function"):
        load_net(tmp_path, net, spec())


def test_long_names_do_not_make_long_refusals(tmp_path: Path) -> None:
    long = "n" * 100_000
    inputs = [image_input(*[long] * 4, name=f"{number}{long}") for number in range(20)]
    for net in (outputs_net(*inputs), outputs_net(image_input(*[long] * 50, name=long))):
        with pytest.raises(ModelError) as refused:
            load_net(tmp_path, net, spec())
        assert len(refused.value.message) < 3000
    outputs = {f"{number}{long}": BOXES[:, :, 0] for number in range(20)}
    model = load_net(tmp_path, constant_net(outputs, image_input(1, 3, HEIGHT, WIDTH)), spec())
    with pytest.raises(ModelError) as refused:
        model.infer([picture()])
    assert len(refused.value.message) < 3000


# --- the files of shared/cases


@pytest.fixture
def cases(shared: Path) -> Path:
    folder = shared / "cases/models"
    if not folder.is_dir():
        pytest.skip(f"no models at {folder}")
    return folder


def red_picture() -> FramePicture:
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[..., 0] = 255
    return picture_of(pixels)


@pytest.mark.parametrize("name", ["color", "m_fp16", "m_uint8_nhwc", "m_float_nhwc", "m_rtdetr2in"])
def test_the_variants_of_a_net_give_the_same_detections(cases: Path, name: str) -> None:
    """The scores are the means of the channels of a red picture. The boxes are constants for a quarter of its pixels."""
    (found,) = registry.load(registry.resolve(name, cases, keep_weights=True)).infer([red_picture()])
    assert found == (
        Detection("red", 1.0, (0.0, 0.0, 64.0, 64.0)),
        Detection("blue", 0.0, (0.0, 0.0, 64.0, 32.0)),
        Detection("green", 0.0, (0.0, 0.0, 32.0, 64.0)),
    )


def test_an_output_without_objectness_needs_its_own_decoder(cases: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"output0 \(1, 7, 21\).*fit 'yolov8'\."):
        registry.load(registry.resolve("m_yolov8", cases, keep_weights=True)).infer([red_picture()])
    (tmp_path / "m_yolov8.onnx").write_bytes((cases / "m_yolov8.onnx").read_bytes())
    text = (cases / "m_yolov8.toml").read_text().replace('"yolox"', '"yolov8"')
    (tmp_path / "m_yolov8.toml").write_text(text)
    (found,) = registry.load(registry.resolve("m_yolov8", tmp_path, keep_weights=True)).infer([red_picture()])
    assert found == (Detection("red", 1.0, (12.0, 22.0, 52.0, 42.0)),)


def test_an_opset_that_does_not_exist_yet_is_refused_with_its_number(cases: Path) -> None:
    with pytest.raises(ModelError, match=r"Opset 99 .* is till opset \d+"):
        registry.load(registry.resolve("m_opset99", cases, keep_weights=True))
