"""Models that need torch: torchvision's detectors from weights on disk, and exported programs that their spec vouches for."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.pictures import FramePicture, picture_of, pictures

from vidflow.domain.errors import ModelError, Unavailable
from vidflow.domain.messages import Parameters
from vidflow.infra.models import registry

torch = pytest.importorskip("torch", reason="the extra torch is not installed")
torchvision = pytest.importorskip("torchvision", reason="the extra torch is not installed")

SSDLITE = """
kind = "torchvision"
architecture = "ssdlite320_mobilenet_v3_large"
file = "ssdlite.pth"
labels = ["__background__", "person", "cat"]
[thresholds]
score = 0.3
max_detections = 20
"""


def ssdlite(**arguments: float) -> Any:
    """An ssdlite of fixed random weights, its batch norms set so that what it sees depends on the picture."""
    torch.manual_seed(11)
    net = torchvision.models.get_model(
        "ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=3, **arguments
    )
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over what it is shown
    with torch.inference_mode():
        net.head(list(net.backbone(torch.rand(4, 3, 320, 320) * 2 - 1).values()))
    return net.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with an ssdlite of fixed random weights."""
    models = tmp_path_factory.mktemp("models")
    torch.save(ssdlite().state_dict(), models / "ssdlite.pth")
    (models / "ssdlite.toml").write_text(SSDLITE)
    return models


@pytest.fixture(scope="module")
def kept_frames(shared: Path) -> list[FramePicture]:
    return list(pictures(shared / "videos/one-by-one-person.mp4", (100, 300)))


def test_a_detector_from_a_state_dict_sees_what_torchvision_itself_sees(
    folder: Path, kept_frames: list[FramePicture]
) -> None:
    model = registry.load(registry.resolve("ssdlite", folder))
    seen = model.infer(kept_frames[:1])[0]
    net = ssdlite(score_thresh=0.3, nms_thresh=0.45, detections_per_img=20)
    tensor = torch.from_numpy(kept_frames[0].image(320, 320)).permute(2, 0, 1).float() / 255
    with torch.inference_mode():
        plain = net([tensor])[0]
    assert model.input_size == (320, 320)
    assert len(seen) == len(plain["scores"]) == 20
    assert len({one.score for one in seen}) > 10
    order = plain["scores"].argsort(descending=True)
    assert [one.score for one in seen] == pytest.approx(plain["scores"][order].tolist(), abs=1e-3)
    boxes = plain["boxes"][order] * torch.tensor([768 / 320, 432 / 320] * 2)
    assert np.array([one.box for one in seen]) == pytest.approx(boxes.clamp(min=0).numpy(), abs=1.0)


def test_the_same_frames_give_the_same_detections_from_a_detector_loaded_anew(
    folder: Path, kept_frames: list[FramePicture]
) -> None:
    one, other = (registry.load(registry.resolve("ssdlite", folder)) for _ in range(2))
    assert one.infer(kept_frames) == other.infer(kept_frames)
    assert all(one.infer(kept_frames))


def test_a_scenario_sets_the_threshold_and_the_labels_of_a_detector(
    folder: Path, kept_frames: list[FramePicture]
) -> None:
    ref = registry.resolve("ssdlite", folder)
    assert ref.labels == ("__background__", "person", "cat")
    assert registry.load(ref, Parameters(score_threshold=1.0)).infer(kept_frames) == [(), ()]
    cats = registry.load(ref, Parameters(labels=("cat",))).infer(kept_frames)
    assert {one.label for frame in cats for one in frame} <= {"cat"}


def test_a_detector_that_keeps_the_shape_of_pictures_runs_too(tmp_path: Path, kept_frames: list[FramePicture]) -> None:
    torch.manual_seed(5)
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    net = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=2)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    (tmp_path / "net.toml").write_text(
        f'kind = "torchvision"\narchitecture = "{name}"\nfile = "net.pth"\nlabels = ["__background__", "thing"]\n'
    )
    model = registry.load(registry.resolve("net", tmp_path), Parameters(score_threshold=0.0))
    (seen,) = model.infer(kept_frames[:1])
    assert model.input_size is None
    assert seen
    assert max(one.box[2] for one in seen) <= 768
    assert max(one.box[2] for one in seen) > 320, "boxes are in pixels of the frame, not of the net"


def test_weights_of_another_net_are_refused(folder: Path) -> None:
    (folder / "wrong.toml").write_text(SSDLITE.replace('"cat"]', '"cat", "dog"]'))
    with pytest.raises(ModelError, match="does not fit ssdlite320_mobilenet_v3_large with 4 classes"):
        registry.load(registry.resolve("wrong", folder))


class _Poison:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must never run",))


def test_weights_that_carry_code_are_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": _Poison()}, tmp_path / "ssdlite.pth")
    (tmp_path / "ssdlite.toml").write_text(SSDLITE)
    with pytest.raises(ModelError, match="no plain state_dict"):
        registry.load(registry.resolve("ssdlite", tmp_path))
    assert "never run" not in capsys.readouterr().out


def test_weights_that_are_no_named_tensors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ssdlite.toml").write_text(SSDLITE)
    torch.save({"epoch": 3, "state": {}}, tmp_path / "ssdlite.pth")
    with pytest.raises(ModelError, match="named tensors"):
        registry.load(registry.resolve("ssdlite", tmp_path))
    (tmp_path / "ssdlite.pth").write_bytes(b"junk" * 100)
    with pytest.raises(ModelError, match="no plain state_dict"):
        registry.load(registry.resolve("ssdlite", tmp_path))


def test_named_weights_come_from_the_cache_and_must_have_their_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", _without_a_network)
    with pytest.raises(Unavailable, match="name the file in a model spec"):
        registry.load(registry.resolve("ssdlite320_mobilenet_v3_large"))


def _without_a_network(url: str, **options: object) -> dict[str, Any]:
    """torch's own function against an address of this machine where nobody listens."""
    assert options == {"progress": False, "check_hash": True, "weights_only": True}
    closed = url.replace("https://download.pytorch.org", "http://127.0.0.1:9")
    return torch.hub.load_state_dict_from_url(closed, **options)  # type: ignore[no-any-return]


def test_the_names_that_are_listed_without_torchvision_are_its_detectors() -> None:
    ours = set(registry.TORCHVISION_DETECTORS)
    assert ours == set(torchvision.models.list_models(module=torchvision.models.detection))
    assert all(registry.TORCHVISION_WEIGHTS in torchvision.models.get_model_weights(name).__members__ for name in ours)


# --- exported programs


class _Cells(torch.nn.Module):  # type: ignore[name-defined]
    """Of YOLOX's form for 16 x 32 pixels and one class: each cell is as sure as its first pixel is bright."""

    def forward(self, image: Any) -> Any:
        sure = torch.nn.functional.avg_pool2d(image[:, :1], 8).flatten(1)[..., None]
        return torch.cat([torch.zeros_like(sure).expand(-1, -1, 4), sure, torch.ones_like(sure)], dim=2)


def exported(folder: Path) -> bytes:
    program = torch.export.export(_Cells(), (torch.zeros(1, 3, 16, 32),))
    torch.export.save(program, folder / "cells.pt2")
    return (folder / "cells.pt2").read_bytes()


def exported_spec(digest: str) -> str:
    return f"""
kind = "exported"
file = "cells.pt2"
sha256 = "{digest}"
labels = ["thing"]
[input]
size = [16, 32]
scale = 0.00392156862745098
[output]
decoder = "yolox"
strides = [8]
"""


def test_an_exported_program_runs_where_its_spec_vouches_for_it(tmp_path: Path) -> None:
    (tmp_path / "cells.toml").write_text(exported_spec(hashlib.sha256(exported(tmp_path)).hexdigest()))
    model = registry.load(registry.resolve("cells", tmp_path))
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[8:, 24:] = 255
    dark, bright = model.infer([picture_of(pixels * 0), picture_of(pixels)])
    assert dark == ()
    assert [(one.label, one.score, one.box) for one in bright] == [("thing", 1.0, (20.0, 4.0, 28.0, 12.0))]


def test_an_exported_program_with_another_digest_is_not_even_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(tmp_path)
    (tmp_path / "cells.toml").write_text(exported_spec("0" * 64))
    monkeypatch.setattr(torch.export, "load", lambda _file: pytest.fail("it was opened"))
    with pytest.raises(ModelError, match="sha256"):
        registry.load(registry.resolve("cells", tmp_path))


def test_a_damaged_exported_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cells.pt2").write_bytes(b"junk" * 50)
    (tmp_path / "cells.toml").write_text(exported_spec(hashlib.sha256(b"junk" * 50).hexdigest()))
    with pytest.raises(ModelError, match=r"torch\.export cannot load it"):
        registry.load(registry.resolve("cells", tmp_path))
