"""A model's spec: the TOML file next to its weights. This module checks it strictly. bundle.py reads the files that it names.

The format::

    kind = "onnx"                # onnx | torchvision | exported | motion | a name from the entry points vidflow.models
    file = "weights.onnx"        # inside the spec's folder; not for motion
    sha256 = "64 hex digits"     # of the file; required for `exported`
    task = "detection"           # detection | classification | keypoints | oriented_boxes | instance_segmentation
    labels = "labels.names"      # a file with one label per line, a list, coco80 or coco91, in the order of the class index
    license = "Apache-2.0"       # of the weights; only shown
    precision = "half"           # torchvision, exported: full (default) | half (float16), which needs a GPU
    architecture = "..."         # torchvision: the detector's name
    weights = "COCO_V1"          # torchvision: weights by name, instead of `file`

    [input]                      # not for torchvision and motion, whose input is fixed
    size = [416, 416]            # height, width
    resize = "letterbox"         # letterbox and crop keep the aspect ratio | stretch
    crop = 0.875                 # crop: the centred part of the picture's shorter side that the tensor shows
    place = "corner"             # letterbox: position of the picture, corner (top left) | centre
    pad = 114                    # letterbox: pixel value of the padding
    resample = "bilinear"        # bilinear | area | bicubic: how pixels are averaged or interpolated; see pixels.py
    channels = "rgb"             # rgb | bgr
    normalise = "imagenet"       # a preset instead of scale, mean and std: none | unit (0 to 1) | signed (-1 to 1) | imagenet
    scale = 1.0                  # the tensor is (pixel * scale - mean) / std
    mean = 0.0                   # a number, or one per channel in the order of `channels`; likewise std
    std = 1.0
    layout = "nchw"              # nchw | nhwc; only where the shape of an ONNX model's input does not tell
    batch = 1                    # pictures per call

    [output]
    decoder = "yolox"            # the form of the outputs, see the modules in decoders/: yolox | yolov5 | yolov8 |
                                 # yolo_end2end | detr | ssd (or tf) | torchvision | fastestdet | classes
    strides = [8, 16, 32]        # yolox
    coordinates = "pixels"       # pixels | normalised (0 to 1): another unit of the boxes than the decoder's usual one
    activation = "sigmoid"       # detr, classes: sigmoid | softmax | none: what converts logits to scores
    keypoints = 17               # task keypoints, yolov5, yolov8 and yolo_end2end: their number
    keypoint_names = ["nose", "left_eye"]  # task keypoints: a name for each, in the model's order; only shown
    order = ["boxes", "scores", "classes", "count"]  # detr, ssd, torchvision: what each output is, where names do not tell;
                                                     # also logits, keypoints, keypoint_scores, masks, unused

    [thresholds]
    score = 0.4
    nms_iou = 0.45
    max_detections = 300

    [options]                    # passed to a model from an entry point, refused for others
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
import msgspec.inspect

from vidflow.domain.detections import MAX_DETECTIONS, MAX_KEYPOINTS, find_label_fault
from vidflow.domain.errors import ModelError, ParameterError
from vidflow.domain.escaping import escape_unprintable

ONNX: Final = "onnx"
TORCHVISION: Final = "torchvision"
EXPORTED: Final = "exported"
MOTION: Final = "motion"
KINDS: Final = (ONNX, TORCHVISION, EXPORTED, MOTION)
KINDS_ANYWHERE: Final = frozenset({ONNX})
"""Kinds whose spec may be outside the models folder: their files are only data, even if untrusted."""
EXTRAS: Final = {MOTION: "runner", ONNX: "runner", TORCHVISION: "torch", EXPORTED: "torch"}
"""The extra that each kind needs."""

MAX_LABELS: Final = 10_000
MAX_OUTPUTS: Final = 64
MAX_REASON_CHARACTERS: Final = 500
MAX_DOTS: Final = 2000
"""A key of 30,000 parts, a.a.a and so on, takes tomllib a quarter of a minute."""
UNUSED_LABELS: Final = frozenset({"__background__", "background", "N/A", ""})
"""Labels of classes that are not objects. Detections with such a label are dropped."""

FileName = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Pixels = Annotated[int, msgspec.Meta(ge=16, le=4096)]
Finite = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
Positive = Annotated[float, msgspec.Meta(gt=0.0, le=1e6)]
UnitInterval = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
DEFAULT_CROP: Final = 0.875
"""Models trained on ImageNet take the centre of 224 pixels of a picture whose shorter side has 256."""
ONE_PER_CHANNEL: Final = msgspec.Meta(min_length=3, max_length=3)
# Not tuple[X, X, X]: in a union with a constrained number, it makes msgspec 0.22 crash at the next garbage collection.
Role = Literal["boxes", "scores", "classes", "count", "logits", "keypoints", "keypoint_scores", "masks", "unused"]
Stride = Annotated[int, msgspec.Meta(ge=1, le=1024)]
Task = Literal["detection", "classification", "keypoints", "oriented_boxes", "instance_segmentation"]
"""What a model finds in a picture: objects with a box, or labels of the whole picture, or objects with a box and more."""


class Normalisation(msgspec.Struct, frozen=True):
    """The tensor is (pixel * scale - mean) / std. `mean` and `std` are numbers, or one per channel."""

    scale: float = 1.0
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0


NORMALISATIONS: Final = {
    "none": Normalisation(),
    "unit": Normalisation(1 / 255),
    "signed": Normalisation(1 / 127.5, 1.0),
    "imagenet": Normalisation(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""The presets of [input] normalise. Their channels are in the order RGB."""


class InputSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a picture is converted to the model's tensor. `size` is (height, width); see the format above."""

    size: tuple[Pixels, Pixels]
    resize: Literal["letterbox", "stretch", "crop"] = "stretch"
    crop: Annotated[float, msgspec.Meta(ge=0.1, le=1.0)] | None = None
    place: Literal["corner", "centre"] = "corner"
    pad: Annotated[int, msgspec.Meta(ge=0, le=255)] = 114
    resample: Literal["bilinear", "area", "bicubic"] = "bilinear"
    channels: Literal["rgb", "bgr"] = "rgb"
    scale: Positive = 1.0
    mean: Finite | Annotated[tuple[Finite, ...], ONE_PER_CHANNEL] = 0.0
    std: Positive | Annotated[tuple[Positive, ...], ONE_PER_CHANNEL] = 1.0
    normalise: Literal["none", "unit", "signed", "imagenet"] | None = None
    layout: Literal["nchw", "nhwc"] | None = None
    batch: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1

    def normalisation(self) -> Normalisation:
        """Return the numbers of the preset, or those in the spec, in the order of `channels`."""
        if self.normalise is None:
            return Normalisation(self.scale, self.mean, self.std)
        preset = NORMALISATIONS[self.normalise]
        if self.channels == "rgb" or not isinstance(preset.mean, tuple) or not isinstance(preset.std, tuple):
            return preset
        return Normalisation(preset.scale, preset.mean[::-1], preset.std[::-1])


class OutputSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the model's output tensors are converted to boxes."""

    decoder: Literal[
        "yolox", "yolov5", "yolov8", "yolo_end2end", "detr", "ssd", "tf", "torchvision", "fastestdet", "classes"
    ]
    strides: Annotated[tuple[Stride, ...], msgspec.Meta(min_length=1, max_length=8)] = (8, 16, 32)
    coordinates: Literal["pixels", "normalised"] | None = None
    activation: Literal["sigmoid", "softmax", "none"] | None = None
    keypoints: Annotated[int, msgspec.Meta(ge=1, le=MAX_KEYPOINTS)] | None = None
    keypoint_names: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=MAX_KEYPOINTS)] | None = None
    order: Annotated[tuple[Role, ...], msgspec.Meta(min_length=1, max_length=MAX_OUTPUTS)] | None = None


class Thresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits for detections. A scenario may override `score`. `nms_iou` is the overlap at which boxes of one class are suppressed."""

    score: UnitInterval = 0.4
    nms_iou: UnitInterval = 0.45
    max_detections: Annotated[int, msgspec.Meta(ge=1, le=1000)] = MAX_DETECTIONS


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A spec as written; see the format above."""

    kind: Name
    file: FileName | None = None
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] | None = None
    task: Task = "detection"
    labels: FileName | Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_LABELS)] | None = None
    license: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    architecture: Name | None = None
    weights: Name | None = None
    precision: Literal["full", "half"] = "full"
    input: InputSpec | None = None
    output: OutputSpec | None = None
    thresholds: Thresholds = Thresholds()
    options: dict[str, str | int | float | bool] = {}

    def tensor_specs(self) -> tuple[InputSpec, OutputSpec]:
        """Return [input] and [output] of a kind that requires both, which `parse_spec` has checked."""
        assert self.input is not None
        assert self.output is not None
        return self.input, self.output


def parse_spec(text: bytes, origin: str) -> ModelSpec:
    """Parse a spec from TOML. `origin` names it in errors.

    Raises ModelError (model_spec_invalid), which names the invalid key.
    """
    if text.count(b".") > MAX_DOTS:
        raise spec_error(origin, f"more than {MAX_DOTS} dots; put its labels into a file")
    try:
        table = tomllib.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, or that of a number of thousands of digits
        raise spec_error(origin, f"not valid TOML ({_describe_error(error)})") from error
    return build_spec(table, origin)


def build_spec(table: Mapping[str, Any], origin: str) -> ModelSpec:
    """Return the spec with these entries. Errors are those of `parse_spec`."""
    try:
        spec = msgspec.convert(table, ModelSpec)
    except msgspec.ValidationError as error:
        raise spec_error(origin, _describe_error(error) + _list_choices(error)) from error
    _check_kind(spec, origin)
    return spec


def validate_labels(labels: list[str], origin: str) -> tuple[str, ...]:
    """Return the labels. Raises ModelError (model_spec_invalid) if they are too many, or one is no label."""
    if not 1 <= len(labels) <= MAX_LABELS:
        raise spec_error(origin, f"{len(labels)} labels; 1 to {MAX_LABELS} are allowed")
    for number, label in enumerate(labels):
        fault = find_label_fault(label)
        if fault is not None:
            raise spec_error(origin, f"label {number} {fault}")
    return tuple(labels)


def check_known_labels(requested: Iterable[str], known: Sequence[str]) -> None:
    """Raise ParameterError for a requested label that is not known."""
    unknown = sorted(set(requested) - set(known))
    if unknown:
        available = ", ".join(sorted(set(known) - UNUSED_LABELS)[:20])
        raise ParameterError(f"The model has no label {unknown[0]!r}. Available: {available}.")


def torchvision_task(architecture: str) -> Task:
    """Return what a detector of torchvision finds at most."""
    return next((task for prefix, task in TORCHVISION_TASKS.items() if architecture.startswith(prefix)), "detection")


def models_folder_error(kind: str, origin: str) -> ModelError:
    """Return the error for a spec outside the models folder whose kind is not in `KINDS_ANYWHERE`."""
    return ModelError(
        f"Model {origin} is of kind {kind!r}, which runs only from the models folder. Put the spec and its files there "
        "(--models-dir) and name the spec's stem.",
        code="model_refused",
    )


def spec_error(origin: str, fault: str) -> ModelError:
    """Return the error for an invalid spec."""
    return ModelError(f"Invalid model spec {origin}: {fault}.", code="model_spec_invalid")


def _describe_error(error: Exception) -> str:
    """Return an error's text, whose middle is left out if a name or a value in it makes it long."""
    text = escape_unprintable(str(error))
    return text if len(text) <= MAX_REASON_CHARACTERS else f"{text[:300]} ... {text[-200:]}"


def _list_choices(error: msgspec.ValidationError) -> str:
    """Return the values that an entry may have, to add to the error for another one; empty for other errors."""
    match = re.fullmatch(r"Invalid enum value .* - at `\$\.([a-z_.]+)`", str(error), re.DOTALL)
    if match is None:
        return ""
    types: list[msgspec.inspect.Type] = [msgspec.inspect.type_info(ModelSpec)]
    for name in match.group(1).split("."):
        fields = [f for kind in types if isinstance(kind, msgspec.inspect.StructType) for f in kind.fields]
        found = [f.type for f in fields if f.encode_name == name]
        types = [
            part for kind in found for part in (kind.types if isinstance(kind, msgspec.inspect.UnionType) else (kind,))
        ]
    choices = [str(value) for kind in types if isinstance(kind, msgspec.inspect.LiteralType) for value in kind.values]
    return f"; use {', '.join(choices)}"


def _check_kind(spec: ModelSpec, origin: str) -> None:
    """Raise ModelError if the spec violates a rule of its kind that its types do not express."""
    fault = _RULES.get(spec.kind, _no_fault)(spec)
    if fault is None and spec.kind in KINDS and spec.options:
        fault = "[options] is only for models from entry points"
    if fault is None and spec.sha256 is not None and spec.file is None:
        fault = "`sha256` needs `file`"
    if fault is not None:
        raise spec_error(origin, fault)


def _no_fault(_spec: ModelSpec) -> str | None:
    return None


UNITLESS_DECODERS: Final = frozenset({"yolox", "fastestdet", "classes"})
"""Decoders without boxes, or whose boxes are relative to cells of the tensor. They have no unit to choose."""
LIST_DECODERS: Final = frozenset({"detr", "ssd", "tf", "torchvision"})
"""Decoders of several outputs."""
ACTIVATED_DECODERS: Final = ("classes", "detr", "torchvision")
"""Decoders of logits. Those of torchvision are the scores of keypoints."""
TASK_DECODERS: Final[Mapping[Task, tuple[str, ...]]] = {
    "detection": ("yolox", "yolov5", "yolov8", "yolo_end2end", "detr", "ssd", "tf", "torchvision", "fastestdet"),
    "classification": ("classes",),
    "keypoints": ("yolov5", "yolov8", "yolo_end2end", "torchvision"),
    "oriented_boxes": ("yolov8", "yolo_end2end"),
    "instance_segmentation": ("yolov5", "yolov8", "yolo_end2end", "detr", "torchvision"),
}
"""The decoders of each task."""
TORCHVISION_TASKS: Final[Mapping[str, Task]] = {"keypointrcnn": "keypoints", "maskrcnn": "instance_segmentation"}
"""The task besides detection of torchvision's detectors whose names start like this."""


def _tensor_fault(spec: ModelSpec) -> str | None:
    required = {"file": spec.file, "labels": spec.labels, "[input]": spec.input, "[output]": spec.output}
    missing = [name for name, value in required.items() if value is None]
    if missing:
        return f"kind {spec.kind!r} needs {', '.join(missing)}"
    if spec.architecture or spec.weights:
        return "`architecture` and `weights` are only for kind 'torchvision'"
    inputs, outputs = spec.tensor_specs()
    return _input_fault(inputs) or _output_fault(outputs) or _task_fault(spec.task, outputs)


def _input_fault(spec: InputSpec) -> str | None:
    if spec.normalise is not None and (spec.scale, spec.mean, spec.std) != (1.0, 0.0, 1.0):
        return "[input] has `normalise` and `scale`, `mean` or `std`; remove one of the two"
    if spec.crop is not None and spec.resize != "crop":
        return "[input] crop is only for resize = 'crop'"
    return None


def _task_fault(task: Task, spec: OutputSpec) -> str | None:
    if spec.decoder not in TASK_DECODERS[task]:
        return f"task {task!r} has no decoder {spec.decoder!r}; use {', '.join(TASK_DECODERS[task])}"
    if spec.decoder == "classes" and spec.activation is None:
        return (
            "decoder 'classes' needs `activation`: softmax if the model returns logits of which one class is right, sigmoid if "
            "several may be, none if it returns probabilities"
        )
    if (spec.keypoints is not None) != (task == "keypoints" and spec.decoder != "torchvision"):
        return (
            "[output] keypoints, their number, is needed for task 'keypoints' and the decoders yolov5, yolov8 and yolo_end2end, "
            "and for nothing else"
        )
    return _keypoint_names_fault(task, spec)


def _keypoint_names_fault(task: Task, spec: OutputSpec) -> str | None:
    names = spec.keypoint_names
    if names is None:
        return None
    if task != "keypoints":
        return "[output] keypoint_names are only for task 'keypoints'"
    if spec.keypoints is not None and spec.keypoints != len(names):
        return f"[output] has {spec.keypoints} keypoints and {len(names)} keypoint_names"
    for number, name in enumerate(names):
        fault = find_label_fault(name)
        if fault is not None:
            return f"[output] keypoint name {number} {fault}"
    return None


def _output_fault(spec: OutputSpec) -> str | None:
    if spec.coordinates is not None and spec.decoder in UNITLESS_DECODERS:
        return f"[output] coordinates has no meaning for decoder {spec.decoder!r}"
    if spec.activation == "softmax" and spec.decoder == "torchvision":
        return "[output] activation 'softmax' has no meaning for decoder 'torchvision'"
    if spec.activation is not None and spec.decoder not in ACTIVATED_DECODERS:
        return f"[output] activation is only for the decoders {', '.join(ACTIVATED_DECODERS)}"
    if spec.order is not None and spec.decoder not in LIST_DECODERS:
        return f"[output] order is only for the decoders {', '.join(sorted(LIST_DECODERS))}"
    return None


def _onnx_fault(spec: ModelSpec) -> str | None:
    if spec.precision != "full":
        return "kind 'onnx' runs in the precision of its file; remove `precision`, and export the model in half precision (float16)"
    return _tensor_fault(spec)


def _exported_fault(spec: ModelSpec) -> str | None:
    if spec.sha256 is None:
        return "kind 'exported' needs `sha256`: loading such a file can run code, so the spec must vouch for it"
    if spec.input is not None and spec.input.layout == "nhwc":
        return "kind 'exported' takes pictures as [batch, 3, height, width] only; remove [input] layout"
    return _tensor_fault(spec)


def _torchvision_fault(spec: ModelSpec) -> str | None:
    if spec.architecture is None:
        return "kind 'torchvision' needs `architecture`, a detector's name such as 'ssdlite320_mobilenet_v3_large'"
    if (spec.file is None) == (spec.weights is None):
        return "kind 'torchvision' needs either `file` (a state_dict) or `weights` (such as 'COCO_V1')"
    if spec.file is not None and spec.labels is None:
        return "a state_dict needs `labels`, starting with the background"
    if spec.output is not None or spec.input is not None:
        return "kind 'torchvision' has a fixed input and output; remove [input] and [output]"
    if spec.task not in {"detection", torchvision_task(spec.architecture)}:
        return f"{spec.architecture} has no task {spec.task!r}"
    return None


def _motion_fault(spec: ModelSpec) -> str | None:
    forbidden = {
        "file": spec.file,
        "labels": spec.labels,
        "architecture": spec.architecture,
        "weights": spec.weights,
        "[input]": spec.input,
        "[output]": spec.output,
    }
    present = [name for name, value in forbidden.items() if value is not None]
    if spec.task != "detection":
        present.append(f"task {spec.task!r}")
    if spec.precision != "full":
        present.append(f"precision {spec.precision!r}")
    return f"kind 'motion' does not support {', '.join(present)}" if present else None


_RULES: Final = {ONNX: _onnx_fault, EXPORTED: _exported_fault, TORCHVISION: _torchvision_fault, MOTION: _motion_fault}
