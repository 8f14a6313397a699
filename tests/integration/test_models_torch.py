"""Models that need torch: torchvision's detectors with weights on disk, and exported programs whose sha256 is in their spec."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.pictures import FramePicture, picture_of, pictures
from tests.rle import read_mask

from vidflow.domain.detections import Detection
from vidflow.domain.errors import ModelError, Unavailable
from vidflow.domain.messages import Parameters
from vidflow.infra.models import registry
from vidflow.infra.models.bundle import Bundle
from vidflow.infra.models.decoders.masks import masks_of_boxes
from vidflow.infra.models.masks import render_mask
from vidflow.infra.models.spec import ModelSpec, Task, Thresholds

torch = pytest.importorskip("torch", reason="the extra torch is not installed")
torchvision = pytest.importorskip("torchvision", reason="the extra torch is not installed")
from tests.torch_nets import ssdlite  # noqa: E402  (it needs torch)

from vidflow.infra.models.torch_device import TorchDevice  # noqa: E402  (it needs torch)
from vidflow.infra.models.torchvision import build_network  # noqa: E402
from vidflow.infra.models.torchvision_model import TorchvisionModel  # noqa: E402

SSDLITE = """
kind = "torchvision"
architecture = "ssdlite320_mobilenet_v3_large"
file = "ssdlite.pth"
labels = ["__background__", "person", "cat"]
[thresholds]
score = 0.3
max_detections = 20
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with an ssdlite that has fixed random weights."""
    models = tmp_path_factory.mktemp("models")
    torch.save(ssdlite().state_dict(), models / "ssdlite.pth")
    (models / "ssdlite.toml").write_text(SSDLITE)
    return models


@pytest.fixture(scope="module")
def kept_frames(shared: Path) -> list[FramePicture]:
    return list(pictures(shared / "videos/one-by-one-person.mp4", (100, 300)))


def test_a_detector_from_a_state_dict_gives_the_same_detections_as_torchvision(
    folder: Path, kept_frames: list[FramePicture]
) -> None:
    model = registry.load(registry.resolve("ssdlite", folder, keep_weights=True))
    detections = model.infer(kept_frames[:1])[0]
    net = ssdlite(score_thresh=0.3, nms_thresh=0.45, detections_per_img=20)
    tensor = torch.from_numpy(kept_frames[0].image(320, 320)).permute(2, 0, 1).float() / 255
    with torch.inference_mode():
        expected = net([tensor])[0]
    assert model.input_size == (320, 320)
    assert len(detections) == len(expected["scores"]) == 20
    assert len({d.score for d in detections}) > 10
    order = expected["scores"].argsort(descending=True)
    assert [d.score for d in detections] == pytest.approx(expected["scores"][order].tolist(), abs=1e-3)
    boxes = expected["boxes"][order] * torch.tensor([768 / 320, 432 / 320] * 2)
    assert np.array([d.box for d in detections]) == pytest.approx(boxes.clamp(min=0).numpy(), abs=1.0)


def test_a_detector_loaded_again_gives_the_same_detections(folder: Path, kept_frames: list[FramePicture]) -> None:
    first, second = (registry.load(registry.resolve("ssdlite", folder, keep_weights=True)) for _ in range(2))
    assert first.infer(kept_frames) == second.infer(kept_frames)
    assert all(first.infer(kept_frames))


def test_scenario_parameters_set_the_threshold_and_the_labels_of_a_detector(
    folder: Path, kept_frames: list[FramePicture]
) -> None:
    ref = registry.resolve("ssdlite", folder, keep_weights=True)
    assert ref.labels == ("__background__", "person", "cat")
    assert registry.load(ref, Parameters(score_threshold=1.0)).infer(kept_frames) == [(), ()]
    cats = registry.load(ref, Parameters(labels=("cat",))).infer(kept_frames)
    assert {d.label for detections in cats for d in detections} <= {"cat"}


def test_a_detector_that_keeps_the_aspect_ratio_of_pictures_returns_boxes_in_frame_pixels(
    tmp_path: Path, kept_frames: list[FramePicture]
) -> None:
    torch.manual_seed(5)
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    net = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=2)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    (tmp_path / "net.toml").write_text(
        f'kind = "torchvision"\narchitecture = "{name}"\nfile = "net.pth"\nlabels = ["__background__", "thing"]\n'
    )
    model = registry.load(registry.resolve("net", tmp_path, keep_weights=True), Parameters(score_threshold=0.0))
    (detections,) = model.infer(kept_frames[:1])
    assert model.input_size is None
    assert detections
    assert max(d.box[2] for d in detections) <= 768
    assert max(d.box[2] for d in detections) > 320, "boxes should be in pixels of the frame, not of the net"


def small_rcnn(kind: str) -> Any:
    """Return torchvision's Keypoint R-CNN or Mask R-CNN with a small backbone, random weights and anchors of one size."""
    torch.manual_seed(3)
    backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, stride=8, padding=1), torch.nn.ReLU())
    backbone.out_channels = 16
    anchors = torchvision.models.detection.anchor_utils.AnchorGenerator(((48,),), ((0.5, 1.0, 2.0),))
    net = getattr(torchvision.models.detection, kind)
    return net(
        backbone, 2, rpn_anchor_generator=anchors, box_score_thresh=0.0, box_nms_thresh=0.3, min_size=96, max_size=160
    ).eval()


def infer_small(kind: str, task: Task) -> tuple[Any, tuple[Detection, ...]]:
    """Return what torchvision gives for a picture of 160 x 96, and the detections of the same net in a picture twice as large."""
    random = np.random.default_rng(4)
    pixels = random.integers(0, 256, (6, 10, 3), dtype=np.uint8).repeat(32, axis=0).repeat(32, axis=1)
    shown = picture_of(pixels)
    net = small_rcnn(kind)
    labels = ("__background__", "thing")
    spec = ModelSpec("torchvision", task=task, thresholds=Thresholds(score=0.0, max_detections=20))
    model = TorchvisionModel(
        build_network(net, task, TorchDevice()), Bundle("small", spec, labels=labels), Parameters()
    )
    (found,) = model.infer([shown])
    with torch.inference_mode():
        (expected,) = net([torch.from_numpy(shown.image(160, 96)).permute(2, 0, 1).float() / 255])
    assert len(found) > 3
    return expected, found


def place_of(detection: Detection, expected: Any) -> int:
    """Return the index of torchvision's result with the same box."""
    distances = np.abs(expected["boxes"].numpy() * 2 - detection.box).max(axis=1)
    assert distances.min() < 0.05
    return int(distances.argmin())


def test_keypoints_are_those_of_torchvision_in_pixels_of_the_frame() -> None:
    expected, found = infer_small("KeypointRCNN", "keypoints")
    for one in found:
        number = place_of(one, expected)
        points, scores = expected["keypoints"][number], torch.sigmoid(expected["keypoints_scores"][number])
        assert len(one.keypoints) == 17
        x, y, score = np.array(one.keypoints).T
        assert x == pytest.approx((points[:, 0] * 2).clamp(0, 320).numpy(), abs=0.02)
        assert y == pytest.approx((points[:, 1] * 2).clamp(0, 192).numpy(), abs=0.02)
        assert score == pytest.approx(scores.numpy(), abs=1e-3)


def test_masks_are_those_of_torchvision_in_pixels_of_the_frame() -> None:
    expected, found = infer_small("MaskRCNN", "instance_segmentation")
    enlarged = torch.nn.functional.interpolate(expected["masks"], scale_factor=2, mode="bilinear")
    for one in found:
        mask = (enlarged[place_of(one, expected), 0] > 0.5).numpy()
        actual = read_mask(one.mask)
        assert actual.shape == (192, 320)
        assert (actual & mask).sum() / (
            actual | mask
        ).sum() > 0.95  # torchvision's masks lie up to a pixel beside their boxes


def test_masks_in_boxes_are_pasted_as_torchvision_does() -> None:
    random = np.random.default_rng(6)
    values = np.clip(random.normal(0.5, 0.3, (20, 7, 7)), 0, 1).repeat(4, axis=1).repeat(4, axis=2).astype(np.float32)
    corners = random.uniform((0, 0), (100, 60), (20, 2))
    boxes = np.concatenate([corners, corners + random.uniform(60, 100, (20, 2))], axis=1).round().astype(np.float32)
    paste = torchvision.models.detection.roi_heads.paste_masks_in_image
    pasted = paste(torch.from_numpy(values[:, None]), torch.from_numpy(boxes), (160, 200))[:, 0].numpy() > 0.5
    masks = masks_of_boxes(values, boxes)
    for number, box in enumerate(boxes.tolist()):
        actual = read_mask(render_mask(masks, number, tuple(box), (200, 160)))
        assert (actual & pasted[number]).sum() / (actual | pasted[number]).sum() > 0.9


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("keypointrcnn_resnet50_fpn", "keypoints"), ("maskrcnn_resnet50_fpn_v2", "instance_segmentation"),
        ("ssd300_vgg16", "detection"),
    ],
)  # fmt: skip
def test_detectors_of_torchvision_do_what_their_name_says(architecture: str, task: str) -> None:
    assert registry.resolve(architecture).spec.task == task


def test_weights_of_another_net_are_refused(folder: Path) -> None:
    (folder / "wrong.toml").write_text(SSDLITE.replace('"cat"]', '"cat", "dog"]'))
    with pytest.raises(ModelError, match="do not fit ssdlite320_mobilenet_v3_large with 4 classes"):
        registry.load(registry.resolve("wrong", folder, keep_weights=True))


class _Poison:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must never run",))


def test_weights_that_contain_code_are_refused_without_running_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"weight": _Poison()}, tmp_path / "ssdlite.pth")
    (tmp_path / "ssdlite.toml").write_text(SSDLITE)
    with pytest.raises(ModelError, match="not a plain state_dict"):
        registry.load(registry.resolve("ssdlite", tmp_path, keep_weights=True))
    assert "never run" not in capsys.readouterr().out


def test_weights_that_are_not_named_tensors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ssdlite.toml").write_text(SSDLITE)
    torch.save({"epoch": 3, "state": {}}, tmp_path / "ssdlite.pth")
    with pytest.raises(ModelError, match="named tensors"):
        registry.load(registry.resolve("ssdlite", tmp_path, keep_weights=True))
    (tmp_path / "ssdlite.pth").write_bytes(b"junk" * 100)
    with pytest.raises(ModelError, match="not a plain state_dict"):
        registry.load(registry.resolve("ssdlite", tmp_path, keep_weights=True))


def test_named_weights_need_their_digest_and_are_unavailable_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", _load_without_network)
    with pytest.raises(Unavailable, match="name the file in a model spec"):
        registry.load(registry.resolve("ssdlite320_mobilenet_v3_large"))


def _load_without_network(url: str, **options: object) -> dict[str, Any]:
    """Call torch's own function with a local address on which nothing listens."""
    assert options == {"progress": False, "check_hash": True, "weights_only": True}
    local_url = url.replace("https://download.pytorch.org", "http://127.0.0.1:9")
    return torch.hub.load_state_dict_from_url(local_url, **options)  # type: ignore[no-any-return]


def test_the_listed_names_are_the_detectors_of_torchvision() -> None:
    names = set(registry.TORCHVISION_DETECTORS)
    assert names == set(torchvision.models.list_models(module=torchvision.models.detection))
    assert all(registry.TORCHVISION_WEIGHTS in torchvision.models.get_model_weights(name).__members__ for name in names)


# --- exported programs


class _Cells(torch.nn.Module):  # type: ignore[name-defined]
    """A net with YOLOX's output for 16 x 32 pixels and one class. The score of a cell is its mean brightness."""

    def forward(self, image: Any) -> Any:
        score = torch.nn.functional.avg_pool2d(image[:, :1], 8).flatten(1)[..., None]
        return torch.cat([torch.zeros_like(score).expand(-1, -1, 4), score, torch.ones_like(score)], dim=2)


def export_program(folder: Path) -> bytes:
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


def test_an_exported_program_with_the_digest_in_its_spec_runs(tmp_path: Path) -> None:
    (tmp_path / "cells.toml").write_text(exported_spec(hashlib.sha256(export_program(tmp_path)).hexdigest()))
    model = registry.load(registry.resolve("cells", tmp_path, keep_weights=True))
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[8:, 24:] = 255
    dark, bright = model.infer([picture_of(pixels * 0), picture_of(pixels)])
    assert dark == ()
    assert [(d.label, d.score, d.box) for d in bright] == [("thing", 1.0, (20.0, 4.0, 28.0, 12.0))]


def test_an_exported_program_with_another_digest_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_program(tmp_path)
    (tmp_path / "cells.toml").write_text(exported_spec("0" * 64))
    monkeypatch.setattr(torch.export, "load", lambda _file: pytest.fail("the program was loaded"))
    with pytest.raises(ModelError, match="sha256"):
        registry.load(registry.resolve("cells", tmp_path, keep_weights=True))


def test_a_damaged_exported_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cells.pt2").write_bytes(b"junk" * 50)
    (tmp_path / "cells.toml").write_text(exported_spec(hashlib.sha256(b"junk" * 50).hexdigest()))
    with pytest.raises(ModelError, match=r"torch\.export cannot read it"):
        registry.load(registry.resolve("cells", tmp_path, keep_weights=True))
