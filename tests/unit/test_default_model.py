"""The model that is part of vidflow: what it is, what replaces it, and what `vidflow models` and `vidflow run` say about it."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import msgspec
import pytest

from vidflow.cli import PROGRAM
from vidflow.cli.app import app
from vidflow.commands.run.request import build_request, check_model
from vidflow.contract import InitScenario
from vidflow.domain.errors import MissingExtra, ModelError
from vidflow.domain.scenario import DEFAULT_MODEL
from vidflow.infra.models import registry
from vidflow.infra.models.label_files import BUILT_IN_LABELS, read_labels
from vidflow.infra.models.spec import UNUSED_LABELS
from vidflow.settings import RunOptions, split_labels

ROOT = Path(__file__).parents[2]
BUILT_IN = ROOT / "src/vidflow/infra/models/builtin"
VIDEO = "http://camera.example/video.mp4"
DIGEST = "c81a2ad9c176a56433ca2e3f46272d14952f4622a49931372934d2a52864df35"
"""Scenarios remember it: with another digest, those that run during an upgrade fail with `model_changed`."""


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Return the lines that a command prints."""
    app(arguments, prog_name=PROGRAM, standalone_mode=False)
    return capsys.readouterr().out.splitlines()


def hide(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == library else object())


def test_the_default_model_needs_no_models_folder(tmp_path: Path) -> None:
    for models_dir in (None, tmp_path, tmp_path / "none"):
        bundle = registry.resolve(DEFAULT_MODEL, models_dir)
        assert (bundle.name, bundle.kind, bundle.needs, len(bundle.labels)) == ("yolox_nano", "onnx", "runner", 80)
        assert bundle.sha256 == DIGEST
        assert registry.list_models(models_dir)[0] == registry.ModelListing("yolox_nano", "onnx", "runner")


COCO = """
person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign parking_meter
bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee skis
snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle wine_glass cup
fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch
potted_plant bed dining_table toilet tv laptop mouse remote keyboard cell_phone microwave oven toaster sink
refrigerator book clock vase scissors teddy_bear hair_drier toothbrush
"""


def test_the_default_model_has_the_names_of_coco_in_its_order() -> None:
    names = tuple(name.replace("_", " ") for name in COCO.split())
    assert registry.resolve(DEFAULT_MODEL).labels == names == read_labels(BUILT_IN_LABELS["coco80"])
    numbered = read_labels(BUILT_IN_LABELS["coco91"])
    assert tuple(name for name in numbered if name not in UNUSED_LABELS) == names


def test_the_default_model_is_that_of_requests_and_of_vidflow_run() -> None:
    assert msgspec.json.decode(b'{"source": "a.mp4"}', type=InitScenario).model == DEFAULT_MODEL
    assert build_request(RunOptions(video=VIDEO)).model == DEFAULT_MODEL


def test_a_spec_of_the_same_name_in_the_models_folder_replaces_the_default_model(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes((BUILT_IN / "yolox_nano.onnx").read_bytes())
    text = (BUILT_IN / "yolox_nano.toml").read_text().replace("yolox_nano.onnx", "net.onnx")
    (tmp_path / "yolox_nano.toml").write_text(text)
    own = registry.resolve("yolox_nano", tmp_path)
    assert own.path == tmp_path / "yolox_nano.toml"
    with pytest.raises(ModelError, match="differs from the one"):
        registry.require_same(registry.resolve("yolox_nano"), own.sha256)
    (tmp_path / "yolox_nano.toml").write_text("kind = 3")
    with pytest.raises(ModelError, match=r"Invalid model spec yolox_nano\.toml"):
        registry.resolve("yolox_nano", tmp_path)


def test_a_missing_library_of_the_default_model_is_reported_with_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide(monkeypatch, "onnxruntime")
    with pytest.raises(MissingExtra, match=r"'yolox_nano' needs onnxruntime\. .*pip install '\.\[runner\]'"):
        check_model(RunOptions(video=VIDEO))
    lines = output(capsys, "models", "list")
    assert lines[0].split() == ["yolox_nano", "onnx", "extra", "runner,", "not", "installed:", "onnxruntime"]


def test_models_list_shows_each_model_with_its_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.toml").write_text("kind = 3")
    (tmp_path / "yard.toml").write_text('kind = "motion"')
    lines = output(capsys, "models", "list", "--models-dir", str(tmp_path))
    assert [line.split()[0] for line in lines] == registry.list_names(tmp_path)
    assert lines[-2].split(maxsplit=2) == [
        "broken",
        "unusable",
        "Invalid model spec broken.toml: Expected `str`, got `int` - at `$.kind`.",
    ]
    assert lines[-1].split() == ["yard", "motion", "extra", "runner,", "installed"]


def test_models_show_describes_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    shown = dict(line.split(maxsplit=1) for line in output(capsys, "models", "show", "yolox_nano"))
    assert list(shown) == [
        "name", "kind", "task", "needs", "license", "spec", "file", "sha256", "labels", "input", "output", "thresholds",
    ]  # fmt: skip
    assert shown["license"].startswith("Apache-2.0")
    assert shown["sha256"].startswith(DIGEST)
    assert shown["labels"].startswith("80: person, bicycle, car, ")
    assert shown["input"].startswith("size (416, 416), resize letterbox, ")
    assert not re.search(r"\bNone\b", str(shown))
    assert shown["thresholds"] == "score 0.4, nms_iou 0.45, max_detections 300"


def test_models_show_takes_a_path_and_escapes_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.onnx").write_bytes(b"weights")
    text = (
        (BUILT_IN / "yolox_nano.toml")
        .read_text()
        .replace('"coco80"', '["a\u200cb", "c"]')
        .replace("yolox_nano.onnx", "net.onnx")
    )
    (tmp_path / "net.toml").write_text("\n".join(line for line in text.splitlines() if not line.startswith("sha256")))
    shown = dict(line.split(maxsplit=1) for line in output(capsys, "models", "show", str(tmp_path / "net.toml")))
    assert shown["labels"] == r"2: a\u200cb, c"


def test_the_license_of_each_built_in_model_is_part_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    licenses = {path for pattern in project["license-files"] for path in ROOT.glob(pattern)}
    assert {ROOT / "LICENSE", *BUILT_IN.glob("LICENSE.*")} == licenses
    for spec in BUILT_IN.glob("*.toml"):
        text = tomllib.loads(spec.read_text())["license"]
        assert text.startswith(project["license"])
        assert (BUILT_IN / text.partition(", see ")[2]) in licenses


def test_no_file_of_the_default_model_is_ignored_by_git() -> None:
    """Files that git ignores are not in the wheel."""
    files = [str(path) for path in BUILT_IN.iterdir()]
    assert len(files) >= 4
    end = subprocess.run(["git", "check-ignore", *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (end.returncode, end.stdout) == (1, "")


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("cat,dog", ("cat", "dog")),
        ('"tench, Tinca tinca",cat', ("tench, Tinca tinca", "cat")),
        ("\u3000a\u200cb", ("\u3000a\u200cb",)),
    ],
)
def test_labels_of_the_command_line_may_contain_commas(text: str, labels: tuple[str, ...]) -> None:
    assert split_labels(text) == labels
