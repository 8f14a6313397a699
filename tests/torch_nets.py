"""torchvision's detectors with random weights, written into models folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
import torchvision

SSDLITE: Final = "ssdlite320_mobilenet_v3_large"
FASTER_RCNN: Final = "fasterrcnn_mobilenet_v3_large_320_fpn"
LABELS: Final = ("__background__", "person", "cat")


def ssdlite(**arguments: float) -> Any:
    """Return an ssdlite with fixed random weights. Its batch norms are set so that its detections depend on the picture."""
    torch.manual_seed(11)
    net = torchvision.models.get_model(
        SSDLITE, weights=None, weights_backbone=None, num_classes=len(LABELS), **arguments
    )
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # average over all inputs
    with torch.inference_mode():
        net.head(list(net.backbone(torch.rand(4, 3, 320, 320) * 2 - 1).values()))
    return net.eval()


def faster_rcnn() -> Any:
    """Return a Faster R-CNN with fixed random weights. Those of its classes are set so that its scores differ."""
    torch.manual_seed(5)
    net = torchvision.models.get_model(FASTER_RCNN, weights=None, weights_backbone=None, num_classes=len(LABELS))
    classes, features = net.eval().roi_heads.box_predictor.cls_score, []
    hook = classes.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.no_grad():
        net(list(torch.rand(2, 3, 96, 160)))
        classes.weight.div_((features[0] @ classes.weight.T).std(dim=0, keepdim=True).T)
        classes.bias.copy_(-(features[0] @ classes.weight.T).mean(dim=0))
    hook.remove()
    return net


def write(folder: Path, name: str, architecture: str, thresholds: str) -> str:
    """Write the weights and the spec of a detector into a models folder, and return its name."""
    net = ssdlite() if architecture == SSDLITE else faster_rcnn()
    torch.save(net.state_dict(), folder / f"{name}.pth")
    labels = ", ".join(f'"{label}"' for label in LABELS)
    (folder / f"{name}.toml").write_text(
        f'kind = "torchvision"\narchitecture = "{architecture}"\nfile = "{name}.pth"\nlabels = [{labels}]\n'
        f"[thresholds]\n{thresholds}\n"
    )
    return name
