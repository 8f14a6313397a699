"""An exported program that runs code when loaded is loaded neither for a request nor for a command from Kafka."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests import clips
from tests.integration.api_server import assert_problem, ready_api
from tests.integration.runner_harness import ControlPlane, RunnerProcess, make_deploy, new_uuid, running_runner

from vidflow.commands.dev import Stack
from vidflow.domain.errors import ModelError
from vidflow.domain.messages import EndReason, Entry
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.models import registry
from vidflow.infra.models.label_files import BUILT_IN_FOLDER
from vidflow.infra.process.stopping import Stop
from vidflow.settings import ApiOptions, DevOptions

pytest.importorskip("torch", reason="the extra torch is not installed")
from tests.hostile_models import write_evil_program

URL = "http://camera.example/video.mp4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def marker(folder: Path) -> Path:
    return folder / "marker"


@pytest.fixture(scope="module")
def evil(folder: Path, marker: Path) -> Path:
    """The spec of the program, left by an attacker in a folder on the machine."""
    (folder / "tmp").mkdir()
    return write_evil_program(folder / "tmp", marker)


@pytest.fixture(scope="module")
def models(folder: Path, evil: Path) -> Path:
    """The operator's models folder, in which the attacker has placed links and specs that lead to the program."""
    models = folder / "models"
    models.mkdir()
    (models / "linked.toml").symlink_to(evil)
    (models / "linked").symlink_to(evil.parent)
    (models / "outside.toml").write_text(evil.read_text().replace('"evil.pt2"', '"linked/evil.pt2"'))
    (models / "dots.toml").write_text(evil.read_text().replace('"evil.pt2"', '"../tmp/evil.pt2"'))
    return models


@pytest.fixture(autouse=True)
def _no_code_ran(marker: Path) -> Iterator[None]:
    yield
    assert not marker.exists()


def attack_names(evil: Path, models: Path) -> list[str]:
    """Return the model names that an attacker may try."""
    return [
        str(evil), f"{evil.parent}/./evil.toml", f"/proc/self/root{evil}", str(models / "linked.toml"), str(models / "linked/evil.toml"),
        "linked", "outside", "dots", "linked.toml", "linked/evil.toml", "outside.toml", str(evil.with_suffix(".pt2")),
    ]  # fmt: skip


def test_loading_the_program_from_the_operators_folder_runs_its_code(tmp_path: Path) -> None:
    write_evil_program(tmp_path, tmp_path / "marker")
    with pytest.raises(ModelError, match=r"torch\.export cannot read it"):
        registry.load(registry.resolve("evil", tmp_path, keep_weights=True))
    assert (tmp_path / "marker").exists(), "the program should have run its code"


@pytest.mark.parametrize("with_models", [False, True])
def test_requests_for_the_program_are_refused(
    database_url: str, evil: Path, models: Path, *, with_models: bool
) -> None:
    options = ApiOptions(
        database_url=database_url, any_file=True, any_onnx=True, models_dir=models if with_models else None
    )
    with ready_api(options) as client:
        for name in attack_names(evil, models):
            answer = client.post("/scenario/init", json={"source": URL, "model": name})
            assert answer.status_code == 422, (name, answer.text)
            assert answer.json()["code"].startswith("model_")
            assert "Cannot" not in answer.text, "a file was opened"
        by_path = client.post("/scenario/init", json={"source": URL, "model": str(evil)})
        code = "model_unknown" if with_models else "model_refused"
        assert "models folder" in assert_problem(by_path, 422, code)["detail"]
        assert client.get("/scenario").json()["items"] == []


def test_any_file_is_about_videos_only(database_url: str, tmp_path: Path) -> None:
    for name in ("yolox_nano.toml", "yolox_nano.onnx"):
        (tmp_path / name).write_bytes((BUILT_IN_FOLDER / name).read_bytes())
    (tmp_path / "link.toml").symlink_to("yolox_nano.toml")
    with ready_api(ApiOptions(database_url=database_url, any_file=True)) as client:
        for name in ("yolox_nano.toml", "yolox_nano.onnx", "link.toml"):
            answer = client.post("/scenario/init", json={"source": URL, "model": str(tmp_path / name)})
            assert "accepts models by name only" in assert_problem(answer, 422, "model_refused")["detail"]


@pytest.mark.long
@pytest.mark.parametrize("with_models", [False, True])
def test_commands_from_kafka_do_not_load_the_program(
    kafka_settings: KafkaSettings, folder: Path, evil: Path, models: Path, *, with_models: bool
) -> None:
    clip = clips.constant_rate(folder / "clip.mp4", frames=5)
    options = ["--any-file", "--any-onnx", *(["--models-dir", str(models)] if with_models else [])]
    with closing(ControlPlane(kafka_settings)) as stage, running_runner(kafka_settings, folder, *options) as process:
        runner_id = process.wait_for_id(stage)
        for model in attack_names(evil, models):
            entry = _ended(stage, process, runner_id, clip, model)
            assert (entry.reason, entry.fatal) == (EndReason.ERROR, True), model
            assert entry.error is not None
            assert entry.error.code.startswith("model_"), (model, entry)


def _ended(stage: ControlPlane, process: RunnerProcess, runner_id: str, clip: Path, model: str) -> Entry:
    uuid = new_uuid()
    stage.send_command(runner_id, make_deploy(uuid, clip, model))
    entry = stage.wait_until_ended(runner_id, uuid)
    assert process.process.poll() is None
    return entry


@pytest.mark.parametrize("with_models", [False, True])
def test_dev_allows_onnx_paths_only_without_a_models_folder(models: Path, *, with_models: bool) -> None:
    stack = Stack(DevOptions(models_dir=models if with_models else None), print, print, Stop())
    for kind in ("api", "runner"):
        variables = stack._variables(kind)
        assert variables["VIDFLOW_ANY_ONNX"] == ("false" if with_models else "true")
