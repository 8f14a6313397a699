"""Whatever a spec, a labels file or the metadata of an ONNX file contains, it is read or refused with a short error."""

from __future__ import annotations

import io
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from vidflow.domain.detections import MAX_KEYPOINTS, find_label_fault
from vidflow.domain.errors import ModelError
from vidflow.infra.models.exporter_notes import parse_keypoint_names, parse_names, parse_size
from vidflow.infra.models.label_files import parse_labels
from vidflow.infra.models.onnx_metadata import Graph, TensorInfo, read_graph, read_metadata
from vidflow.infra.models.protobuf import MAX_FIELDS
from vidflow.infra.models.recognition import recognise
from vidflow.infra.models.spec import MAX_LABELS, ModelSpec, build_spec, parse_spec

MAX_ERROR = 2000
SPEC = """kind = "onnx"
file = "net.onnx"
task = "keypoints"
labels = ["person"]
[input]
size = [640, 640]
resize = "letterbox"
normalise = "unit"
[output]
decoder = "yolov8"
keypoints = 2
keypoint_names = ["a", "b"]
[thresholds]
score = 0.25
"""
ULTRALYTICS = {"task": "pose", "names": "{0: 'person'}", "imgsz": "[640, 640]", "kpt_shape": "[2, 3]"}
PATH = Path("net.onnx")
TEXTS = st.text(max_size=20) | st.sampled_from(["\0", "\u202e", "\u2028", "\x1b[2J", "a" * 5000, "\ufeff", "\x7f", ""])


def parse(text: str | bytes) -> ModelSpec | None:
    """Return the spec, None if it is refused with an error that people can read."""
    try:
        return parse_spec(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"), "net.toml")
    except ModelError as error:
        check_error(error)
        return None


def check_error(error: ModelError) -> None:
    assert len(error.message) < MAX_ERROR
    assert find_label_fault(error.message[:200]) is None, "it has characters that change how a terminal shows it"


def test_the_spec_that_is_changed_below_is_valid() -> None:
    assert parse(SPEC) is not None


@given(st.lists(st.tuples(st.integers(0, len(SPEC)), st.integers(0, 8), TEXTS), min_size=1, max_size=5))
@settings(max_examples=300, deadline=None)
def test_a_spec_with_changed_places_is_read_or_refused(changes: list[tuple[int, int, str]]) -> None:
    text = SPEC
    for place, removed, added in changes:
        text = text[:place] + added + text[place + removed :]
    parse(text)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_spec_or_refused(content: bytes) -> None:
    assert parse(content) is None


VALUES: st.SearchStrategy[Any] = st.recursive(
    TEXTS | st.integers() | st.floats() | st.booleans() | st.sampled_from(["onnx", "yolov8", "coco80", 2**64, -1, 1e300]),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXTS, children, max_size=3),
    max_leaves=6,
)  # fmt: skip
KEYS = st.sampled_from([*ModelSpec.__struct_fields__]) | TEXTS
SECTIONS = {
    name: st.dictionaries(st.sampled_from(field.encode_name.split()) | TEXTS, VALUES, max_size=3)
    for name in ("input", "output", "thresholds")
    for field in msgspec.structs.fields(ModelSpec)
    if field.name == name
}


@given(st.dictionaries(KEYS, VALUES, max_size=4), st.fixed_dictionaries({}, optional=SECTIONS))
@settings(max_examples=300, deadline=None)
def test_any_table_is_a_spec_or_refused(entries: dict[str, Any], sections: dict[str, Any]) -> None:
    try:
        build_spec(tomllib.loads(SPEC) | sections | entries, "net.toml")
    except ModelError as error:
        check_error(error)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "9" * 60_000, "a = 0x" + "f" * 60_000, "a = 1e" + "9" * 60_000, "a = " + "[" * 60_000,
        "a." * 30_000 + "a = 1", "a." * 2000 + "a = 1",
        "a = " + "{a = " * 12_000, '"' + "k" * 60_000 + '" = 1', '"\\u202e\\n" = 1', "a = 9999-99-99", "a = 25:61:61",
        SPEC.replace("yolov8", "y" * 60_000), SPEC.replace("[640, 640]", "[" + "640, " * 12_000 + "]"),
        SPEC.replace('"person"', '"\\u202ecat"'), SPEC.replace('"person"', '"a", ' * 12_000),
        SPEC.replace("keypoints = 2", "keypoints = 9223372036854775808"),
        SPEC.replace('"keypoints"', '["keypoints"]'), SPEC.replace("0.25", "nan"), SPEC.replace("0.25", "-inf"),
        "\ufeff\ufeff" + SPEC, SPEC + "\0", SPEC + SPEC,
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_a_hostile_spec_is_refused_with_a_short_error(text: str) -> None:
    spec = parse(text)
    assert spec is None or spec.labels == ["\u202ecat"]  # labels are judged with those of files


@given(st.binary(max_size=200) | TEXTS.map(str.encode))
def test_any_bytes_are_labels_or_refused(content: bytes) -> None:
    try:
        labels = parse_labels(content, "names.txt")
    except ModelError as error:
        check_error(error)
    else:
        assert 1 <= len(labels) <= MAX_LABELS
        assert not any(map(find_label_fault, labels))


@given(st.text(st.sampled_from("{}[]():,0123456789'\"\\ \nabxuU\u202e\0"), max_size=60))
@settings(max_examples=1000, deadline=None)
def test_any_note_of_an_exporter_is_read_or_not(text: str) -> None:
    for note in (text, f"{{{text}}}", f"[{text}]", f"{{0: {text}}}", f"{{0: [{text}]}}"):
        names, points, size = parse_names(note), parse_keypoint_names(note), parse_size(note)
        assert names is None or 1 <= len(names) <= MAX_LABELS
        assert points is None or 1 <= len(points) <= MAX_KEYPOINTS
        assert size is None or max(size) < 100_000


@given(st.lists(st.text(max_size=8), min_size=1, max_size=30), st.integers(1, 3))
def test_each_list_of_names_of_keypoints_that_python_prints_is_read_back(names: list[str], classes: int) -> None:
    assert parse_keypoint_names(str(dict.fromkeys(range(classes), names))) == tuple(names)


@pytest.mark.parametrize(
    "note",
    [
        "{0: '" + "\\" * 500_000, "{" + "0: 'a', " * 120_000 + "}", "[" + "'a'," * 250_000 + "]", "{0: [" + " " * 1_000_000 + "]}",
        "{0: [" + "'a'," * 250_000 + "]}", "{" + "0: ['a']," * 100_000 + "}", "{" + "0" * 1_000_000 + ": 'a'}", "{0: '" + "a" * 10_000_000,
        "[" * 1_000_000 + "]" * 1_000_000, "{0: '\\ud800'}", "{-1: 'a'}", "{1: 'a'}", "{0: 'a', 0: 'b'}", "{0: 'a', 2: 'b'}",
    ],
    ids=lambda note: note[:12],
)  # fmt: skip
def test_a_hostile_note_is_no_list_of_names(note: str) -> None:
    assert parse_names(note) is None
    assert parse_keypoint_names(note) in {None, ("a",)}
    assert parse_size(note) is None


@given(
    st.dictionaries(st.sampled_from([*ULTRALYTICS, "kpt_names", "license"]), TEXTS | st.sampled_from([
        "segment", "obb", "classify", "[99999, 99999]", "[0, 0]", "{0: 'a\\n'}", "{0: '\\u202e'}", "[1000000, 3]", "{0: ['a', 'b']}",
    ])),
    TEXTS,
    st.lists(st.integers(0, 2**63 - 1) | st.sampled_from([1, 3, 8, 11, 8400, 640]) | TEXTS | st.none(), max_size=5),
    st.lists(st.integers(0, 2**63 - 1) | st.sampled_from([1, 3, 640, 8400]) | st.none(), min_size=3, max_size=4),
)  # fmt: skip
@settings(max_examples=500, deadline=None)
def test_any_metadata_and_shapes_give_a_spec_that_can_be_written_or_a_short_refusal(
    metadata: dict[str, str], name: str, output: list[Any], picture: list[Any]
) -> None:
    graph = Graph((TensorInfo(name, "float", tuple(picture)),), (TensorInfo(name, "float", tuple(output)),))
    try:
        recognition = recognise("net.onnx", ULTRALYTICS | metadata, graph)
    except ModelError as error:
        check_error(error)
        return
    written = build_spec(tomllib.loads(recognition.to_toml("this.onnx")), "net.toml")
    assert written == recognition.spec


def value_info(name: str, dtype: int, shape: list[Any] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
LENGTHS = st.one_of(st.integers(1, 2**63 - 1), NAMES.filter(bool), st.none())


@given(
    st.lists(
        st.tuples(NAMES, st.sampled_from([*TensorProto.DataType.values()][1:]), st.lists(LENGTHS, max_size=5)),
        max_size=6, unique_by=lambda each: each[0],
    ),
    st.dictionaries(st.sampled_from(["names", "task", "imgsz", "kpt_names", "unknown", ""]), NAMES),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_any_graph_and_metadata_are_read_as_the_onnx_library_does(
    tensors: list[tuple[str, int, list[Any]]], metadata: dict[str, str]
) -> None:
    half = len(tensors) // 2
    infos = [value_info(*tensor) for tensor in tensors]
    model = helper.make_model(helper.make_graph([], "g", infos[:half], infos[half:]))
    helper.set_model_props(model, metadata)
    content = model.SerializeToString()
    found = read_graph(io.BytesIO(content), PATH)
    assert [(each.name, each.shape) for each in (*found.inputs, *found.outputs)] == [
        (name, tuple(shape)) for name, _, shape in tensors
    ]
    assert read_metadata(io.BytesIO(content), PATH) == {
        key: value for key, value in metadata.items() if key not in {"unknown", ""}
    }


def nested(levels: int) -> bytes:
    """Return a graph in a node's attribute of a graph, and so on."""
    content = b""
    for _ in range(levels):
        for number in (6, 5, 1):  # attribute's graph, node's attribute, graph's node
            length, head = len(content), bytearray([number << 3 | 2])
            while length > 0x7F:
                head.append(length & 0x7F | 0x80)
                length >>= 7
            content = bytes([*head, length]) + content
    return content


def test_graphs_in_graphs_are_not_descended_into() -> None:
    content = nested(3000)
    length, head = len(content), bytearray([7 << 3 | 2])
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    message = bytes([*head, length]) + content
    assert len(content) < MAX_FIELDS
    assert read_graph(io.BytesIO(message), PATH) == Graph((), ())
