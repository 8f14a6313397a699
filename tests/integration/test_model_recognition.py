"""ONNX files without a spec, as exporters write them: read from real files, run, and refused where they are hostile.

Nets have constant outputs, take pictures of 64 x 128 (height, width), and are given one of 128 x 256, twice as large.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tests.integration.vidflow_process import running_vidflow
from tests.onnx_nets import constant_net, floats, image_input, with_metadata
from tests.pictures import picture_of

from vidflow.domain.detections import Detection
from vidflow.domain.errors import ModelError
from vidflow.infra.models import registry
from vidflow.infra.models.onnx_metadata import Graph, TensorInfo, read_graph, read_metadata
from vidflow.infra.models.protobuf import MAX_FIELDS

HEIGHT, WIDTH = 64, 128
CELLS = 8 * 16 + 4 * 8 + 2 * 4
"""Cells of the strides 8, 16 and 32."""
BOX = [64.0, 32.0, 32.0, 16.0]
"""Centre and size in the tensor, whose corners are (48, 24) and (80, 40)."""
CENTRED = Detection("b", 0.75, (96.0, 48.0, 160.0, 80.0))
LN_3 = 1.0986123
"""The logit of 0.75."""
PLAIN = Path("net.onnx")


def rows(count: int, *filled: list[float]) -> NDArray[np.float32]:
    """Return an output of `count` rows, of which the first ones are filled."""
    values = np.zeros((1, count, len(filled[0])), dtype=np.float32)
    values[0, : len(filled)] = filled
    return values


def image(*shape: int | str, **more: Any) -> Any:
    return image_input(*(shape or (1, 3, HEIGHT, WIDTH)), name="images", **more)


ULTRALYTICS = {"author": "Ultralytics", "task": "detect", "names": "{0: 'a', 1: 'b'}", "imgsz": "[64, 128]"}
V8 = rows(CELLS, [*BOX, 0.25, 0.75]).transpose(0, 2, 1).copy()
FILES: dict[str, tuple[Mapping[str, str], dict[str, NDArray[Any]], list[Any]]] = {
    "Ultralytics": (ULTRALYTICS, {"output0": V8}, [image()]),
    "Ultralytics with open axes": (ULTRALYTICS, {"output0": V8}, [image("batch", 3, "height", "width")]),
    "Ultralytics in half precision": (ULTRALYTICS, {"output0": V8.astype(np.float16)}, [image(dtype=TensorProto.FLOAT16)]),
    "Ultralytics with NMS inside": (ULTRALYTICS, {"output0": rows(300, [48, 24, 80, 40, 0.75, 1])}, [image()]),
    "YOLOv5": (
        {"stride": "32", "names": "['a', 'b']"}, {"output0": rows(3 * CELLS, [*BOX, 0.75, 0.25, 1.0])}, [image()],
    ),
    "RT-DETR of Ultralytics": (
        ULTRALYTICS | {"description": "Ultralytics rtdetr-l model"},
        {"output0": rows(300, [0.5, 0.5, 0.25, 0.25, 0.25, 0.75])}, [image()],
    ),
    "RF-DETR": (
        {"names": "['a', 'b']"},
        {"dets": rows(300, [0.5, 0.5, 0.25, 0.25]), "labels": rows(300, [-9, LN_3, -9], *[[-9.0] * 3] * 299)},
        [image()],
    ),
    "RT-DETR with post-processing": (
        {"names": "['a', 'b']"},
        {
            "labels": np.ones((1, 300), np.int64), "boxes": rows(300, [48, 24, 80, 40]),
            "scores": floats([[0.75] + [0.0] * 299]),
        },
        [image(), helper.make_tensor_value_info("orig_target_sizes", TensorProto.INT64, (1, 2))],
    ),
    "torchvision": (
        {"names": "['a', 'b']"},
        {"boxes": floats([[48, 24, 80, 40]]), "labels": np.array([2], np.int64), "scores": floats([0.75])}, [image()],
    ),
}  # fmt: skip


def of_task(task: str, **more: str) -> Mapping[str, str]:
    return ULTRALYTICS | {"task": task} | more


PROTOTYPES = np.ones((1, 2, HEIGHT // 4, WIDTH // 4), dtype=np.float32)
KEYPOINTS = [48.0, 24.0, 0.5, 200.0, 40.0, 0.25]
POSE = rows(CELLS, [*BOX, 0.25, 0.75, *KEYPOINTS]).transpose(0, 2, 1).copy()
OBB = rows(CELLS, [*BOX, 0.25, 0.75, np.pi / 2]).transpose(0, 2, 1).copy()
SEGMENTS = rows(CELLS, [*BOX, 0.25, 0.75, 9.0, 9.0]).transpose(0, 2, 1).copy()
SELECTED = [48.0, 24.0, 80.0, 40.0, 0.75, 1.0]
POINTS = ((96.0, 48.0, 0.5), (256.0, 80.0, 0.25))
UPRIGHT = (112.0, 32.0, 144.0, 96.0)
"""The box after a quarter turn about its centre."""
CORNERS = ((144.0, 32.0), (144.0, 96.0), (112.0, 96.0), (112.0, 32.0))
TASKS: dict[str, tuple[Mapping[str, str], dict[str, NDArray[Any]], Mapping[str, Any]]] = {
    "pose": (of_task("pose", kpt_shape="[2, 3]"), {"output0": POSE}, {"keypoints": POINTS}),
    "pose, selected": (
        of_task("pose", kpt_shape="[2, 3]"), {"output0": rows(300, [*SELECTED, *KEYPOINTS])}, {"keypoints": POINTS},
    ),
    "oriented boxes": (of_task("obb"), {"output0": OBB}, {"box": UPRIGHT, "corners": CORNERS}),
    "oriented boxes, selected": (
        of_task("obb"), {"output0": rows(300, [*BOX, 0.75, 1.0, np.pi / 2])}, {"box": UPRIGHT, "corners": CORNERS},
    ),
    "segments": (of_task("segment"), {"output0": SEGMENTS, "output1": PROTOTYPES}, {}),
    "segments, selected": (
        of_task("segment"), {"output0": rows(300, [*SELECTED, 9.0, 9.0]), "output1": PROTOTYPES}, {},
    ),
}  # fmt: skip


def write(folder: Path, net: onnx.ModelProto) -> str:
    (folder / PLAIN).write_bytes(net.SerializeToString())
    return str(folder / PLAIN)


@pytest.mark.parametrize("exporter", FILES)
def test_a_file_without_a_spec_finds_what_its_outputs_say(tmp_path: Path, exporter: str) -> None:
    metadata, outputs, inputs = FILES[exporter]
    path = write(tmp_path, with_metadata(constant_net(outputs, *inputs), metadata))
    model = registry.load(registry.resolve(path, any_onnx=True, keep_weights=True))
    [[found]] = model.infer([picture_of(np.zeros((2 * HEIGHT, 2 * WIDTH, 3), dtype=np.uint8))])
    assert found.label == CENTRED.label
    assert found.score == pytest.approx(CENTRED.score, abs=0.001)
    assert found.box == pytest.approx(CENTRED.box, abs=0.01)


def find_one(folder: Path, metadata: Mapping[str, str], outputs: dict[str, NDArray[Any]]) -> Detection:
    path = write(folder, with_metadata(constant_net(outputs, image()), metadata))
    model = registry.load(registry.resolve(path, any_onnx=True, keep_weights=True))
    [[found]] = model.infer([picture_of(np.zeros((2 * HEIGHT, 2 * WIDTH, 3), dtype=np.uint8))])
    return found


@pytest.mark.parametrize("name", TASKS)
def test_a_file_of_another_task_finds_what_its_outputs_say(tmp_path: Path, name: str) -> None:
    metadata, outputs, expected = TASKS[name]
    found = find_one(tmp_path, metadata, outputs)
    assert (found.label, found.score) == ("b", 0.75)
    assert found.box == pytest.approx(expected.get("box", CENTRED.box), abs=0.01)
    assert np.array(found.keypoints) == pytest.approx(np.array(expected.get("keypoints", ())), abs=0.01)
    assert np.array(found.corners) == pytest.approx(np.array(expected.get("corners", ())), abs=0.01)
    assert (found.mask is not None) == name.startswith("segments")


def test_a_classifier_without_a_spec_gives_the_best_labels_of_a_frame(tmp_path: Path) -> None:
    found = find_one(tmp_path, of_task("classify"), {"output0": floats([[0.05, 0.95]])})
    assert found == Detection("b", 0.95, (0.0, 0.0, 2 * WIDTH, 2 * HEIGHT))


@pytest.mark.parametrize(
    ("metadata", "outputs"),
    [
        (of_task("pose"), {"output0": POSE}),  # the number of keypoints is unknown
        (of_task("segment"), {"output0": SEGMENTS}),  # there are no prototypes
        (of_task("classify"), {"output0": POSE}),
        (of_task("obb"), {"output0": floats([[1.0]])}),
        (of_task("depth"), {"output0": POSE}),
    ],
)
def test_a_task_that_the_outputs_do_not_fit_is_refused_with_them(
    tmp_path: Path, metadata: Mapping[str, str], outputs: dict[str, NDArray[Any]]
) -> None:
    with pytest.raises(ModelError, match=r"not recognised.*'output0' float"):
        find_one(tmp_path, metadata, outputs)


def test_yolox_and_coco_are_assumed_for_its_form(tmp_path: Path) -> None:
    cells = np.zeros((1, CELLS, 85), dtype=np.float32)
    cells[0, 3 * 16 + 5] = [0.5, 0.5, np.log(2), np.log(4), 0.75, *[0.0] * 16, 1.0, *[0.0] * 63]
    path = write(tmp_path, constant_net({"output": cells}, image()))
    model = registry.load(registry.resolve(path, any_onnx=True, keep_weights=True))
    [[found]] = model.infer([picture_of(np.zeros((2 * HEIGHT, 2 * WIDTH, 3), dtype=np.uint8))])
    # Cell (5, 3) of stride 8 is around (44, 28); the box is 16 x 32 pixels of the tensor.
    assert found.label == "dog"
    assert found.box == pytest.approx((72, 24, 104, 88), abs=0.01)


def test_inputs_and_outputs_are_those_that_the_onnx_library_reads(tmp_path: Path) -> None:
    net = constant_net(
        {"first": np.zeros((1, 2, 3), np.float32), "second": np.zeros((4,), np.int64)},
        image("batch", 3, "height", WIDTH), helper.make_tensor_value_info("mask", TensorProto.BOOL, None),
    )  # fmt: skip
    path = Path(write(tmp_path, net))
    with path.open("rb") as file:
        graph = read_graph(file, path)
    assert graph == Graph(
        (TensorInfo("images", "float", ("batch", 3, "height", WIDTH)), TensorInfo("mask", "bool", None)),
        (TensorInfo("first", "float", (1, 2, 3)), TensorInfo("second", "int64", (4,))),
    )


def test_weights_that_an_old_exporter_lists_as_inputs_are_left_out(tmp_path: Path) -> None:
    net = with_metadata(constant_net({"output0": V8}, image()), ULTRALYTICS)
    net.ir_version = 3
    net.graph.input.append(helper.make_tensor_value_info("value of output0", TensorProto.FLOAT, V8.shape))
    assert registry.resolve(write(tmp_path, net), any_onnx=True).labels == ("a", "b")


def test_the_same_file_has_the_same_digest_everywhere_and_another_form_another_one(tmp_path: Path) -> None:
    net = with_metadata(constant_net({"output0": V8}, image()), ULTRALYTICS)
    first = registry.resolve(write(tmp_path, net), any_onnx=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "other name.onnx").write_bytes((tmp_path / PLAIN).read_bytes())
    second = registry.resolve(str(tmp_path / "elsewhere" / "other name.onnx"), any_onnx=True, keep_weights=True)
    assert first.sha256 == second.sha256
    assert first.sha256 != first.weights_sha256
    registry.require_same(second, first.sha256)


def test_recognising_imports_no_heavy_library(tmp_path: Path) -> None:
    path = write(tmp_path, with_metadata(constant_net({"output0": V8}, image()), ULTRALYTICS))
    program = (
        f"import sys; from vidflow.infra.models import registry; registry.resolve({path!r}, any_onnx=True);"
        "print({'numpy', 'onnx', 'onnxruntime', 'torch', 'av'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


def part(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


GRAPH, INPUT, OUTPUT, METADATA = 7, 11, 12, 14
HOSTILE = {
    "a graph that claims 2 GB": varint(GRAPH << 3 | 2) + varint(2**31 - 1) + b"\x08\x01",
    "an input that claims more than its graph": part(GRAPH, varint(INPUT << 3 | 2) + varint(2**40)) + b"\0" * 100,
    "a length of 70 bits": varint(GRAPH << 3 | 2) + b"\xff" * 9 + b"\x7f",
    "millions of fields": part(GRAPH, b"\x08\x00" * (MAX_FIELDS + 1)),
    "millions of metadata": part(METADATA, b"\x0a\x00") * MAX_FIELDS,
    "millions of inputs": part(GRAPH, b"".join(part(INPUT, part(1, varint(n))) for n in range(20_000))),
    "a shape of millions of axes": part(GRAPH, part(INPUT, part(2, part(1, part(2, part(1, b"") * 300_000))))),
    "names of 32 MB": part(GRAPH, part(INPUT, part(1, b"x" * 2**25))),
    "a name that is no text": part(GRAPH, part(INPUT, part(1, b"\xff"))),
    "messages in messages": part(GRAPH, part(INPUT, part(2, part(1, part(2, part(1, b"\xff")))))),
}  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_within_bounded_time_and_memory(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PLAIN).write_bytes(content)
    started_s = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="is not an ONNX model"):
            registry.resolve(str(tmp_path / PLAIN), any_onnx=True)
        assert tracemalloc.get_traced_memory()[1] < 150 * 1024**2
    finally:
        tracemalloc.stop()
    assert time.process_time() - started_s < 60  # bounded, not fast: tracing is slow


def test_a_file_of_2_gb_of_tiny_fields_is_refused_without_reading_it_all(tmp_path: Path) -> None:
    with (tmp_path / PLAIN).open("wb") as file:
        file.write(varint(GRAPH << 3 | 2) + varint(2**31 - 100) + b"\x08\x00" * MAX_FIELDS)
        os.ftruncate(file.fileno(), 2**31 - 100)
    with pytest.raises(ModelError):
        registry.resolve(str(tmp_path / PLAIN), any_onnx=True)


NET = with_metadata(constant_net({"output0": V8}, image()), ULTRALYTICS).SerializeToString()


@given(st.lists(st.tuples(st.integers(0, len(NET) - 1), st.integers(0, 255)), min_size=1, max_size=20))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_recognised_or_refused(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    content = bytearray(NET)
    for place, value in changes:
        content[place] = value
    (tmp_path / PLAIN).write_bytes(content)
    with suppress(ModelError):
        registry.resolve(str(tmp_path / PLAIN), any_onnx=True)


@given(st.binary(max_size=300))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_a_graph_or_refused(content: bytes) -> None:
    for message in (content, part(GRAPH, content), part(GRAPH, part(INPUT, content)), part(METADATA, content)):
        with suppress(ModelError):
            read_metadata(io.BytesIO(message), PLAIN)
            read_graph(io.BytesIO(message), PLAIN)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_bare_file_runs_from_the_request_to_its_results(tmp_path: Path) -> None:
    path = write(tmp_path, with_metadata(constant_net({"output0": V8}, image()), ULTRALYTICS))
    with running_vidflow(tmp_path / "data") as vidflow:
        uuid = vidflow.create_scenario(Path("sample:bikes"), path, 1)
        assert vidflow.wait_until_inactive(uuid)["outcome"] == "completed"
        frames = vidflow.frames(uuid)
        assert frames
        assert {detection["label"] for frame in frames for detection in frame["detections"]} == {"b"}
        command = [
            sys.executable,
            "-m",
            "vidflow",
            "run",
            "sample:bikes",
            "--model",
            path,
            "--fps",
            "1",
            "--output",
            "csv",
        ]
        result = subprocess.run(
            [*command, "--url", vidflow.stack.url], capture_output=True, text=True, check=True, timeout=100
        )
    assert [line.split(",")[4] for line in result.stdout.splitlines()[1:]] == ["b"] * len(frames)
