"""Decoded detections beside those that torch computes: torchvision's own detectors, and the post-processing of the DETR papers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.onnx_nets import constant_net, image_input, load_net
from tests.pictures import FramePicture, picture_of

torch = pytest.importorskip("torch", reason="the extra torch is not installed")
torchvision = pytest.importorskip("torchvision", reason="the extra torch is not installed")
from tests.integration.test_models_torch import ssdlite  # noqa: E402  (it needs torch)

QUERIES, CLASSES = 60, 5
SIZE = (96, 160)
LABELS = [f"class {number}" for number in range(CLASSES)]


def noise(width: int, height: int) -> FramePicture:
    blocks = np.random.default_rng(3).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return picture_of(blocks.repeat(16, axis=0).repeat(16, axis=1))


@pytest.mark.filterwarnings("ignore")  # of torch's and torchvision's own code while they export
def test_an_export_of_torchvision_gives_the_same_detections_as_torchvision(tmp_path: Path) -> None:
    net = ssdlite(score_thresh=0.3, nms_thresh=0.45, detections_per_img=20)
    file = io.BytesIO()
    torch.onnx.export(net, ([torch.rand(3, 320, 320)],), file, dynamo=False, opset_version=17)
    spec = (
        'labels = ["__background__", "person", "cat"]\n[input]\nsize = [320, 320]\nnormalise = "unit"\n'
        '[output]\ndecoder = "torchvision"\n[thresholds]\nscore = 0.3\n'
    )
    picture = noise(640, 480)
    (found,) = load_net(tmp_path, onnx.load_model_from_string(file.getvalue()), spec).infer([picture])
    with torch.inference_mode():
        tensor = torch.from_numpy(picture.image(320, 320)).permute(2, 0, 1).float() / 255
        expected = net([tensor])[0]
    assert len(found) == len(expected["scores"]) == 20
    order = expected["scores"].argsort(descending=True)
    assert [d.score for d in found] == pytest.approx(expected["scores"][order].tolist(), abs=1e-3)
    boxes = expected["boxes"][order] * torch.tensor([640 / 320, 480 / 320] * 2)
    assert np.array([d.box for d in found]) == pytest.approx(boxes.numpy(), abs=0.5)


def reference(logits: Any, boxes: Any, *, focal: bool) -> tuple[Any, Any, Any]:
    """Return labels, boxes and scores, best first: as in DETR's paper (softmax), or as in Deformable DETR's (focal loss)."""
    scale = torch.tensor([SIZE[1], SIZE[0]] * 2, dtype=torch.float32)
    corners = torchvision.ops.box_convert(boxes, "cxcywh", "xyxy") * scale
    if focal:
        scores, index = torch.topk(logits.sigmoid().flatten(), len(boxes))
        return index % logits.shape[1], corners[index // logits.shape[1]], scores
    scores, labels = logits.softmax(-1)[:, :-1].max(-1)
    order = scores.argsort(descending=True)
    return labels[order], corners[order], scores[order]


@pytest.mark.parametrize("focal", [True, False])
def test_queries_are_decoded_as_the_papers_post_processing_does(tmp_path: Path, *, focal: bool) -> None:
    torch.manual_seed(4)
    logits = torch.randn(QUERIES, CLASSES + (not focal)) * 3
    centres = 0.3 + 0.4 * torch.rand(QUERIES, 2)
    boxes = torch.cat([centres, 0.05 + 0.4 * torch.rand(QUERIES, 2)], dim=1)
    net = constant_net({"logits": logits[None].numpy(), "pred_boxes": boxes[None].numpy()}, image_input(1, 3, *SIZE))
    spec = f'labels = {LABELS}\n[input]\nsize = {list(SIZE)}\n[output]\ndecoder = "detr"\n[thresholds]\nscore = 0.0\n'
    (found,) = load_net(tmp_path, net, spec).infer([noise(SIZE[1], SIZE[0])])
    labels, corners, scores = reference(logits, boxes, focal=focal)
    rows = zip([LABELS[index] for index in labels.tolist()], corners.tolist(), scores.tolist(), strict=True)
    expected = sorted(rows, key=lambda row: (row[0], row[1]))
    found_in_order = sorted(found, key=lambda detection: (detection.label, detection.box))
    assert [d.label for d in found_in_order] == [label for label, _, _ in expected]
    assert np.array([d.box for d in found_in_order]) == pytest.approx(
        np.array([box for _, box, _ in expected]), abs=0.5
    )
    assert [d.score for d in found_in_order] == pytest.approx([score for _, _, score in expected], abs=1e-3)
