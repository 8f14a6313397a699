"""ONNX models: real weights on real frames, small models built here, and malicious ones."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.onnx_nets import build_net, image_input
from tests.pictures import FramePicture, picture_of, pictures

from vidflow.domain.detections import Detection, InferenceError
from vidflow.domain.errors import ModelError, ParameterError
from vidflow.domain.messages import Parameters
from vidflow.infra.models import registry
from vidflow.infra.models.model import Model
from vidflow.infra.models.onnx import open_session

FASTESTDET = """
kind = "onnx"
file = "FastestDet.onnx"
labels = "coco80.names"
[input]
size = [352, 352]
channels = "bgr"
scale = 0.00392156862745098
[output]
decoder = "fastestdet"
[thresholds]
score = 0.65
"""
TINY = """
kind = "onnx"
labels = ["__background__", "thing", "other"]
[input]
size = [32, 64]
batch = 1
[output]
decoder = "torchvision"
"""


@pytest.fixture(scope="module")
def yolox(shared: Path) -> Model:
    return registry.load(registry.resolve("yolox_nano", shared / "models", keep_weights=True))


def detect_on(model: Model, path: Path, *numbers: int) -> list[tuple[Detection, ...]]:
    return model.infer(list(pictures(path, numbers)))


def test_yolox_detects_two_bottles_with_the_known_score(yolox: Model, shared: Path) -> None:
    (detections,) = detect_on(yolox, shared / "videos/bottle-detection.mp4", 300)
    assert [(d.label, round(d.score, 2)) for d in detections] == [("bottle", 0.93), ("bottle", 0.93)]
    right, left = (d.box for d in detections)
    assert 500 < right[0] < right[2] < 580
    assert 280 < left[0] < left[2] < 350


def test_yolox_detects_a_person_who_comes_and_goes(yolox: Model, shared: Path) -> None:
    frames = detect_on(yolox, shared / "videos/one-by-one-person.mp4", 100, 300, 700)
    people = [[round(d.score, 2) for d in detections if d.label == "person"] for detections in frames]
    assert people == [[0.88], [0.9], []]


def test_yolox_detects_the_known_number_of_people_in_a_street(yolox: Model, shared: Path) -> None:
    frames = detect_on(yolox, shared / "videos/vtest.avi", *range(0, 795, 40))
    people = [sum(d.label == "person" for d in detections) for detections in frames]
    assert 5.7 < sum(people) / len(people) < 7.7


def test_the_filter_in_the_spec_changes_the_scores_and_the_digest(shared: Path, tmp_path: Path) -> None:
    for name in ("yolox_nano.onnx", "coco80.names"):
        shutil.copy(shared / "models" / name, tmp_path)
    text = (shared / "models/yolox_nano.toml").read_text()
    found: dict[str, tuple[Detection, ...]] = {}
    digests = {registry.resolve("yolox_nano", shared / "models").sha256}
    for resample in ("bilinear", "area", "bicubic"):
        (tmp_path / f"{resample}.toml").write_text(text.replace("[input]", f'[input]\nresample = "{resample}"'))
        bundle = registry.resolve(resample, tmp_path, keep_weights=True)
        digests.add(bundle.sha256)
        (found[resample],) = detect_on(registry.load(bundle), shared / "videos/bottle-detection.mp4", 300)
    assert len(digests) == 4
    assert len({tuple(d.score for d in detections) for detections in found.values()}) == 3
    for detections in found.values():
        assert [d.label for d in detections] == ["bottle", "bottle"]
        assert [d.score for d in detections] == pytest.approx([0.93, 0.93], abs=0.03)


def test_a_model_loaded_again_gives_the_same_detections(yolox: Model, shared: Path) -> None:
    clip = shared / "videos/vtest.avi"
    other = registry.load(registry.resolve("yolox_nano", shared / "models", keep_weights=True))
    assert detect_on(yolox, clip, 50, 60) == detect_on(other, clip, 50) + detect_on(other, clip, 60)


def test_scenario_parameters_set_the_threshold_and_the_labels(shared: Path) -> None:
    ref = registry.resolve("yolox_nano", shared / "models", keep_weights=True)
    clip = shared / "videos/one-by-one-person.mp4"
    (unfiltered,) = detect_on(registry.load(ref, Parameters(score_threshold=0.2)), clip, 100)
    (people,) = detect_on(registry.load(ref, Parameters(score_threshold=0.2, labels=("person",))), clip, 100)
    assert {d.label for d in unfiltered} > {"person"}
    assert people == tuple(d for d in unfiltered if d.label == "person")
    with pytest.raises(ParameterError, match="'persn'"):
        registry.load(ref, Parameters(labels=("persn",)))


def test_fastestdet_detects_the_bottles(shared: Path, tmp_path: Path) -> None:
    for name in ("FastestDet.onnx", "coco80.names"):
        (tmp_path / name).write_bytes((shared / "models" / name).read_bytes())
    (tmp_path / "fastest.toml").write_text(FASTESTDET)
    (detections,) = detect_on(
        registry.load(registry.resolve("fastest", tmp_path, keep_weights=True)),
        shared / "videos/bottle-detection.mp4",
        300,
    )
    assert [d.label for d in detections] == ["bottle", "bottle"]
    assert sorted(round(d.box[0], -2) for d in detections) == [300, 500]


# --- models built here


def tiny_net(batch: int | str = 1) -> onnx.ModelProto:
    """Return a net with three boxes. The score of the middle one is r / 255, where r is the red value of the first pixel."""
    boxes = np.array([[0, 0, 32, 16], [16, 8, 48, 24], [0, 0, 64, 32]], dtype=np.float32)
    constants = [
        numpy_helper.from_array(boxes, "boxes_value"),
        numpy_helper.from_array(np.array([1, 2, 0], dtype=np.int64), "labels_value"),
        numpy_helper.from_array(np.array([0.9, 0.0, 0.8], dtype=np.float32), "base"),
        numpy_helper.from_array(np.array([0.0, 1 / 255, 0.0], dtype=np.float32), "share"),
        numpy_helper.from_array(np.array(0, dtype=np.int64), "zero"),
    ]
    nodes = [
        helper.make_node("Reshape", ["image", "flat"], ["pixels"]),
        helper.make_node("Gather", ["pixels", "zero"], ["red"]),
        helper.make_node("Mul", ["red", "share"], ["red_score"]),
        helper.make_node("Add", ["base", "red_score"], ["scores"]),
        helper.make_node("Identity", ["boxes_value"], ["boxes"]),
        helper.make_node("Identity", ["labels_value"], ["labels"]),
    ]
    constants.append(numpy_helper.from_array(np.array([-1], dtype=np.int64), "flat"))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 32, 64])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [3, 4]),
            helper.make_tensor_value_info("labels", TensorProto.INT64, [3]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [3]),
        ],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def red(share: float, width: int = 128, height: int = 64) -> FramePicture:
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = round(255 * share)
    return picture_of(pixels)


@pytest.mark.parametrize("batch", [1, "n"])
def test_an_onnx_file_that_contains_its_spec_needs_no_other_file(tmp_path: Path, batch: int | str) -> None:
    net = tiny_net(batch)
    helper.set_model_props(net, {"vidflow": TINY})
    (tmp_path / "tiny.onnx").write_bytes(net.SerializeToString())
    model = registry.load(registry.resolve("tiny.onnx", tmp_path, keep_weights=True))
    bright, dark = model.infer([red(1.0), red(0.1)])
    assert bright == (
        Detection("other", 1.0, (32.0, 16.0, 96.0, 48.0)),
        Detection("thing", 0.9, (0.0, 0.0, 64.0, 32.0)),
    )
    assert dark == (Detection("thing", 0.9, (0.0, 0.0, 64.0, 32.0)),)
    assert registry.resolve("tiny.onnx", tmp_path).sha256 == hashlib.sha256(net.SerializeToString()).hexdigest()


def test_labels_of_any_script_name_detections_and_select_them(tmp_path: Path) -> None:
    names = ("__background__", "क्\u200dष", "\u3000自動\u00a0車")
    (tmp_path / "tiny.onnx").write_bytes(tiny_net().SerializeToString())
    (tmp_path / "tiny.names").write_text("\ufeff" + "\r\n".join(names))
    (tmp_path / "tiny.toml").write_text(
        TINY.replace('labels = ["__background__", "thing", "other"]', 'file = "tiny.onnx"\nlabels = "tiny.names"')
    )
    bundle = registry.resolve("tiny", tmp_path, keep_weights=True)
    for selected in (names[1], names[2]):
        model = registry.load(
            bundle, msgspec.json.decode(msgspec.json.encode(Parameters(labels=(selected,))), type=Parameters)
        )
        assert [detection.label for detection in model.infer([red(1.0)])[0]] == [selected]


def cells_net(batch: int | str) -> onnx.ModelProto:
    """Return a net with YOLOX's output for 16 x 32 pixels and one class. Each cell's values are taken from the first pixels."""
    graph = helper.make_graph(
        [helper.make_node("Slice", ["image", "from", "to", "axes"], ["corner"]),
         helper.make_node("Reshape", ["corner", "shape"], ["cells"])],
        "cells",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 16, 32])],
        [helper.make_tensor_value_info("cells", TensorProto.FLOAT, [batch, 8, 6])],
        [
            numpy_helper.from_array(np.array([0, 0, 0], dtype=np.int64), "from"),
            numpy_helper.from_array(np.array([3, 4, 4], dtype=np.int64), "to"),
            numpy_helper.from_array(np.array([1, 2, 3], dtype=np.int64), "axes"),
            numpy_helper.from_array(np.array([0, 8, 6], dtype=np.int64), "shape"),
        ],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


CELLS = """
kind = "onnx"
file = "cells.onnx"
labels = ["thing"]
[input]
size = [16, 32]
scale = 0.00392156862745098
batch = 3
[output]
decoder = "yolox"
strides = [8]
[thresholds]
score = 0.1
nms_iou = 1.0
"""


@pytest.mark.parametrize(("batch", "expected_batch"), [("n", 3), (1, 1), (4, 4)])
def test_pictures_are_split_into_batches_that_the_model_allows(
    tmp_path: Path, batch: int | str, expected_batch: int
) -> None:
    (tmp_path / "cells.onnx").write_bytes(cells_net(batch).SerializeToString())
    (tmp_path / "cells.toml").write_text(CELLS)
    model = registry.load(registry.resolve("cells", tmp_path, keep_weights=True))
    assert model.batch == expected_batch
    shades = [picture_of(np.full((16, 32, 3), shade, dtype=np.uint8)) for shade in (255, 0, 128, 255, 0)]
    results = model.infer(shades)
    scores = [[round(d.score, 2) for d in detections] for detections in results]
    assert scores == [[1.0] * 8, [], [0.25] * 8, [1.0] * 8, []]
    assert results == [model.infer([shade])[0] for shade in shades]


def test_a_model_whose_input_size_differs_from_its_spec_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cells.onnx").write_bytes(cells_net(1).SerializeToString())
    (tmp_path / "cells.toml").write_text(CELLS.replace("[16, 32]", "[32, 32]"))
    with pytest.raises(ModelError, match="Correct \\[input\\] size"):
        registry.load(registry.resolve("cells", tmp_path, keep_weights=True))


def test_outputs_that_do_not_fit_the_labels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cells.onnx").write_bytes(cells_net(1).SerializeToString())
    (tmp_path / "cells.toml").write_text(CELLS.replace('["thing"]', '["thing", "other"]'))
    model = registry.load(registry.resolve("cells", tmp_path, keep_weights=True))
    with pytest.raises(ModelError, match="Check the spec's decoder"):
        model.infer([picture_of(np.zeros((16, 32, 3), dtype=np.uint8))])


def test_the_weights_that_were_checked_are_loaded_even_if_the_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "cells.onnx").write_bytes(cells_net(1).SerializeToString())
    (tmp_path / "cells.toml").write_text(CELLS)
    ref = registry.resolve("cells", tmp_path, keep_weights=True)
    for path in (tmp_path / "cells.onnx", tmp_path / "cells.toml"):
        path.write_bytes(b"not a model")
    assert registry.load(ref).input_size == (32, 16)


@pytest.mark.parametrize("content", [b"not a model" * 12, b"\x08\x08"])
def test_damaged_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cells.onnx").write_bytes(content)
    (tmp_path / "cells.toml").write_text(CELLS)
    with pytest.raises(ModelError, match=r"onnxruntime rejects it|it is not an ONNX model") as refused:
        registry.load(registry.resolve("cells", tmp_path, keep_weights=True))
    assert refused.value.code == "model_refused"


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/hostname"])
def test_external_weights_are_never_read(tmp_path: Path, location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny_net()
    tensor = net.graph.initializer[0]
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    folder = tmp_path / "models"
    folder.mkdir()
    for path in (folder / "weights.bin", tmp_path / "weights.bin"):
        path.write_bytes(bytes(size))
    helper.set_model_props(net, {"vidflow": TINY})
    (folder / "tiny.onnx").write_bytes(net.SerializeToString())
    monkeypatch.chdir(folder)
    with pytest.raises(ModelError, match="one file"):
        registry.load(registry.resolve("tiny.onnx", folder, keep_weights=True))


def claim(*dims: int, content: bytes = b"") -> TensorProto:
    """Return weights that claim these lengths, whatever their content is."""
    return TensorProto(name="weights", data_type=TensorProto.FLOAT, dims=dims, raw_data=content)


def copies(*names: tuple[str, str]) -> list[onnx.NodeProto]:
    return [helper.make_node("Identity", [source], [target]) for source, target in names]


HOSTILE: dict[str, tuple[list[onnx.NodeProto], list[TensorProto], str]] = {
    "a loop": (copies(("a", "cells"), ("cells", "a")), [], "not acyclic"),
    "an output with two sources": (copies(("image", "cells"), ("image", "cells")), [], "Duplicate definition"),
    "weights of 4 TB": (copies(("weights", "cells")), [claim(2**40)], "declares a size of 4398046511104 bytes"),
    "weights of 2**65 bytes": (copies(("weights", "cells")), [claim(2**61, 4, content=b"1234")], "overflow"),
    "weights of a negative length": (copies(("weights", "cells")), [claim(-5, content=b"1234")], "Out of bounds"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_graph_is_refused_with_its_reason(tmp_path: Path, name: str) -> None:
    nodes, weights, reason = HOSTILE[name]
    (tmp_path / "cells.toml").write_text(CELLS)
    outputs = [helper.make_tensor_value_info("cells", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "net", [image_input(1, 3, 16, 32)], outputs, weights)
    net = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "cells.onnx").write_bytes(net.SerializeToString())
    with pytest.raises(ModelError, match=f"onnxruntime rejects it .*{reason}") as refused:
        registry.load(registry.resolve("cells", tmp_path, keep_weights=True))
    assert refused.value.code == "model_refused"


def test_a_loaded_model_does_not_keep_the_content_of_its_file() -> None:
    content = tiny_net().SerializeToString()
    before = sys.getrefcount(content)
    session = open_session(content, "tiny.onnx")
    assert session.get_inputs()
    assert sys.getrefcount(content) == before


@pytest.mark.parametrize("lengths", [[2**42], [2**33, 2**33]])
def test_a_net_that_asks_for_too_much_memory_fails_the_frame(tmp_path: Path, lengths: list[int]) -> None:
    nodes = [helper.make_node("ConstantOfShape", ["lengths"], ["cells"])]
    constants = {"lengths": np.array(lengths, dtype=np.int64)}
    net = build_net(nodes, constants, {"cells": np.zeros(1, dtype=np.float32)}, image_input(1, 3, 16, 32))
    (tmp_path / "cells.onnx").write_bytes(net.SerializeToString())
    (tmp_path / "cells.toml").write_text(CELLS)
    model = registry.load(registry.resolve("cells", tmp_path, keep_weights=True))
    with pytest.raises(InferenceError, match="onnxruntime failed on a frame"):
        model.infer([picture_of(np.zeros((16, 32, 3), dtype=np.uint8))])
