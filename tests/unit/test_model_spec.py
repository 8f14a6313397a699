"""Model specs and model names: what is accepted, and what is refused with which message. No model is loaded."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vidflow.domain.errors import MissingExtra, ModelError, ParameterError
from vidflow.domain.messages import Parameters
from vidflow.infra.models import registry
from vidflow.infra.models.bundle import Bundle, read_bundle
from vidflow.infra.models.onnx_metadata import read_metadata
from vidflow.infra.models.paths import listed_file
from vidflow.infra.models.spec import parse_spec

WEIGHTS = b"weights of a net"
SPEC = f"""
kind = "onnx"
file = "net.onnx"
sha256 = "{hashlib.sha256(WEIGHTS).hexdigest()}"
labels = "things.names"

[input]
size = [416, 320]
resize = "letterbox"
channels = "bgr"
mean = [1.0, 2.0, 3.0]

[output]
decoder = "yolox"
strides = [8, 16]

[thresholds]
score = 0.3
"""

LABELS = [
    "person", "traffic light", "größe", "\u06a9\u062a\u0627\u0628\u200c\u062e\u0627\u0646\u0647", "क्\u200dष",
    "\U0001f469\u200d\U0001f52c", "a\u00a0b", "\u00a0edge\u00a0",
    "自動\u3000車", "\u3000車", "a\u00adb", "\U0001f3f4\U000e0067\U000e0062\U000e007f", "x\u200e", "tench, Tinca tinca", "a\ufeffb",
]  # fmt: skip
"""Labels with joiners, directional marks, tags and all kinds of spaces."""
NOT_IN_LABELS = [
    "\0",
    "\x07",
    "\x1b",
    "\x7f",
    "\x85",
    "\x0b",
    "\x0c",
    "\t",
    "\u2028",
    "\u2029",
    "\u202e",
    "\u202b",
    "\u2066",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A models folder with one valid spec, `net`."""
    models = tmp_path / "models"
    models.mkdir()
    (models / "net.onnx").write_bytes(WEIGHTS)
    (models / "things.names").write_text("person\ncat\n\n")
    (models / "net.toml").write_text(SPEC)
    return models


def replace_in_spec(folder: Path, old: str, new: str) -> Path:
    assert old in SPEC
    (folder / "net.toml").write_text(SPEC.replace(old, new))
    return folder


def read_net(folder: Path) -> Bundle:
    return read_bundle("net", listed_file(folder / "net.toml"), keep_weights=True)


def test_a_spec_is_read_with_its_labels_and_weights(folder: Path) -> None:
    bundle = read_net(folder)
    assert bundle.labels == ("person", "cat")
    assert bundle.spec.input is not None
    assert bundle.spec.input.size == (416, 320)
    assert bundle.spec.thresholds.nms_iou == 0.45
    assert (bundle.require_weights(), bundle.weights_path) == (WEIGHTS, folder / "net.onnx")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("[input]", "[input]\ncolour = 3", "colour"),
        ('kind = "onnx"', 'kind = "onnx"\nflie = "x"', "flie"),
        ('kind = "onnx"', 'kind = "onnx"\nprecision = "double"', "precision`; use full, half"),
        ('kind = "onnx"', 'kind = "onnx"\nprecision = "half"', "export the model in half precision"),
        (
            'kind = "onnx"',
            'kind = "motion"\nprecision = "half"',
            "precision 'half'",
        ),
        ("score = 0.3", "score = 1.3", "score"),
        ("score = 0.3", "score = nan", "score"),
        ("[416, 320]", "[416]", "size"),
        ("[416, 320]", "[416, 100000]", "size"),
        ("[1.0, 2.0, 3.0]", "[1.0, 2.0]", "mean"),
        (
            '"yolox"',
            '"yolo99"',
            "decoder`; use classes, detr, fastestdet, ssd, tf, torchvision, yolo_end2end, yolov5, yolov8, yolox",
        ),
        ('channels = "bgr"', 'normalise = "unit"', "`normalise` and `scale`, `mean` or `std`"),
        ('decoder = "yolox"', 'decoder = "yolox"\ncoordinates = "pixels"', "coordinates"),
        ('decoder = "yolox"', 'decoder = "yolov8"\nactivation = "sigmoid"', "activation"),
        ('decoder = "yolox"', 'decoder = "yolov8"\norder = ["boxes"]', "order"),
        ('decoder = "yolox"', 'decoder = "ssd"\norder = ["box"]', "order"),
        ('channels = "bgr"', 'resample = "nearest"', "resample`; use area, bicubic, bilinear"),
        ('channels = "bgr"', "resample = 1", "resample"),
        ('labels = "things.names"', "", "labels"),
        ('file = "net.onnx"', "", "file"),
        ("[8, 16]", "[0]", "strides"),
        ('kind = "onnx"', 'kind = "motion"', "motion"),
        ('kind = "onnx"', 'kind = "torchvision"', "architecture"),
        ('kind = "onnx"', "kind = onnx", "TOML"),
        ('kind = "onnx"', 'kind = "onnx"\noptions = {a = 1}', "options"),
        (
            'kind = "onnx"',
            'kind = "onnx"\ntask = "pose"',
            "task`; use classification, detection, instance_segmentation, keypoints, oriented_boxes",
        ),
        ('"yolox"', '"yolov8"\nkeypoints = 17', "keypoints, their number, is needed for task 'keypoints'"),
        ('"yolox"', '"yolov8"\nkeypoint_names = ["a"]', "keypoint_names are only for task 'keypoints'"),
        (
            'kind = "onnx"',
            'kind = "onnx"\ntask = "keypoints"',
            "'keypoints' has no decoder 'yolox'; use yolov5, yolov8, yolo_end2end",
        ),
        (
            'kind = "onnx"',
            'kind = "onnx"\ntask = "classification"',
            "'classification' has no decoder 'yolox'; use classes",
        ),
        ('"yolox"', '"classes"\nactivation = "none"', "task 'detection' has no decoder 'classes'; use yolox"),
        ('resize = "letterbox"', "crop = 0.5", "crop is only for resize = 'crop'"),
    ],
)
def test_an_invalid_spec_is_refused_with_the_name_of_the_key(folder: Path, old: str, new: str, named: str) -> None:
    with pytest.raises(ModelError, match=named) as refused:
        read_net(replace_in_spec(folder, old, new))
    assert refused.value.code == "model_spec_invalid"


def test_a_classifier_says_what_its_numbers_are(folder: Path) -> None:
    classifier = SPEC.replace('kind = "onnx"', 'kind = "onnx"\ntask = "classification"').replace("yolox", "classes")
    (folder / "net.toml").write_text(classifier.replace("strides = [8, 16]", ""))
    with pytest.raises(ModelError, match="decoder 'classes' needs `activation`: softmax if"):
        read_net(folder)
    (folder / "net.toml").write_text(classifier.replace("strides = [8, 16]", 'activation = "sigmoid"'))
    assert read_net(folder).spec.task == "classification"


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        ('["a", "b"]', "3 keypoints and 2 keypoint_names"), ('["a", "b", "c\\n"]', r"name 2 contains U\+000A"),
        ("[]", "keypoint_names"), ('["a", 2, "c"]', "keypoint_names"), ('"abc"', "keypoint_names"),
    ],
)  # fmt: skip
def test_names_of_keypoints_are_one_text_for_each(folder: Path, names: str, fault: str) -> None:
    pose = SPEC.replace('kind = "onnx"', 'kind = "onnx"\ntask = "keypoints"').replace(
        '"yolox"', '"yolov8"\nkeypoints = 3'
    )
    (folder / "net.toml").write_text(pose.replace("strides = [8, 16]", f"keypoint_names = {names}"))
    with pytest.raises(ModelError, match=fault):
        read_net(folder)
    (folder / "net.toml").write_text(pose.replace("strides = [8, 16]", 'keypoint_names = ["a", "b", "c"]'))
    output = read_net(folder).spec.output
    assert output is not None
    assert output.keypoint_names == ("a", "b", "c")


def test_an_exported_program_is_refused_without_a_digest() -> None:
    with pytest.raises(ModelError, match="vouch"):
        parse_spec(b'kind = "exported"\nfile = "a.pt2"', "a.toml")


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secret.onnx", "sub/../../secret.onnx", "up/secret.onnx", "", "a\\u0000b"]
)
def test_a_file_outside_the_folder_of_the_spec_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "secret.onnx").write_bytes(WEIGHTS)
    (folder / "up").symlink_to(folder.parent)
    with pytest.raises(ModelError):
        read_net(replace_in_spec(folder, 'file = "net.onnx"', f'file = "{name}"'))


def test_a_labels_file_outside_the_folder_of_the_spec_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"'/etc/passwd'"):
        read_net(replace_in_spec(folder, "things.names", "/etc/passwd"))


def test_weights_with_another_digest_than_in_the_spec_are_refused(folder: Path) -> None:
    (folder / "net.onnx").write_bytes(b"other weights!!!")
    with pytest.raises(ModelError, match="sha256") as refused:
        read_net(folder)
    assert refused.value.code == "model_changed"


def test_weights_swapped_after_the_check_are_not_loaded(folder: Path) -> None:
    bundle = read_net(folder)
    (folder / "net.onnx").write_bytes(b"other weights!!!")
    assert hashlib.sha256(bundle.require_weights()).hexdigest() == bundle.weights_sha256


def test_a_model_resolved_without_its_weights_cannot_be_loaded(folder: Path) -> None:
    with pytest.raises(ValueError, match="keep_weights"):
        registry.load(registry.resolve("net", folder))


@pytest.mark.parametrize("model", ["net", "net.toml", "plain.onnx"])
def test_each_file_of_a_model_is_opened_once_from_the_check_to_the_load(folder: Path, model: str) -> None:
    (folder / "plain.onnx").write_bytes(onnx_with_spec())
    program = (
        "import sys; from collections import Counter; from pathlib import Path; from vidflow.domain.errors import ModelError;"
        "from vidflow.infra.models import onnx, registry; opened = Counter();"
        "names = {'net.toml', 'things.names', 'net.onnx', 'plain.onnx'};"
        "sys.addaudithook(lambda event, args: event == 'open' and opened.update(names & {Path(str(args[0])).name}))\n"
        f"try: registry.load(registry.resolve({model!r}, Path({str(folder)!r}), keep_weights=True))\n"
        "except ModelError as error: assert error.code == 'model_refused', error\n"
        "print(sorted(opened.items()))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    files = ["plain.onnx"] if model == "plain.onnx" else ["net.onnx", "net.toml", "things.names"]
    assert result.stdout.strip() == str([(name, 1) for name in files])


def test_a_worker_that_shares_its_models_reads_one_that_it_cannot_share_once(tmp_path: Path) -> None:
    write_package(tmp_path, "def make(bundle, parameters):\n    print(bundle.weights)\n    return object()\n")
    (tmp_path / "net.bin").write_bytes(WEIGHTS)
    (tmp_path / "mine.toml").write_text('kind = "other"\nfile = "net.bin"\n')
    program = (
        "import sys; from multiprocessing import Pipe; from pathlib import Path; from vidflow.domain.messages import Deploy;"
        "from vidflow.infra.kafka.settings import KafkaSettings; from vidflow.roles.worker import infer, link;"
        "messages, orders = Pipe(), Pipe(); opened = []\n"
        "sys.addaudithook(lambda event, args: event == 'open' and opened.append(Path(str(args[0])).name))\n"
        f"task = link.Task(Deploy('uuid', 1, 'clip.mp4', 'mine'), KafkaSettings(), models_dir=Path({str(tmp_path)!r}),"
        " inference_socket='no such socket')\n"
        "infer.load(task, link.Link(messages[0], orders[0]))\n"
        "print(opened.count('net.bin'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stdout.splitlines() == [repr(WEIGHTS), "1"], result.stderr


def onnx_with_spec(labels: str = '["thing"]', start: str = "") -> bytes:
    """Return an ONNX file without a graph, with a spec in its metadata. `start` precedes the spec."""
    lines = [line for line in SPEC.splitlines() if not line.startswith(("file", "sha256"))]
    text = (start + "\n".join(lines).replace('"things.names"', labels)).encode()
    entry = b"\x0a\x07vidflow" + b"\x12" + varint(len(text)) + text
    return b"\x72" + varint(len(entry)) + entry


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


def test_a_named_pipe_in_place_of_weights_does_not_block(folder: Path) -> None:
    (folder / "net.onnx").unlink()
    os.mkfifo(folder / "net.onnx")
    with pytest.raises(ModelError, match="not a regular file"):
        read_net(folder)


@pytest.mark.parametrize("label", LABELS)
def test_labels_are_text_of_any_script(folder: Path, label: str) -> None:
    for text in (label, f"{label}\n", f"{label}\r\n", f"{label}\r", f" {label}\t\n\n \n", f"\ufeff{label}\n"):
        (folder / "things.names").write_bytes(text.encode())
        assert read_net(folder).labels == (label,)
    replace_in_spec(folder, '"things.names"', f'["{label}"]')
    assert read_net(folder).labels == (label,)
    registry.check_labels(read_net(folder), [label])


@pytest.mark.parametrize("character", NOT_IN_LABELS)
def test_a_label_with_a_character_that_is_no_text_is_refused(folder: Path, character: str) -> None:
    (folder / "things.names").write_text(f"cat\nbell{character}x")
    with pytest.raises(ModelError, match=rf"things.names: label 1 contains U\+{ord(character):04X}"):
        read_net(folder)
    replace_in_spec(folder, '"things.names"', f'["cat", "bell\\u{ord(character):04x}x"]')
    with pytest.raises(ModelError, match="label 1 contains"):
        read_net(folder)


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        (b"a" * 201, "label 0 is longer than 200 characters"), (b"x\n" * 10_001, "10001 labels"), (b"\n", "0 labels"),
        (b"\xff\xfea\0", "not UTF-8 text"), (b"\xed\xa0\x80", "not UTF-8 text"),
    ],
)  # fmt: skip
def test_labels_that_are_too_long_too_many_or_not_utf_8_are_refused(folder: Path, labels: bytes, fault: str) -> None:
    (folder / "things.names").write_bytes(labels)
    with pytest.raises(ModelError, match=f"things.names: {fault}"):
        read_net(folder)


def test_a_spec_may_start_with_a_byte_order_mark(folder: Path) -> None:
    (folder / "net.toml").write_text("\ufeff" + SPEC, encoding="utf-8")
    assert read_net(folder).labels == ("person", "cat")
    (folder / "plain.onnx").write_bytes(onnx_with_spec(start="\ufeff"))
    assert registry.resolve("plain.onnx", folder).labels == ("thing",)


def test_the_labels_of_coco_are_built_in(folder: Path) -> None:
    for path in (folder / "things.names", folder / "net.onnx"):
        path.rename(folder.parent / path.name)
    (folder / "net.onnx").write_bytes(WEIGHTS)
    bundle = read_net(replace_in_spec(folder, '"things.names"', '"coco80"'))
    assert (len(bundle.labels), bundle.labels[0], bundle.labels[79]) == (80, "person", "toothbrush")
    (folder / "plain.onnx").write_bytes(onnx_with_spec(labels='"coco80"'))
    assert registry.resolve("plain.onnx", folder).labels == bundle.labels


def test_an_onnx_file_that_contains_its_spec_cannot_name_a_file_of_labels(folder: Path) -> None:
    (folder / "plain.onnx").write_bytes(onnx_with_spec(labels='"things.names"'))
    with pytest.raises(ModelError, match="list of labels"):
        registry.resolve("plain.onnx", folder)


def digest_of(folder: Path) -> str | None:
    return read_net(folder).sha256


def test_the_digest_covers_the_spec_the_labels_and_the_weights(folder: Path) -> None:
    seen = {digest_of(folder)}
    replace_in_spec(folder, "score = 0.3", "score = 0.2")
    seen.add(digest_of(folder))
    replace_in_spec(folder, "[input]", '[input]\nresample = "area"')
    seen.add(digest_of(folder))
    (folder / "things.names").write_text("cat\nperson\n")
    seen.add(digest_of(folder))
    (folder / "net.onnx").write_bytes(b"other weights!!!")
    (folder / "net.toml").write_text("\n".join(line for line in SPEC.splitlines() if "sha256" not in line))
    seen.add(digest_of(folder))
    assert len(seen) == 5
    assert digest_of(folder) in seen


def test_a_spec_in_the_models_folder_is_named_by_its_stem(folder: Path) -> None:
    ref = registry.resolve("net", folder)
    assert (ref.kind, ref.needs, ref.labels) == ("onnx", "runner", ("person", "cat"))
    assert ref.sha256 == digest_of(folder)
    assert registry.resolve("net.toml", folder).sha256 == ref.sha256
    assert registry.resolve(str(folder / "net.toml"), any_onnx=True).sha256 == ref.sha256


def test_an_unknown_model_is_refused_with_the_available_names(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"motion.*ssdlite320_mobilenet_v3_large.*net"):
        registry.resolve("yolo", folder)


@pytest.mark.parametrize(
    "path", ["../elsewhere.toml", "/etc/passwd", "/nowhere/at/all.toml", "a\0.toml", "up/elsewhere.toml"]
)
def test_a_path_outside_the_models_folder_is_refused(folder: Path, path: str) -> None:
    (folder.parent / "elsewhere.toml").write_text(SPEC)
    (folder / "up").symlink_to(folder.parent)
    with pytest.raises(ModelError):
        registry.resolve(path, folder)
    with pytest.raises(ModelError):
        registry.resolve(path)


def test_an_invalid_spec_is_listed_with_its_error_and_hides_no_other_model(folder: Path) -> None:
    (folder / "broken.toml").write_text("kind = 3")
    listed = {entry.name: entry for entry in registry.list_models(folder)}
    assert listed["net"].error is None
    assert "kind" in (listed["broken"].error or "")
    assert listed["motion"].needs == "runner"


@pytest.mark.parametrize("name", ["weights.pth", "program.pt2", "net.safetensors"])
def test_weights_without_a_spec_are_refused_with_advice(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    with pytest.raises(ModelError, match="write a spec"):
        registry.resolve(name, folder)


def test_an_unknown_label_is_refused_before_the_model_is_loaded(folder: Path) -> None:
    ref = registry.resolve("net", folder)
    registry.check_labels(ref, ("cat",))
    with pytest.raises(ParameterError, match=r"'persn'.*person"):
        registry.check_labels(ref, ("cat", "persn"))


def test_a_digest_other_than_that_of_the_scenario_is_refused(folder: Path) -> None:
    ref = registry.resolve("net", folder)
    registry.require_same(ref, ref.sha256)
    registry.require_same(ref, None)
    with pytest.raises(ModelError, match="differs from the one"):
        registry.require_same(ref, "0" * 64)


def test_a_missing_library_is_reported_with_the_command_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(
        MissingExtra,
        match=r"torch\. Install the extra 'torch' \(in vidflow's source folder: pip install '\.\[torch\]'\)\.$",
    ):
        registry.load(registry.resolve("ssdlite320_mobilenet_v3_large"))


def write_package(folder: Path, module: str) -> None:
    """Write a package with the model kind `other`, which the function `make` of the module loads."""
    package = folder / "other_models-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: other-models\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[vidflow.models]\nother = other_models_of_a_test:make\n")
    (folder / "other_models_of_a_test.py").write_text(module)


def test_models_of_other_packages_are_found_by_their_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path, "def make(bundle, parameters):\n    return (bundle, parameters)\n")
    (tmp_path / "mine.toml").write_text('kind = "other"\noptions = {depth = 3}\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._entry_points.cache_clear()
    try:
        model: Any = registry.load(registry.resolve("other"), Parameters(score_threshold=0.7))
        assert model._model == (None, Parameters(score_threshold=0.7))
        model_of_spec: Any = registry.load(registry.resolve("mine", tmp_path, keep_weights=True))
    finally:
        monkeypatch.undo()
        registry._entry_points.cache_clear()
    bundle = model_of_spec._model[0]
    assert isinstance(bundle, Bundle)
    assert bundle.spec.options == {"depth": 3}


def test_resolving_and_listing_models_imports_no_heavy_library(folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from vidflow.infra.models import registry;"
        f"folder = Path({str(folder)!r}); registry.list_models(folder);"
        "[registry.resolve(name, folder) for name in ('net', 'yolox_nano')];"
        "print({'numpy', 'torch', 'torchvision', 'onnxruntime', 'scipy', 'av'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "content", [b"\x00", b"\xff" * 40, b"\x72\xff\xff\xff\xff\x7f", b"plain text, no model", b"\x72\x02\x0a\xff"]
)
def test_bytes_that_are_not_an_onnx_file_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelError, match="not an ONNX model"):
        read_metadata(io.BytesIO(content), tmp_path / "bad.onnx")


def test_an_onnx_file_without_a_graph_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "plain.onnx").write_bytes(b"\x08\x08")  # ir_version = 8 and nothing else
    with pytest.raises(ModelError, match=r"Inputs: none\. Outputs: none\. Write a spec, plain\.toml"):
        registry.resolve("plain.onnx", tmp_path)
