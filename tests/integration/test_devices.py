"""The device of models, with the real libraries: a GPU that cannot be used is refused, and the CPU never replaces it."""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator, Mapping
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
from tests import clips
from tests.integration.cli_process import CLOSED_KAFKA, LIMIT_S, build_environment
from tests.integration.runner_harness import ControlPlane, make_deploy, new_uuid
from tests.integration.vidflow_process import running_vidflow
from tests.pictures import FramePicture, picture_of

from vidflow.domain.device import AUTO, CPU, Device, DeviceKind
from vidflow.domain.errors import DeviceUnavailable, ModelError, Unavailable
from vidflow.domain.messages import EndReason
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.models import registry
from vidflow.infra.models.cuda import raise_gpu_failure
from vidflow.infra.models.onnx import find_device, open_session
from vidflow.roles.runner.supervision import Workers
from vidflow.roles.worker.link import WorkerEnd
from vidflow.settings import RunnerOptions

GPU = Device(DeviceKind.CUDA, 0)


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


without_gpu = pytest.mark.skipif(has_driver(), reason="this machine has a CUDA driver")
with_gpu = pytest.mark.skipif(not has_driver(), reason="this machine has no CUDA driver")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of each kind of torch, each in full and in half precision."""
    torch = pytest.importorskip("torch", reason="the extra torch is not installed")
    torchvision = pytest.importorskip("torchvision", reason="the extra torch is not installed")
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(11)
    net = torchvision.models.get_model(
        "ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=2
    )
    torch.save(net.state_dict(), folder / "ssdlite.pth")
    torch.export.save(torch.export.export(_build_cells(), (torch.zeros(1, 3, 16, 32),)), folder / "cells.pt2")
    digest = hashlib.sha256((folder / "cells.pt2").read_bytes()).hexdigest()
    specs = {
        "torchvision": 'architecture = "ssdlite320_mobilenet_v3_large"\nfile = "ssdlite.pth"\nlabels = ["__background__", "thing"]',
        "exported": f'file = "cells.pt2"\nsha256 = "{digest}"\nlabels = ["thing"]\n'
        '[input]\nsize = [16, 32]\nscale = 0.00392156862745098\n[output]\ndecoder = "yolox"\nstrides = [8]',
    }
    for kind, text in specs.items():
        (folder / f"{kind}.toml").write_text(f'kind = "{kind}"\n{text}\n')
        (folder / f"{kind}_half.toml").write_text(f'kind = "{kind}"\nprecision = "half"\n{text}\n')
    return folder


def _build_cells() -> object:
    import torch  # noqa: PLC0415 - an extra

    class Cells(torch.nn.Module):
        """A net with YOLOX's output for 16 x 32 pixels and one class. The score of a cell is its mean brightness."""

        def __init__(self) -> None:
            super().__init__()
            self.mean = torch.nn.Conv2d(1, 1, 8, stride=8, bias=False)
            torch.nn.init.constant_(self.mean.weight, 1 / 64)

        def forward(self, image: object) -> object:
            score = self.mean(image[:, :1]).flatten(1)[..., None]  # type: ignore[index]
            return torch.cat([torch.zeros_like(score).expand(-1, -1, 4), score, torch.ones_like(score)], dim=2)

    return Cells()


def bright_picture() -> FramePicture:
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[8:, 24:] = 255
    return picture_of(pixels)


@without_gpu
@pytest.mark.parametrize("kind", ["torchvision", "exported"])
def test_a_model_of_torch_runs_on_the_cpu_or_refuses_a_gpu_that_is_not_there(models: Path, kind: str) -> None:
    bundle = registry.resolve(kind, models, keep_weights=True)
    assert [registry.load(bundle, device=device).device for device in (CPU, AUTO)] == [CPU, CPU]
    with pytest.raises(DeviceUnavailable, match=r"Device cuda:0 cannot be used: .* Install .* set --device cpu\."):
        registry.load(bundle, device=GPU)


@without_gpu
def test_an_onnx_model_runs_on_the_cpu_or_refuses_a_gpu_that_is_not_there() -> None:
    bundle = registry.resolve("yolox_nano", keep_weights=True)
    assert [registry.load(bundle, device=device).device for device in (CPU, AUTO)] == [CPU, CPU]
    with pytest.raises(DeviceUnavailable, match=r"Device cuda:0 cannot be used: .* Install .* set --device cpu\."):
        registry.load(bundle, device=GPU)


def test_a_session_that_onnxruntime_opened_on_the_cpu_instead_of_the_gpu_is_refused() -> None:
    bundle = registry.resolve("yolox_nano", keep_weights=True)
    session = open_session(bundle.require_weights(), bundle.origin)
    assert (find_device(session, CPU), find_device(session, AUTO)) == (CPU, CPU)
    with pytest.raises(DeviceUnavailable, match=r"onnxruntime [\d.]+ cannot start CUDA"):
        find_device(session, GPU)


def test_motion_runs_on_the_cpu_whatever_is_requested() -> None:
    assert registry.load(registry.resolve("motion"), device=GPU).device == CPU


@without_gpu
@pytest.mark.parametrize("kind", ["torchvision", "exported"])
@pytest.mark.parametrize("device", [CPU, AUTO])
def test_half_precision_is_refused_on_the_cpu(models: Path, kind: str, device: Device) -> None:
    bundle = registry.resolve(f"{kind}_half", models, keep_weights=True)
    with pytest.raises(ModelError, match=r"'half', which needs a GPU, .* --device cuda:0, or remove `precision`"):
        registry.load(bundle, device=device)


@without_gpu
@pytest.mark.parametrize("command", [["runner", "--kafka", CLOSED_KAFKA], ["bench"], ["models", "check", "yolox_nano"]])
def test_a_command_refuses_a_gpu_that_is_not_there_in_one_line(command: list[str]) -> None:
    end = subprocess.run(
        [sys.executable, "-m", "vidflow", *command], env=build_environment({"VIDFLOW_DEVICE": "cuda:0"}),
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert end.returncode == 3
    assert end.stderr.splitlines()[-1].startswith("vidflow: Device cuda:0 cannot be used: ")
    assert "Traceback" not in end.stderr


@pytest.fixture
def workers(kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    """The workers of a runner that was started with --device cuda:0, without the runner, which checks the device itself."""
    monkeypatch.setattr(forkserver, "connect_to_new_process", forkserver.connect_to_new_process)  # restored at the end
    workers = Workers(RunnerOptions(kafka=kafka_settings, any_file=True, device=GPU))
    workers.prepare()
    yield workers
    workers.kill_all(EndReason.STOPPED)


@without_gpu
def test_a_worker_whose_gpu_is_not_there_ends_with_a_permanent_error(
    workers: Workers, control_plane: ControlPlane, tmp_path: Path
) -> None:
    uuid = new_uuid()
    workers.launch(make_deploy(uuid, clips.constant_rate(tmp_path / "clip.mp4"), "yolox_nano"))
    reader, _writer = multiprocessing.Pipe(duplex=False)
    ends: list[WorkerEnd] = []

    def is_ended() -> bool:
        ends.extend(event.message for event in workers.wait(0.2, reader) if isinstance(event.message, WorkerEnd))
        return bool(ends)

    control_plane.wait_until(is_ended, "the worker has ended")
    [end] = ends
    assert end.error is not None
    assert (end.reason, end.error.code, end.fatal) == (EndReason.ERROR, "device_unavailable", True)
    control_plane.wait_until(lambda: control_plane.opened(uuid), "the properties of its source arrive")
    assert [opened.device for opened in control_plane.opened(uuid)] == [None]
    assert control_plane.frames(uuid) == []


@without_gpu
@pytest.mark.long
def test_a_scenario_shows_that_auto_became_the_cpu(tmp_path: Path) -> None:
    with running_vidflow(tmp_path) as vidflow:
        uuid = vidflow.create_scenario(clips.constant_rate(tmp_path / "clip.mp4"), "yolox_nano", "all")
        assert (vidflow.wait_until_inactive(uuid)["outcome"], vidflow.scenario(uuid)["device"]) == ("completed", "cpu")


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB",
        "CUDA error: an illegal memory access was encountered",
        "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 1073741824",
    ],
)
def test_a_failure_of_the_gpu_is_not_one_of_the_model(text: str) -> None:
    with pytest.raises(Unavailable, match=r"cuda:0 failed \(reason\)\. nvidia-smi"):
        raise_gpu_failure(GPU, RuntimeError(text), "reason")
    raise_gpu_failure(CPU, RuntimeError(text), "reason")
    raise_gpu_failure(GPU, RuntimeError("Non-zero status code returned while running Reshape node"), "reason")


# --- only on machines with a GPU

TOLERANCES: Mapping[str, float] = {"yolox_nano": 1e-3, "torchvision": 1e-3, "exported": 1e-6}


@with_gpu
@pytest.mark.parametrize("name", TOLERANCES)
def test_a_model_finds_on_the_gpu_what_it_finds_on_the_cpu(models: Path, name: str) -> None:
    bundle = registry.resolve(name, models, keep_weights=True)
    picture = bright_picture()
    on_cpu, on_gpu = (registry.load(bundle, device=device) for device in (CPU, GPU))
    assert on_gpu.device == GPU
    [expected], [found] = on_cpu.infer([picture]), on_gpu.infer([picture])
    assert [each.label for each in found] == [each.label for each in expected]
    scores = [each.score for each in expected]
    assert [each.score for each in found] == pytest.approx(scores, abs=TOLERANCES[name])


@with_gpu
def test_half_precision_finds_the_same_on_the_gpu(models: Path) -> None:
    [found] = registry.load(registry.resolve("exported_half", models, keep_weights=True), device=GPU).infer(
        [bright_picture()]
    )
    assert [(each.label, each.box) for each in found] == [("thing", (20.0, 4.0, 28.0, 12.0))]
    assert [each.score for each in found] == pytest.approx([1.0], abs=1e-2)
