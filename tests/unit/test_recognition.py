"""Which spec is recognised from what an ONNX file says about itself, and which files are refused. No file is read."""

from __future__ import annotations

import tomllib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidflow.domain.errors import ModelError
from vidflow.infra.models.exporter_notes import parse_keypoint_names, parse_names, parse_size
from vidflow.infra.models.onnx_inputs import OTHER_INPUTS
from vidflow.infra.models.onnx_metadata import Graph, TensorInfo
from vidflow.infra.models.recognition import FILLED_INPUTS, Recognition, recognise
from vidflow.infra.models.spec import parse_spec

Shape = tuple[int | str | None, ...]
COCO_NAMES = str({number: f"class {number}" for number in range(80)})
ULTRALYTICS = {
    "description": "Ultralytics YOLO11n model trained on coco.yaml", "author": "Ultralytics", "task": "detect", "stride": "32",
    "license": "AGPL-3.0 License (https://ultralytics.com/license)", "imgsz": "[640, 640]", "names": COCO_NAMES,
}  # fmt: skip
CENTRED = {"resize": "letterbox", "place": "centre", "pad": 114, "channels": "rgb", "normalise": "unit"}
STRETCHED = {"resize": "stretch", "channels": "rgb", "normalise": "unit"}
IMAGENET = {"resize": "stretch", "channels": "rgb", "normalise": "imagenet"}


def graph(outputs: dict[str, Shape], picture: Shape = (1, 3, 640, 640), dtype: str = "float", **others: Shape) -> Graph:
    inputs = [
        TensorInfo("images", dtype, picture),
        *(TensorInfo(name, "int64", shape) for name, shape in others.items()),
    ]
    return Graph(tuple(inputs), tuple(TensorInfo(name, "float", shape) for name, shape in outputs.items()))


FORMS: dict[str, tuple[dict[str, str], Graph, dict[str, Any], dict[str, Any], str | int]] = {
    "YOLO11 of Ultralytics": (
        ULTRALYTICS, graph({"output0": (1, 84, 8400)}), {"size": [640, 640], **CENTRED}, {"decoder": "yolov8"}, 80,
    ),
    "YOLO11 with open axes": (
        ULTRALYTICS | {"imgsz": "[384, 640]"},
        graph({"output0": ("batch", 84, "anchors")}, ("batch", 3, "height", "width")),
        {"size": [384, 640], **CENTRED}, {"decoder": "yolov8"}, 80,
    ),
    "YOLOv8 of one class": (
        ULTRALYTICS | {"names": "{0: 'helmet'}"}, graph({"output0": (1, 5, 8400)}), {"size": [640, 640], **CENTRED},
        {"decoder": "yolov8"}, 1,
    ),
    "YOLOv8 without metadata": (
        {}, graph({"output0": (1, 84, 8400)}), {"size": [640, 640], **CENTRED}, {"decoder": "yolov8"}, "coco80",
    ),
    "YOLOv8, transposed": (
        {}, graph({"output0": (1, 8400, 84)}), {"size": [640, 640], **CENTRED}, {"decoder": "yolov8"}, "coco80",
    ),
    "YOLO26, or with NMS inside": (
        ULTRALYTICS, graph({"output0": (1, 300, 6)}), {"size": [640, 640], **CENTRED}, {"decoder": "yolo_end2end"}, 80,
    ),
    "YOLOv10 with open axes": (
        ULTRALYTICS, graph({"output0": ("batch", "detections", 6)}), {"size": [640, 640], **CENTRED},
        {"decoder": "yolo_end2end"}, 80,
    ),
    "YOLOv5": (
        {"stride": "32", "names": COCO_NAMES}, graph({"output0": (1, 25200, 85)}), {"size": [640, 640], **CENTRED},
        {"decoder": "yolov5"}, 80,
    ),
    "YOLOv5 at 1280 with four strides": (
        {}, graph({"output0": (1, 102000, 85)}, (1, 3, 1280, 1280)), {"size": [1280, 1280], **CENTRED}, {"decoder": "yolov5"},
        "coco80",
    ),
    "YOLOv5 with its raw maps": (
        {}, graph({"output": (1, 25200, 85), "339": (1, 3, 80, 80, 85)}), {"size": [640, 640], **CENTRED},
        {"decoder": "yolov5"}, "coco80",
    ),
    "YOLOv6": (
        {}, graph({"outputs": (1, 8400, 85)}), {"size": [640, 640], **CENTRED}, {"decoder": "yolov5"}, "coco80",
    ),
    "YOLOX": (
        {}, graph({"output": (1, 3549, 85)}, (1, 3, 416, 416)),
        {"size": [416, 416], "resize": "letterbox", "place": "corner", "pad": 114, "channels": "bgr", "normalise": "none"},
        {"decoder": "yolox", "strides": [8, 16, 32]}, "coco80",
    ),
    "RT-DETR of Ultralytics": (
        ULTRALYTICS | {"description": "Ultralytics rtdetr-l model"}, graph({"output0": (1, 300, 84)}),
        {"size": [640, 640], **STRETCHED}, {"decoder": "detr"}, 80,
    ),
    "RT-DETR of Hugging Face": (
        {}, graph({"logits": ("batch_size", 300, 80), "pred_boxes": ("batch_size", 300, 4)}, ("b", "c", "h", "w")),
        {"size": [640, 640], **STRETCHED}, {"decoder": "detr", "activation": "sigmoid"}, "coco80",
    ),
    "DETR of Hugging Face": (
        {}, graph({"logits": (1, 100, 92), "pred_boxes": (1, 100, 4)}, ("b", 3, "h", "w"), pixel_mask=("b", 64, 64)),
        {"size": [750, 1333], **IMAGENET}, {"decoder": "detr", "activation": "softmax"}, "coco91",
    ),
    "Deformable DETR of Hugging Face": (
        {}, graph({"logits": (1, 300, 91), "pred_boxes": (1, 300, 4)}, ("b", 3, "h", "w")),
        {"size": [750, 1333], **IMAGENET}, {"decoder": "detr", "activation": "sigmoid"}, "coco91",
    ),
    "LW-DETR of Hugging Face, which has 100 queries": (
        {}, graph({"logits": (1, 100, 91), "pred_boxes": (1, 100, 4)}, ("b", 3, "h", "w")),
        {"size": [750, 1333], **IMAGENET}, {"decoder": "detr", "activation": "sigmoid"}, "coco91",
    ),
    "RF-DETR": (
        {}, graph({"dets": (1, 300, 4), "labels": (1, 300, 91)}, (1, 3, 384, 384)), {"size": [384, 384], **IMAGENET},
        {"decoder": "detr", "activation": "sigmoid"}, "coco91",
    ),
    "a detector of TensorFlow": (
        {},
        graph(
            {
                "detection_boxes": (1, 100, 4), "detection_classes": (1, 100), "detection_scores": (1, 100),
                "num_detections": (1,), "raw_detection_scores": (1, 1917, 91),
            }, (1, None, None, 3), "uint8",
        ),
        {"size": [640, 640], "resize": "stretch", "channels": "rgb", "normalise": "none"}, {"decoder": "ssd"}, "coco91",
    ),
    "FastestDet": (
        {}, graph({"758": (1, 85, 22, 22)}, (1, 3, 352, 352)),
        {"size": [352, 352], "resize": "stretch", "channels": "bgr", "normalise": "unit"}, {"decoder": "fastestdet"}, "coco80",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_an_exporter_is_recognised(form: str) -> None:
    metadata, exported, inputs, output, labels = FORMS[form]
    recognition = recognise("net.onnx", metadata, exported)
    spec = parse_spec(recognition.to_toml("net.onnx").encode(), "net.toml")
    table = tomllib.loads(recognition.to_toml("net.onnx"))
    assert (table["input"], table["output"]) == (inputs, output)
    assert (spec.labels if isinstance(labels, str) else len(spec.labels or ())) == labels
    assert msgspec.structs.replace(spec, file="this.onnx") == recognition.spec
    assert all(choice.reason for choice in recognition.choices)


def reasons(recognition: Recognition) -> dict[str, bool]:
    return {choice.key: choice.assumed for choice in recognition.choices}


def test_what_the_file_does_not_say_is_called_an_assumption() -> None:
    known = reasons(recognise("net.onnx", *FORMS["YOLO11 of Ultralytics"][:2]))
    assert not any(known.values())
    guessed = reasons(recognise("net.onnx", *FORMS["RT-DETR of Hugging Face"][:2]))
    assert all(guessed[key] for key in ("labels", "input.size", "input.normalise", "output.decoder"))


def test_the_license_in_the_metadata_is_kept() -> None:
    spec = recognise("net.onnx", *FORMS["YOLO11 of Ultralytics"][:2]).spec
    assert spec.license == "AGPL-3.0 License (https://ultralytics.com/license)"


def test_an_input_of_bytes_is_not_scaled_twice() -> None:
    exported = graph({"output0": (1, 84, 8400)}, (1, 640, 640, 3), "uint8")
    inputs, _ = recognise("net.onnx", ULTRALYTICS, exported).spec.tensor_specs()
    assert (inputs.normalise, inputs.size) == ("none", (640, 640))


TORCHVISION = graph({"boxes": ("n", 4), "labels": ("n",), "scores": ("n",)}, (1, 3, 480, 640))
POSTPROCESSED = graph({"labels": (1, 300), "boxes": (1, 300, 4), "scores": (1, 300)}, orig_target_sizes=(1, 2))


@pytest.mark.parametrize(
    ("exported", "labels", "expected", "decoder"),
    [
        (TORCHVISION, ("cat", "dog"), ["background", "cat", "dog"], "torchvision"),
        (TORCHVISION, ("__background__", "cat"), ["__background__", "cat"], "torchvision"),
        (POSTPROCESSED, ("cat", "dog"), ["cat", "dog"], "detr"),
        (graph({"output0": (1, 300, 6)}), ("cat",), ["cat"], "yolo_end2end"),
        (graph({"output": (1, 8400, 6)}), ("cat",), ["cat"], "yolox"),
        (graph({"output": (1, 8400, 6)}), ("cat", "dog"), ["cat", "dog"], "yolov8"),
        (graph({"dets": (1, 300, 4), "labels": (1, 300, 3)}), ("cat", "dog"), ["cat", "dog"], "detr"),
    ],
)  # fmt: skip
def test_labels_that_are_given_tell_forms_apart(
    exported: Graph, labels: tuple[str, ...], expected: list[str], decoder: str
) -> None:
    spec = recognise("net.onnx", {}, exported, labels).spec
    assert spec.output is not None
    assert (spec.labels, spec.output.decoder) == (expected, decoder)


def test_labels_that_are_given_replace_those_of_the_file() -> None:
    metadata = ULTRALYTICS | {"names": "{0: 'a', 1: 'b'}"}
    assert recognise("net.onnx", metadata, graph({"output0": (1, 6, 8400)}), ("x", "y")).spec.labels == ["x", "y"]


@pytest.mark.parametrize("exported", [TORCHVISION, POSTPROCESSED, graph({"output0": (1, 10, 8400)})])
def test_classes_without_names_are_refused_with_the_option_that_gives_them(exported: Graph) -> None:
    with pytest.raises(ModelError, match=r"have no labels: it does not name them.*--labels-file NAMES\.txt"):
        recognise("net.onnx", {}, exported)


def test_the_coco_labels_that_are_proposed_have_the_numbers_of_the_family() -> None:
    with pytest.raises(ModelError, match=r"--write-spec\. coco91 stands for .* count from 1\.$"):
        recognise("net.onnx", {}, TORCHVISION)
    with pytest.raises(ModelError, match=r"--write-spec\. coco80 and coco91 stand for"):
        recognise("net.onnx", {}, POSTPROCESSED)


@pytest.mark.parametrize(
    ("exported", "classes"),
    [
        (graph({"output0": (1, 84, 8400)}), 80), (graph({"output0": (1, 25200, 85)}), 80),
        (graph({"output0": ("batch", 84, "anchors")}), 80), (graph({"logits": (1, 300, 80), "pred_boxes": (1, 300, 4)}), 80),
        (graph({"dets": (1, 300, 4), "labels": (1, 300, 91)}), 91),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_the_outputs_are_refused_with_both_numbers(exported: Graph, classes: int) -> None:
    with pytest.raises(ModelError, match=rf"returns {classes} classes, and there are 3 labels in the labels file"):
        recognise("net.onnx", {}, exported, ("a", "b", "c"))
    with pytest.raises(ModelError, match=rf"returns {classes} classes, and there are 3 labels in its metadata"):
        recognise("net.onnx", {"names": "['a', 'b', 'c']"}, exported)


@pytest.mark.parametrize(("logits", "activation"), [(3, "sigmoid"), (4, "softmax")])
def test_masks_of_hugging_face_are_found_by_their_name(logits: int, activation: str) -> None:
    outputs: dict[str, Shape] = {
        "logits": (1, 200, logits), "pred_boxes": (1, 200, 4), "pred_masks": (1, 200, 96, 96),
    }  # fmt: skip
    spec = recognise("net.onnx", {}, graph(outputs, (1, 3, 384, 384)), ("a", "b", "c")).spec
    assert spec.output is not None
    assert spec.input is not None
    assert (spec.task, spec.output.activation) == ("instance_segmentation", activation)
    assert spec.input.normalise == "imagenet"


@pytest.mark.parametrize("queries", [60, 100, 300, "queries"])
@pytest.mark.parametrize(("logits", "activation"), [(3, "sigmoid"), (4, "softmax")])
def test_labels_decide_whether_the_last_logit_is_no_object(queries: int | str, logits: int, activation: str) -> None:
    exported = graph({"logits": (1, queries, logits), "pred_boxes": (1, queries, 4)})
    spec = recognise("net.onnx", {}, exported, ("a", "b", "c")).spec
    assert spec.output is not None
    assert (spec.labels, spec.output.activation) == (["a", "b", "c"], activation)


@pytest.mark.parametrize("task", ["depth", "semantic", "", "x" * 4000])
def test_an_unknown_task_is_refused_with_its_name(task: str) -> None:
    with pytest.raises(ModelError, match=f"its task is '{task[:100]}'") as refused:
        recognise("net.onnx", ULTRALYTICS | {"task": task}, graph({"output0": (1, 116, 8400)}))
    assert len(refused.value.message) < 1000


@pytest.mark.parametrize(
    ("exported", "cause"),
    [
        (graph({"probabilities": (1, 1000)}), "no exporter's form"),
        (graph({"output0": (1, 116, 8400), "output1": (1, 32, 160, 160)}), "no exporter's form"),
        (graph({"output0": (1, 1234, 85)}), "no exporter's form"),
        (graph({"a": (1, 84, 8400), "b": (1, 84, 8400)}), "no exporter's form"),
        (graph({"output0": (1, 84, 8400)}, (1, 1, 640, 640)), "1 channels, not 3"),
        (graph({"output0": (1, 84, 8400)}, (1, 640)), "does not take pictures"),
        (graph({"output0": (1, 84, 8400)}, dtype="int64"), "does not take pictures"),
        (graph({"output0": (1, 84, 8400)}, input_ids=(1, 77)), "not exactly one of its inputs"),
        (Graph((), ()), "not exactly one of its inputs"),
    ],
)
def test_an_unknown_form_is_refused_with_its_inputs_and_outputs_and_the_lines_of_a_spec(
    exported: Graph, cause: str
) -> None:
    with pytest.raises(ModelError) as refused:
        recognise("net.onnx", {}, exported)
    message = refused.value.message
    assert cause in message
    assert all(repr(value.name) in message for value in (*exported.inputs, *exported.outputs))
    assert all(
        line in message for line in ('kind = "onnx"', 'file = "net.onnx"', "labels", "[input]", "decoder", "net.toml")
    )
    assert refused.value.code == "model_refused"


def test_a_refusal_is_short_however_many_tensors_a_file_has() -> None:
    tensors = tuple(TensorInfo(f"{number}" + "x" * 10_000, "float", ("y" * 10_000,) * 64) for number in range(5000))
    with pytest.raises(ModelError, match="and 4990 more") as refused:
        recognise("net.onnx", {}, Graph(tensors, tensors))
    assert len(refused.value.message) < 50_000


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("{0: 'person', 1: 'cat'}", ("person", "cat")),
        ("{1: 'cat', 0: \"driver's cab\"}", ("driver's cab", "cat")),
        ('{"0": "person"}', ("person",)),
        ("['a, b', 'c: d', '}']", ("a, b", "c: d", "}")),
        (str({0: "größe", 1: "a\\b'\"", 2: "\xad\u200d"}), ("größe", "a\\b'\"", "\xad\u200d")),
        ("{0: 'a',}", ("a",)),
        ("{0: 'a', 2: 'b'}", None),
        ("{0: 'a', 0: 'b'}", None),
        ("{}", None),
        ("{0: 'a'", None),
        ("{0: 'a'} ", ("a",)),
        ("{0: __import__('os')}", None),
        ("{0: 'a' + 'b'}", None),
        ("{0: ['a']}", None),
        ("{0: '\\N{DIGIT ONE}'}", None),
        ("{0: '\\ud800'}", None),
        ("person, cat", None),
        ("", None),
        ("[" * 100_000, None),
        ("{0: '" + "\\" * 100_001, None),
        (str(dict.fromkeys(range(10_001), "a")), None),
    ],
)
def test_names_are_read_from_a_python_literal_without_evaluating_it(text: str, labels: tuple[str, ...] | None) -> None:
    assert parse_names(text) == labels


@given(st.lists(st.text(max_size=20), min_size=1, max_size=50))
def test_each_list_of_names_that_python_prints_is_read_back(labels: list[str]) -> None:
    assert parse_names(str(dict(enumerate(labels)))) == tuple(labels)
    assert parse_names(str(labels)) == tuple(labels)


@pytest.mark.parametrize(
    ("text", "size"),
    [("[640, 480]", (640, 480)), ("(640, 480)", (640, 480)), ("640", (640, 640)), ("[640]", (640, 640)), ("big", None), ("", None)],
)  # fmt: skip
def test_the_size_is_read_as_exporters_write_it(text: str, size: tuple[int, int] | None) -> None:
    assert parse_size(text) == size


SHAPES = st.one_of(
    st.none(), st.lists(st.one_of(st.none(), st.integers(0, 2**63), st.sampled_from(["n", ""])), max_size=6)
)
TENSORS = st.lists(
    st.builds(
        TensorInfo,
        st.sampled_from(
            ["images", "logits", "pred_boxes", "boxes", "scores", "labels", "dets", "detection_boxes", "output", ""]
        ),
        st.sampled_from(["float", "uint8", "other"]),
        SHAPES.map(lambda shape: None if shape is None else tuple(shape)),
    ),
    max_size=5,
).map(tuple)


@given(
    st.dictionaries(st.sampled_from(["names", "imgsz", "task", "license", "description"]), st.text(max_size=40)),
    TENSORS,
    TENSORS,
    st.one_of(st.none(), st.lists(st.text(max_size=3), min_size=1, max_size=3).map(tuple)),
)
def test_any_file_is_recognised_or_refused(
    metadata: dict[str, str],
    inputs: tuple[TensorInfo, ...],
    outputs: tuple[TensorInfo, ...],
    labels: tuple[str, ...] | None,
) -> None:
    try:
        recognition = recognise("net.onnx", metadata, Graph(inputs, outputs), labels)
    except ModelError:
        return
    assert recognition.spec.kind == "onnx"


PEOPLE = """
nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_hip right_hip
left_knee right_knee left_ankle right_ankle
"""


@pytest.mark.parametrize(
    ("more", "rows", "names", "assumed"),
    [
        ({"kpt_shape": "[2, 3]", "kpt_names": "{0: ['tip', 'tail']}"}, 12, ["tip", "tail"], False),
        ({"kpt_shape": "[2, 3]", "kpt_names": "{0: ['tip', 'tail'], 1: ['tip', 'tail']}"}, 12, ["tip", "tail"], False),
        ({"kpt_shape": "[2, 3]", "kpt_names": "{0: ['tip', 'tail'], 1: ['a', 'b']}"}, 12, None, False),
        ({"kpt_shape": "[2, 3]", "kpt_names": "{0: ['tip']}"}, 12, None, False),
        ({"kpt_shape": "[2, 3]", "kpt_names": "{0: ['tip', 'a\\nb']}"}, 12, None, False),
        ({"kpt_shape": "[2, 3]"}, 12, None, False),
        ({"kpt_shape": "[17, 3]"}, 57, None, False),
        ({"kpt_shape": "[17, 3]", "names": "{0: 'person'}"}, 56, PEOPLE.split(), True),
        ({"kpt_shape": "[17, 3]", "names": "{0: 'person'}", "kpt_names": "nonsense"}, 56, None, False),
    ],
)
def test_keypoints_have_the_names_in_the_file_or_those_of_coco_for_people(
    more: dict[str, str], rows: int, names: list[str] | None, assumed: bool
) -> None:
    metadata = {"task": "pose", "names": "{0: 'a', 1: 'b'}"} | more
    found = recognise("net.onnx", metadata, graph({"output0": (1, rows, 8400)}))
    assert found.spec.output is not None
    assert found.spec.output.keypoint_names == (None if names is None else tuple(names))
    assert [each.assumed for each in found.choices if each.key == "output.keypoint_names"] == [assumed] * bool(names)
    assert tomllib.loads(found.to_toml("net.onnx"))["output"].get("keypoint_names") == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{0: ['nose', \"l'eye\"]}", ("nose", "l'eye")),
        ("{ '0' : [ 'a' , 'b' ] }", ("a", "b")),
        ('{"0": ["a"]}', ("a",)),
        ("{0: ['a']} ", ("a",)),
        ("{0: []}", None),
        ("{}", None),
        ("", None),
        ("['a', 'b']", None),
        ("{0: ['a'", None),
        ("{0: ['a'}", None),
        ("{0: ['a'] 1: ['a']}", None),
        ("{0: ['a'], 1: 'a'}", None),
        ("{0: ['a', 'b\\q']}", None),
        ("{0: [" + "'a', " * 1000 + "'a']}", None),
    ],
)
def test_names_of_keypoints_are_read_as_ultralytics_writes_them(text: str, names: tuple[str, ...] | None) -> None:
    assert parse_keypoint_names(text) == names


def test_the_inputs_that_are_not_taken_for_pictures_are_those_that_are_filled() -> None:
    assert set(OTHER_INPUTS) == FILLED_INPUTS
