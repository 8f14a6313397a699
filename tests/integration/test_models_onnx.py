"""ONNX models with real weights on real frames, small ones made here, and hostile ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.pictures import FramePicture, picture_of, pictures

from vidflow.domain.detections import Detection
from vidflow.domain.errors import ModelError, ParameterError
from vidflow.domain.messages import Parameters
from vidflow.infra.models import registry
from vidflow.infra.models.model import Model

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
    return registry.load(registry.resolve("yolox_nano", shared / "models"))


def detect_on(model: Model, path: Path, *numbers: int) -> list[tuple[Detection, ...]]:
    return model.infer(list(pictures(path, numbers)))


def test_two_bottles_are_seen_at_their_known_score(yolox: Model, shared: Path) -> None:
    (seen,) = detect_on(yolox, shared / "videos/bottle-detection.mp4", 300)
    assert [(one.label, round(one.score, 2)) for one in seen] == [("bottle", 0.93), ("bottle", 0.93)]
    right, left = (one.box for one in seen)
    assert 500 < right[0] < right[2] < 580
    assert 280 < left[0] < left[2] < 350


def test_one_person_comes_and_goes(yolox: Model, shared: Path) -> None:
    seen = detect_on(yolox, shared / "videos/one-by-one-person.mp4", 100, 300, 700)
    people = [[round(one.score, 2) for one in frame if one.label == "person"] for frame in seen]
    assert people == [[0.88], [0.9], []]


def test_the_known_number_of_people_walks_through_the_street(yolox: Model, shared: Path) -> None:
    seen = detect_on(yolox, shared / "videos/vtest.avi", *range(0, 795, 40))
    people = [sum(one.label == "person" for one in frame) for frame in seen]
    assert 5.7 < sum(people) / len(people) < 7.7


def test_the_same_frames_give_the_same_detections_from_a_model_loaded_anew(yolox: Model, shared: Path) -> None:
    clip = shared / "videos/vtest.avi"
    other = registry.load(registry.resolve("yolox_nano", shared / "models"))
    assert detect_on(yolox, clip, 50, 60) == detect_on(other, clip, 50) + detect_on(other, clip, 60)


def test_a_scenario_sets_the_threshold_and_the_labels(shared: Path) -> None:
    ref = registry.resolve("yolox_nano", shared / "models")
    clip = shared / "videos/one-by-one-person.mp4"
    (all_seen,) = detect_on(registry.load(ref, Parameters(score_threshold=0.2)), clip, 100)
    (people,) = detect_on(registry.load(ref, Parameters(score_threshold=0.2, labels=("person",))), clip, 100)
    assert {one.label for one in all_seen} > {"person"}
    assert people == tuple(one for one in all_seen if one.label == "person")
    with pytest.raises(ParameterError, match="'persn'"):
        registry.load(ref, Parameters(labels=("persn",)))


def test_fastestdet_sees_the_bottles_too(shared: Path, tmp_path: Path) -> None:
    for name in ("FastestDet.onnx", "coco80.names"):
        (tmp_path / name).write_bytes((shared / "models" / name).read_bytes())
    (tmp_path / "fastest.toml").write_text(FASTESTDET)
    (seen,) = detect_on(
        registry.load(registry.resolve("fastest", tmp_path)), shared / "videos/bottle-detection.mp4", 300
    )
    assert [one.label for one in seen] == ["bottle", "bottle"]
    assert sorted(round(one.box[0], -2) for one in seen) == [300, 500]


# --- models made here


def tiny_net(batch: int | str = 1) -> onnx.ModelProto:
    """A net that reports, on a picture whose first pixel is red r, three boxes; the middle one's score is r / 255."""
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
        helper.make_node("Mul", ["red", "share"], ["more"]),
        helper.make_node("Add", ["base", "more"], ["scores"]),
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
def test_an_onnx_file_that_carries_its_spec_runs_by_itself(tmp_path: Path, batch: int | str) -> None:
    net = tiny_net(batch)
    helper.set_model_props(net, {"vidflow": TINY})
    (tmp_path / "tiny.onnx").write_bytes(net.SerializeToString())
    model = registry.load(registry.resolve("tiny.onnx", tmp_path))
    bright, dark = model.infer([red(1.0), red(0.1)])
    assert bright == (
        Detection("other", 1.0, (32.0, 16.0, 96.0, 48.0)),
        Detection("thing", 0.9, (0.0, 0.0, 64.0, 32.0)),
    )
    assert dark == (Detection("thing", 0.9, (0.0, 0.0, 64.0, 32.0)),)
    assert registry.resolve("tiny.onnx", tmp_path).sha256 == hashlib.sha256(net.SerializeToString()).hexdigest()


def cells_net(batch: int | str) -> onnx.ModelProto:
    """A net of YOLOX's form for 16 x 32 pixels and one class, which sees in each cell what its first pixels are."""
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


@pytest.mark.parametrize(("batch", "taken"), [("n", 3), (1, 1), (4, 4)])
def test_pictures_are_given_in_batches_as_the_model_allows(tmp_path: Path, batch: int | str, taken: int) -> None:
    (tmp_path / "cells.onnx").write_bytes(cells_net(batch).SerializeToString())
    (tmp_path / "cells.toml").write_text(CELLS)
    model = registry.load(registry.resolve("cells", tmp_path))
    assert model.batch == taken
    shades = [picture_of(np.full((16, 32, 3), shade, dtype=np.uint8)) for shade in (255, 0, 128, 255, 0)]
    seen = model.infer(shades)
    assert [[round(one.score, 2) for one in frame] for frame in seen] == [[1.0] * 8, [], [0.25] * 8, [1.0] * 8, []]
    assert seen == [model.infer([one])[0] for one in shades]


def test_a_model_of_another_size_than_its_spec_says_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cells.onnx").write_bytes(cells_net(1).SerializeToString())
    (tmp_path / "cells.toml").write_text(CELLS.replace("[16, 32]", "[32, 32]"))
    with pytest.raises(ModelError, match="correct \\[input\\] size"):
        registry.load(registry.resolve("cells", tmp_path))


def test_outputs_that_do_not_fit_the_labels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cells.onnx").write_bytes(cells_net(1).SerializeToString())
    (tmp_path / "cells.toml").write_text(CELLS.replace('["thing"]', '["thing", "more"]'))
    model = registry.load(registry.resolve("cells", tmp_path))
    with pytest.raises(ModelError, match="check the spec's decoder"):
        model.infer([picture_of(np.zeros((16, 32, 3), dtype=np.uint8))])


@pytest.mark.parametrize("content", [b"no model at all" * 9, b"\x08\x08"])
def test_damaged_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cells.onnx").write_bytes(content)
    (tmp_path / "cells.toml").write_text(CELLS)
    with pytest.raises(ModelError, match="onnxruntime refuses it") as refused:
        registry.load(registry.resolve("cells", tmp_path))
    assert refused.value.code == "model_refused"


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/hostname"])
def test_weights_in_other_files_are_never_read(tmp_path: Path, location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny_net()
    tensor = net.graph.initializer[0]
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    folder = tmp_path / "models"
    folder.mkdir()
    for place in (folder / "weights.bin", tmp_path / "weights.bin"):
        place.write_bytes(bytes(size))
    helper.set_model_props(net, {"vidflow": TINY})
    (folder / "tiny.onnx").write_bytes(net.SerializeToString())
    monkeypatch.chdir(folder)
    with pytest.raises(ModelError, match="one file"):
        registry.load(registry.resolve("tiny.onnx", folder))
