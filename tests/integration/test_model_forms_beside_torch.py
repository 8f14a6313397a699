"""Decoded detections beside those that torch computes: torchvision's own detectors, and the post-processing of the DETR papers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.boxes import largest_differences
from tests.onnx_nets import constant_net, image_input, load_net
from tests.pictures import FramePicture, picture_of
from tests.rle import read_mask

from vidflow.commands.run.labelled_model import labelled_model
from vidflow.domain.messages import Parameters
from vidflow.infra.models import registry

torch = pytest.importorskip("torch", reason="the extra torch is not installed")
torchvision = pytest.importorskip("torchvision", reason="the extra torch is not installed")
from tests.torch_nets import ssdlite  # noqa: E402  (it needs torch)

QUERIES, CLASSES = 60, 5
SIZE = (96, 160)
SCORE = 0.3
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


def small_detector(name: str) -> Any:
    """Return a torchvision detector with a small backbone and fixed random weights, whose scores spread as those of a trained one do."""
    detection = torchvision.models.detection
    torch.manual_seed(5)
    backbone = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 5, stride=4, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(32, 32, 5, stride=4, padding=2)
    )
    backbone.out_channels = [32] if name == "ssd" else 32
    sizes = {"min_size": SIZE[0], "max_size": SIZE[1]}
    anchors = detection.anchor_utils.AnchorGenerator(sizes=((24, 48),), aspect_ratios=((0.5, 1.0),))
    point = detection.anchor_utils.AnchorGenerator(sizes=((32,),), aspect_ratios=((1.0,),))
    pools = {
        f"{task}_roi_pool": torchvision.ops.MultiScaleRoIAlign(featmap_names=["0"], output_size=7, sampling_ratio=2)
        for task in ("box", "mask", "keypoint")
    }
    two_stage = {
        "rpn_anchor_generator": anchors, "box_roi_pool": pools["box_roi_pool"], "box_score_thresh": SCORE,
        "box_detections_per_img": 20, **sizes,
    }  # fmt: skip
    box_head = {
        "box_head": detection.faster_rcnn.TwoMLPHead(32 * 49, 64),
        "box_predictor": detection.faster_rcnn.FastRCNNPredictor(64, CLASSES + 1),
    }
    nets = {
        "faster r-cnn": lambda: detection.FasterRCNN(backbone, **box_head, **two_stage),
        "mask r-cnn": lambda: detection.MaskRCNN(
            backbone, mask_roi_pool=pools["mask_roi_pool"], **box_head, mask_head=detection.mask_rcnn.MaskRCNNHeads(32, (32,), 1),
            mask_predictor=detection.mask_rcnn.MaskRCNNPredictor(32, 32, CLASSES + 1), **two_stage
        ),
        "keypoint r-cnn": lambda: detection.KeypointRCNN(
            backbone, keypoint_roi_pool=pools["keypoint_roi_pool"],
            keypoint_head=detection.keypoint_rcnn.KeypointRCNNHeads(32, (32,)),
            keypoint_predictor=detection.keypoint_rcnn.KeypointRCNNPredictor(32, 5), **box_head, **two_stage
        ),
        "retinanet": lambda: detection.RetinaNet(
            backbone, CLASSES + 1, anchor_generator=anchors, score_thresh=SCORE, **sizes
        ),
        "fcos": lambda: detection.FCOS(backbone, CLASSES + 1, anchor_generator=point, score_thresh=SCORE, **sizes),
        "ssd": lambda: detection.ssd.SSD(
            backbone, detection.anchor_utils.DefaultBoxGenerator([[2]]), (SIZE[1], SIZE[0]), CLASSES + 1,
            score_thresh=SCORE,
        ),
    }  # fmt: skip
    net = nets[name]()
    with torch.no_grad():
        for parameter, values in net.named_parameters():
            if values.dim() > 1:
                values.normal_(0, 1.5 * (values.shape[0] / values.numel()) ** 0.5)
            elif parameter.endswith("bias"):
                values.zero_()
    return net.eval()


def export(net: Any, outputs: Any, path: Path) -> None:
    torch.onnx.export(net, ([torch.rand(3, *SIZE)],), str(path), dynamo=False, output_names=list(outputs))


def run_torch(net: Any, picture: FramePicture) -> Any:
    tensor = torch.from_numpy(picture.image(SIZE[1], SIZE[0])).permute(2, 0, 1).float() / 255
    with torch.inference_mode():
        return net([tensor])[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["faster r-cnn", "mask r-cnn", "keypoint r-cnn", "retinanet", "fcos", "ssd"])
def test_an_export_with_a_labels_file_gives_the_detections_of_torchvision(tmp_path: Path, name: str) -> None:
    net, picture, path = small_detector(name), noise(640, 480), tmp_path / "net.onnx"
    expected = run_torch(net, picture)
    export(net, expected, path)
    (tmp_path / "names.txt").write_text("\n".join(LABELS))
    with labelled_model(str(path), str(tmp_path / "names.txt")) as spec:
        bundle = registry.resolve(spec, any_onnx=True, keep_weights=True)
        (found,) = registry.load(bundle, Parameters(score_threshold=SCORE)).infer([picture])
    names = ["background", *LABELS]
    scale = torch.tensor([640 / SIZE[1], 480 / SIZE[0]] * 2)
    labels = [names[index] for index in expected["labels"].tolist()]
    rows = zip(labels, expected["scores"].tolist(), (expected["boxes"] * scale).tolist(), strict=True)
    count, boxes, scores = largest_differences(found, [row for row in rows if row[0] != "background"], 640, 480)
    assert count >= 10
    assert boxes <= 0.5
    assert scores <= 1e-3


TASK_SPEC = """
labels = ["background", "class 0", "class 1", "class 2", "class 3", "class 4"]
[input]
size = [96, 160]
normalise = "unit"
[output]
decoder = "torchvision"
[thresholds]
score = 0.3
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "task"), [("mask r-cnn", "instance_segmentation"), ("keypoint r-cnn", "keypoints")])
def test_an_export_of_another_task_gives_the_masks_and_keypoints_of_torchvision(
    tmp_path: Path, name: str, task: str
) -> None:
    net, picture, path = small_detector(name), noise(SIZE[1], SIZE[0]), tmp_path / "exported.onnx"
    expected = run_torch(net, picture)
    export(net, expected, path)
    model = load_net(tmp_path, onnx.load(path), f'task = "{task}"{TASK_SPEC}')
    found = {detection.box: detection for detection in model.infer([picture])[0]}
    assert len(found) >= 12
    compared = 0
    for index, box in enumerate(expected["boxes"].tolist()):
        near = min(found, key=lambda other: max(abs(a - b) for a, b in zip(box, other, strict=True)))
        if max(abs(a - b) for a, b in zip(box, near, strict=True)) > 0.5:
            continue
        compared += 1
        detection = found[near]
        if task == "keypoints":
            assert np.array(detection.keypoints)[:, :2] == pytest.approx(
                expected["keypoints"][index][:, :2].numpy(), abs=0.5
            )
            wanted = torch.sigmoid(expected["keypoints_scores"][index]).tolist()
            assert [score for _, _, score in detection.keypoints] == pytest.approx(wanted, abs=1e-3)
        else:
            assert detection.mask is not None
            mask, wanted = read_mask(detection.mask), (expected["masks"][index, 0] > 0.5).numpy()
            y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
            inside = (x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])
            assert not (mask & ~inside).any()
            assert np.array_equal(
                mask[inside], wanted[inside]
            )  # torchvision's masks lie up to a pixel beside their boxes
    assert compared == len(found)


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
