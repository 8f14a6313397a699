"""`--labels-file`: ONNX files that do not name their classes, with the labels of another file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from tests.onnx_nets import constant_net, image_input, with_metadata
from tests.pictures import picture_of

from vidflow.commands.run import run
from vidflow.commands.run.labelled_model import labelled_model
from vidflow.domain.errors import ModelError, ParameterError
from vidflow.infra.models import registry
from vidflow.settings import RunOptions

END2END = np.array([[[48, 24, 80, 40, 0.75, 1]] + [[0, 0, 0, 0, 0, 0]] * 299], dtype=np.float32)


@pytest.fixture
def net(tmp_path: Path) -> str:
    """A file of YOLOv10's form without metadata, so that even the number of its classes is unknown. It finds class 1."""
    path = tmp_path / "net.onnx"
    path.write_bytes(
        constant_net({"output0": END2END}, image_input(1, 3, 64, 128, dtype=TensorProto.FLOAT)).SerializeToString()
    )
    return str(path)


def labels_file(folder: Path, *labels: str) -> str:
    path = folder / "NAMES.txt"
    path.write_text("\n".join(labels))
    return str(path)


def found_label(model: str) -> str:
    loaded = registry.load(registry.resolve(model, any_onnx=True, keep_weights=True))
    [[found]] = loaded.infer([picture_of(np.zeros((64, 128, 3), dtype=np.uint8))])
    assert found.box == (48, 24, 80, 40)
    return found.label


def test_detections_have_the_labels_of_the_file(tmp_path: Path, net: str) -> None:
    with labelled_model(net, labels_file(tmp_path, "cat", "größe, lang")) as model:
        assert found_label(model) == "größe, lang"
    assert not Path(model).parent.exists()


def test_the_classes_of_coco_are_named_without_a_file(net: str) -> None:
    with labelled_model(net, "coco80") as model:
        assert found_label(model) == "bicycle"
    with labelled_model(net, "coco91") as model:
        assert found_label(model) == "person"


def test_a_file_that_is_a_link_has_its_labels_too(tmp_path: Path, net: str) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "blob").write_bytes(Path(net).read_bytes())
    (tmp_path / "linked.onnx").symlink_to("hub/blob")
    with labelled_model(str(tmp_path / "linked.onnx"), "coco80") as model:
        assert found_label(model) == "bicycle"


def test_a_model_without_a_labels_file_keeps_its_name() -> None:
    with labelled_model("yolox_nano", None) as model:
        assert model == "yolox_nano"


@pytest.mark.parametrize("model", ["yolox_nano", "net.toml", "net"])
def test_labels_for_another_model_than_an_onnx_file_are_refused(tmp_path: Path, model: str) -> None:
    refused = pytest.raises(ParameterError, match=r"--labels-file is for an \.onnx file")
    with refused, labelled_model(model, labels_file(tmp_path, "cat")):
        pass


def test_labels_for_a_file_with_its_own_spec_are_refused(tmp_path: Path, net: str) -> None:
    model = with_metadata(constant_net({"output0": END2END}, image_input(1, 3, 64, 128)), {"vidflow": 'kind = "onnx"'})
    Path(net).write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="contains its spec"), labelled_model(net, labels_file(tmp_path, "cat")):
        pass


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a" * 201, b"a\n" * 10_001, b"a" * (1024 * 1024 + 1)])
def test_a_file_that_is_no_list_of_labels_is_refused(tmp_path: Path, net: str, content: bytes) -> None:
    (tmp_path / "NAMES.txt").write_bytes(content)
    with pytest.raises(ModelError, match=r"NAMES\.txt"), labelled_model(net, str(tmp_path / "NAMES.txt")):
        pass


@pytest.mark.parametrize("name", ["none.txt", "a\0b", "x" * 10_000])
def test_a_missing_labels_file_is_refused_with_its_name(net: str, name: str) -> None:
    with pytest.raises(ModelError, match=r"Cannot read the labels file .* or use coco80"), labelled_model(net, name):
        pass


@pytest.mark.parametrize("options", [{"url": "http://localhost:1"}, {"models_dir": Path("/models")}])
def test_a_run_by_a_server_that_cannot_read_the_labels_is_refused(net: str, options: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match="write-spec"):
        run(RunOptions(video="sample:bikes", model=net, labels_file="coco80", **options))  # type: ignore[arg-type]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_run_prints_the_labels_of_the_file(tmp_path: Path, net: str) -> None:
    command = [sys.executable, "-m", "vidflow", "run", "sample:bikes", "--fps", "1", "--output", "csv", "--model", net]
    result = subprocess.run(
        [*command, "--labels-file", labels_file(tmp_path, "cat", "dog")],
        env={name: value for name, value in os.environ.items() if not name.startswith("VIDFLOW_")},
        capture_output=True, text=True, check=True, timeout=200,
    )  # fmt: skip
    labels = [line.split(",")[4] for line in result.stdout.splitlines()[1:]]
    assert labels
    assert set(labels) == {"dog"}
