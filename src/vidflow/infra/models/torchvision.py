"""Run torchvision's detectors, with weights named by torchvision or from a state_dict in a file.

Weights are read as data (`weights_only`), never as pickled code.
"""

from __future__ import annotations

import io
import pickle
import urllib.error
from typing import Any, Final

import torch
import torchvision
from numpy.typing import NDArray

from vidflow.domain.detections import InferenceError
from vidflow.domain.device import CPU, Device
from vidflow.domain.errors import ModelError, Unavailable
from vidflow.infra.models.bundle import Bundle
from vidflow.infra.models.cuda import raise_gpu_failure
from vidflow.infra.models.detector import Network, first_line
from vidflow.infra.models.spec import Task, Thresholds
from vidflow.infra.models.tensors import PictureSizes, Tensor, TensorForm
from vidflow.infra.models.torch_device import TorchDevice, choose_torch_device, to_array

THREADS: Final = 1
"""Workers share the cores, and OpenMP threads of different workers would spin while waiting for each other."""
BOX_ARGUMENTS: Final = {"score": "score_thresh", "nms": "nms_thresh", "limit": "detections_per_img"}
LISTS: Final = ("boxes", "scores", "labels")
OUTPUTS: Final[dict[Task, tuple[str, ...]]] = {
    "detection": LISTS,
    "instance_segmentation": (*LISTS, "masks"),
    "keypoints": (*LISTS, "keypoints", "keypoints_scores"),
}
"""What a detector returns for each picture."""
TWO_STAGE: Final = ("fasterrcnn", "maskrcnn", "keypointrcnn")
"""Detectors whose arguments for the final boxes are prefixed with `box_`."""


def open_detector(bundle: Bundle, requested: Device = CPU, score: float | None = None) -> Network:
    """Return the detector of a spec of kind `torchvision`, with weights from its file or by torchvision's name.

    It drops detections below `score`, or else the model's threshold. Raises ModelError if the weights do not exist or do not belong
    to the detector, Unavailable if they cannot be fetched, and what `choose_torch_device` raises.
    """
    spec = bundle.spec
    target = choose_torch_device(requested, bundle)
    assert spec.architecture is not None  # `parse_spec` has checked it
    if spec.weights is not None:
        state, labels = fetch_weights(spec.architecture, spec.weights)
        origin = spec.weights
    else:
        state, labels = load_state_dict(bundle.require_weights(), bundle.origin), bundle.labels
        origin = bundle.origin
    lowest = spec.thresholds.score if score is None else score
    net = build_detector(spec.architecture, state, len(labels), spec.thresholds, lowest, origin)
    return build_network(net, spec.task, target, () if bundle.labels else labels)


def fetch_weights(architecture: str, weights: str) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Return torchvision's own weights, from its cache or the network, and their labels.

    Raises ModelError if the weights do not exist, and Unavailable if they cannot be fetched.
    """
    try:
        entry = torchvision.models.get_model_weights(architecture)[weights]
    except (KeyError, ValueError) as error:
        raise ModelError(f"torchvision has no weights {weights!r} for {architecture!r}. Use COCO_V1.") from error
    try:
        state = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError) as error:
        raise Unavailable(
            f"The weights {weights} of {architecture} are not on this machine and cannot be fetched ({error}). "
            "Fetch them elsewhere and name the file in a model spec of kind 'torchvision'.",
            code="model_unreachable",
        ) from error
    return state, tuple(str(label) for label in entry.meta["categories"])


def load_state_dict(content: bytes, origin: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a state_dict file. Raises ModelError (model_refused) if it contains anything else."""
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise _weights_error(origin, f"the file is not a plain state_dict ({first_line(error)})") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise _weights_error(origin, "the file does not only contain named tensors; save model.state_dict()")
    return state


def build_detector(
    architecture: str,
    state: dict[str, torch.Tensor],
    classes: int,
    thresholds: Thresholds,
    score: float,
    origin: str,
) -> torch.nn.Module:
    """Return the detector `architecture` with the weights `state`, ready to infer. `classes` includes the background.

    Raises ModelError if the weights do not belong to this detector.
    """
    prefix = "box_" if architecture.startswith(TWO_STAGE) else ""
    values = {"score": score, "nms": thresholds.nms_iou, "limit": thresholds.max_detections}
    arguments = {prefix + BOX_ARGUMENTS[name]: value for name, value in values.items()}
    try:
        net = torchvision.models.get_model(
            architecture, weights=None, weights_backbone=None, num_classes=classes, **arguments
        )
        net.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise _weights_error(
            origin, f"they do not fit {architecture} with {classes} classes ({first_line(error)})"
        ) from error
    return net.eval().to(memory_format=torch.channels_last)


def build_network(net: Any, task: Task, target: TorchDevice, labels: tuple[str, ...] = ()) -> Network:  # noqa: ANN401 - torch
    """Return a detector of torchvision as a network, which takes pictures (n, height, width, 3) of whole numbers.

    It returns the lists named in OUTPUTS for the first picture, then those of the second one, and so on.
    """
    torch.set_num_threads(THREADS)
    device = str(target.device)
    net = net.to(device)
    names = OUTPUTS[task]

    def run(tensor: Tensor) -> list[NDArray[Any]]:
        pictures = torch.from_numpy(tensor).to(device).permute(0, 3, 1, 2).to(torch.float32).div_(255.0)
        try:
            with target.inference():
                outputs = net(list(pictures))
            return [
                to_array(output[name]) for output in outputs for name in names
            ]  # waits for the GPU, whose errors arrive here
        except (RuntimeError, AssertionError) as error:  # torch asserts that boxes are valid
            raise_gpu_failure(target.device, error, first_line(error))
            raise InferenceError(f"torch failed on a frame ({first_line(error)}).") from error

    transform = net.transform
    fixed = (int(transform.fixed_size[0]), int(transform.fixed_size[1])) if transform.fixed_size else None
    sizes = PictureSizes(int(transform.min_size[-1]), int(transform.max_size), fixed)
    return Network(run, TensorForm("uint8", "nhwc"), None, names, target.device, sizes=sizes, labels=labels)


def _weights_error(origin: str, fault: str) -> ModelError:
    return ModelError(f"Cannot use the weights {origin}: {fault}.", code="model_refused")
