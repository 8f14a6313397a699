"""`vidflow models check`: what it reports, the picture that it draws, and the spec that it writes. The command runs in this process."""

from __future__ import annotations

import hashlib
import re
import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tests.onnx_nets import build_net, constant_net, image_input, with_metadata

from vidflow.commands.check import CheckOptions, check_model
from vidflow.domain.detections import InferenceError
from vidflow.domain.errors import ModelError, ParameterError, SourceError
from vidflow.infra.models import registry

HEIGHT, WIDTH, CELLS = 64, 128, 8 * 16 + 4 * 8 + 2 * 4
YELLOW, BLUE = (255, 212, 0), (0, 200, 255)
ULTRALYTICS = {"task": "detect", "names": "{0: 'cat', 1: 'dog'}", "imgsz": "[64, 128]"}
V8 = np.zeros((1, 6, CELLS), dtype=np.float32)
V8[0, :, 0] = [64, 32, 32, 16, 0.25, 0.75]
V8[0, :, 1] = [16, 32, 32, 64, 0.5, 0.25]
"""A dog of 0.75 at (48, 24, 80, 40), and a cat of 0.5 at (0, 0, 32, 64), in pixels of the tensor."""
COLOUR = 90


def write(folder: Path, net: onnx.ModelProto, name: str = "net.onnx") -> str:
    (folder / name).write_bytes(net.SerializeToString())
    return str(folder / name)


@pytest.fixture
def net(tmp_path: Path) -> str:
    return write(tmp_path, with_metadata(constant_net({"output0": V8}, image_input(1, 3, HEIGHT, WIDTH)), ULTRALYTICS))


def encode(path: Path, pixels: NDArray[np.uint8], codec: str, pixel_format: str) -> str:
    """Write an RGB picture in this codec."""
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.height, encoder.width = pixels.shape[:2]
    encoder.pix_fmt, encoder.time_base = pixel_format, Fraction(1)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pixel_format)
    path.write_bytes(b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)]))
    return str(path)


def grey(height: int = 2 * HEIGHT, width: int = 2 * WIDTH) -> NDArray[np.uint8]:
    return np.full((height, width, 3), COLOUR, dtype=np.uint8)


def decode_png(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return np.asarray(next(container.decode(video=0)).to_ndarray(format="rgb24"), dtype=np.uint8)


def report(**options: Any) -> str:
    return "\n".join(check_model(CheckOptions(**options)))


def test_the_report_has_the_family_each_value_with_its_reason_and_the_speed(net: str) -> None:
    lines = report(model=net)
    assert lines.startswith(f"{net}: YOLO (v8, v9, 11 or 12)\n")
    for expected in (
        r"^inputs +'image' float \[1, 3, 64, 128\]$", rf"^outputs +'output0' float \[1, 6, {CELLS}\]$",
        r"^labels +2: cat, dog \(`names` in the file's metadata\)$", r"^input\.size +\[64, 128\] \(the shape of input 'image'\)$",
        r"^input\.normalise +unit \(as Ultralytics prepares pictures\)$", r"^output\.decoder +yolov8 \(one output \[batch, 6, cells\]",
        r"^frame +generated, 1280 x 720; detections: 2$", r"^speed +1 thread, batch 1: [\d.]+ ms a frame, [\d.e+]+ frames/s$",
    ):  # fmt: skip
        assert re.search(expected, lines, re.MULTILINE), expected
    assert "warning" not in lines


@pytest.mark.parametrize(("name", "codec", "pixel_format"), [("a.png", "png", "rgb24"), ("a.jpg", "mjpeg", "yuvj444p")])
def test_a_picture_is_written_with_the_boxes_and_numbers_of_the_list(
    tmp_path: Path, net: str, name: str, codec: str, pixel_format: str
) -> None:
    picture = encode(tmp_path / name, grey(), codec, pixel_format)
    lines = report(model=net, image=picture)
    target = tmp_path / "a.detections.png"
    assert f"frame               {picture}, 256 x 128; detections: 2\n" in lines
    assert "\n1                   dog 0.75 (96, 48, 160, 80)\n2                   cat 0.50 (0, 0, 64, 128)\n" in lines
    assert f"\npicture             {target}, with the numbers above\n" in lines
    pixels = decode_png(target)
    assert pixels.shape == (128, 256, 3)
    dog, cat = BLUE, YELLOW  # the weakest is drawn first
    edges = {(48, 130): dog, (79, 130): dog, (60, 96): dog, (60, 159): dog, (127, 30): cat, (60, 0): cat, (60, 63): cat}
    assert {place: tuple(int(value) for value in pixels[place]) for place in edges} == edges
    assert np.abs(pixels[10, 200].astype(int) - COLOUR).max() <= 2
    assert (pixels[50:64, 98:106] == 0).all(axis=2).any()  # the number, in black


def test_the_first_frame_of_a_video_is_taken(net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "640 x 272; detections: 2" in report(model=net, image="sample:bikes")
    assert decode_png(tmp_path / "bikes.detections.png").shape == (272, 640, 3)


def test_boxes_at_the_edges_and_more_of_them_than_digits_are_drawn(tmp_path: Path) -> None:
    rows = np.zeros((1, 300, 6), dtype=np.float32)
    rows[0] = [[95.9, 63.9, 96, 64, 0.9, 0]] * 150 + [[32, 0, 32.1, 0.1, 0.8, 0]] * 150
    net = with_metadata(constant_net({"output0": rows}, image_input(1, 3, HEIGHT, WIDTH)), ULTRALYTICS)
    picture = encode(tmp_path / "a.png", grey(16, 16), "png", "rgb24")
    assert "\n300  " in report(model=write(tmp_path, net), image=picture)
    assert decode_png(tmp_path / "a.detections.png").shape == (16, 16, 3)


def test_the_spec_that_is_written_gives_the_same_model(tmp_path: Path, net: str) -> None:
    lines = report(model=net, write_spec=True)
    assert f"written             {tmp_path / 'net.toml'}\n" in lines
    table = tomllib.loads((tmp_path / "net.toml").read_text())
    assert table["sha256"] == hashlib.sha256(Path(net).read_bytes()).hexdigest()
    bare, written = registry.resolve(net, any_onnx=True), registry.resolve(str(tmp_path / "net.toml"), any_onnx=True)
    assert written.labels == bare.labels == ("cat", "dog")
    assert (written.spec.input, written.spec.output) == (bare.spec.input, bare.spec.output)
    assert "has a spec" in report(model=str(tmp_path / "net.toml"))


@pytest.mark.parametrize("name", ["net.toml", "net.names"])
def test_no_file_is_replaced_by_the_spec(tmp_path: Path, net: str, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ParameterError, match=rf"{name} exists"):
        report(model=net, write_spec=True)
    assert (tmp_path / name).read_text() == "mine"
    assert not {"net.toml", "net.names"} - {name} & {path.name for path in tmp_path.iterdir()}


def test_labels_of_a_file_are_written_into_the_spec(tmp_path: Path) -> None:
    net = write(tmp_path, constant_net({"output0": V8}, image_input(1, 3, HEIGHT, WIDTH)))
    (tmp_path / "NAMES.txt").write_text("Katze\nHund\n")
    lines = report(model=net, labels_file=str(tmp_path / "NAMES.txt"), write_spec=True)
    assert lines.startswith(f"{net}: YOLO")
    assert "labels              2: Katze, Hund (the names that were given)" in lines
    assert registry.resolve(str(tmp_path / "net.toml"), any_onnx=True).labels == ("Katze", "Hund")


def test_a_model_with_a_spec_has_none_written(tmp_path: Path, net: str) -> None:
    report(model=net, write_spec=True)
    with pytest.raises(ParameterError, match="has a spec, which --write-spec does not replace"):
        report(model=str(tmp_path / "net.toml"), write_spec=True)


def test_a_spec_that_scales_an_input_of_bytes_is_warned_of(tmp_path: Path) -> None:
    image = image_input(1, 3, HEIGHT, WIDTH, dtype=TensorProto.UINT8)
    write(tmp_path, constant_net({"output0": V8}, image))
    spec = """
kind = "onnx"
file = "net.onnx"
labels = ["a", "b"]
[input]
size = [64, 128]
normalise = "{}"
[output]
decoder = "yolov8"
"""
    (tmp_path / "net.toml").write_text(spec.format("unit"))
    assert "warning             the input is uint8, and the spec multiplies pixels by 0.003922" in report(
        model=str(tmp_path / "net.toml")
    )
    (tmp_path / "net.toml").write_text(spec.format("none"))
    assert "warning" not in report(model=str(tmp_path / "net.toml"))


def test_an_open_batch_is_measured_with_several_sizes(tmp_path: Path) -> None:
    image = image_input("batch", 3, HEIGHT, WIDTH)
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Reshape", ["mean", "shape"], ["flat"]),
        helper.make_node("Mul", ["flat", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "value"], ["output0"]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "shape": np.array([-1, 1, 1], np.int64),
        "zero": np.zeros(1, np.float32),
        "value": V8,
    }
    net = with_metadata(build_net(nodes, constants, {"output0": V8}, image), ULTRALYTICS)
    net.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    assert re.findall(r"1 thread, batch (\d+): [\d.]+ ms", report(model=write(tmp_path, net))) == ["1", "4", "16"]


def test_a_batch_that_the_model_cannot_take_is_reported(tmp_path: Path) -> None:
    net = with_metadata(constant_net({"output0": V8}, image_input("batch", 3, HEIGHT, WIDTH)), ULTRALYTICS)
    lines = report(model=write(tmp_path, net))
    assert "1 thread, batch 4: refused (The model returned results for 1 of 4 pictures" in lines
    assert "1 thread, batch 16" not in lines


def test_outputs_beyond_the_labels_end_the_check_with_the_cause(tmp_path: Path) -> None:
    rows = np.array([[[48, 24, 80, 40, 0.75, 7]] * 300], dtype=np.float32)
    net = with_metadata(constant_net({"output0": rows}, image_input(1, 3, HEIGHT, WIDTH)), ULTRALYTICS)
    with pytest.raises(InferenceError, match="returned class 7 but has only 2 labels"):
        report(model=write(tmp_path, net))


def test_only_onnx_models_are_checked() -> None:
    with pytest.raises(ParameterError, match="vidflow models show motion"):
        report(model="motion")
    with pytest.raises(ModelError, match="Unknown model 'none'"):
        report(model="none")


@pytest.mark.parametrize(
    "content", [b"\xff\xd8\xff" + b"\0" * 100, b"\x89PNG\r\n\x1a\n" + b"\0" * 100, b"plain text", b""]
)
def test_a_file_that_is_no_picture_is_refused_with_its_name(tmp_path: Path, net: str, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(SourceError, match=r"a\.jpg"):
        report(model=net, image=str(tmp_path / "a.jpg"))
    assert not (tmp_path / "a.detections.png").exists()


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path, net: str) -> None:
    picture = Path(encode(tmp_path / "a.png", grey(), "png", "rgb24"))
    content = bytearray(picture.read_bytes())
    content[16:24] = (60_000).to_bytes(4) + (60_000).to_bytes(4)
    picture.write_bytes(content)
    with pytest.raises(SourceError, match="more than"):
        report(model=net, image=str(picture))


def test_a_missing_picture_is_refused(net: str) -> None:
    with pytest.raises(SourceError, match=r"none\.jpg is not a file"):
        report(model=net, image="none.jpg")
