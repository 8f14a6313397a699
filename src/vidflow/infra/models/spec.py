"""A model's spec: the TOML file next to its weights. This module checks it strictly and reads the files that it names.

The format::

    kind = "onnx"                # onnx | torchvision | exported | motion | a name from the entry points vidflow.models
    file = "weights.onnx"        # inside the spec's folder; not for motion
    sha256 = "64 hex digits"     # of the file; required for `exported`
    task = "detection"
    labels = "labels.names"      # a file with one label per line, or a list, in the order of the class index
    architecture = "..."         # torchvision: the detector's name
    weights = "COCO_V1"          # torchvision: weights by name, instead of `file`

    [input]                      # not for torchvision and motion, whose input is fixed
    size = [416, 416]            # height, width
    resize = "letterbox"         # letterbox (keeps the aspect ratio) | stretch
    place = "corner"             # letterbox: position of the picture, corner (top left) | centre
    pad = 114                    # letterbox: pixel value of the padding
    channels = "rgb"             # rgb | bgr
    scale = 1.0                  # the tensor is (pixel * scale - mean) / std
    mean = 0.0                   # a number, or one per channel in the order of `channels`; likewise std
    std = 1.0
    batch = 1                    # pictures per call

    [output]
    decoder = "yolox"            # yolox | fastestdet | torchvision
    strides = [8, 16, 32]        # yolox

    [thresholds]
    score = 0.4
    nms_iou = 0.45
    max_detections = 300

    [options]                    # passed to a model from an entry point, refused for others
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from vidflow.domain.detections import MAX_DETECTIONS
from vidflow.domain.errors import ModelError, ParameterError
from vidflow.infra.models import files

ONNX: Final = "onnx"
TORCHVISION: Final = "torchvision"
EXPORTED: Final = "exported"
MOTION: Final = "motion"
KINDS: Final = (ONNX, TORCHVISION, EXPORTED, MOTION)
KINDS_ANYWHERE: Final = frozenset({ONNX})
"""Kinds whose spec may be outside the models folder: their files are only data, even if untrusted."""

MAX_LABELS: Final = 10_000
MAX_LABEL_LENGTH: Final = 100
UNUSED_LABELS: Final = frozenset({"__background__", "background", "N/A", ""})
"""Labels of classes that are not objects. Detections with such a label are dropped."""

FileName = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Pixels = Annotated[int, msgspec.Meta(ge=16, le=4096)]
Finite = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
Positive = Annotated[float, msgspec.Meta(gt=0.0, le=1e6)]
UnitInterval = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
ONE_PER_CHANNEL: Final = msgspec.Meta(min_length=3, max_length=3)
# Not tuple[X, X, X]: in a union with a constrained number, it makes msgspec 0.22 crash at the next garbage collection.
Stride = Annotated[int, msgspec.Meta(ge=1, le=1024)]


class InputSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a picture is converted to the model's tensor. `size` is (height, width); see the format above."""

    size: tuple[Pixels, Pixels]
    resize: Literal["letterbox", "stretch"] = "stretch"
    place: Literal["corner", "centre"] = "corner"
    pad: Annotated[int, msgspec.Meta(ge=0, le=255)] = 114
    channels: Literal["rgb", "bgr"] = "rgb"
    scale: Positive = 1.0
    mean: Finite | Annotated[tuple[Finite, ...], ONE_PER_CHANNEL] = 0.0
    std: Positive | Annotated[tuple[Positive, ...], ONE_PER_CHANNEL] = 1.0
    batch: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1


class OutputSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the model's output tensors are converted to boxes."""

    decoder: Literal["yolox", "fastestdet", "torchvision"]
    strides: Annotated[tuple[Stride, ...], msgspec.Meta(min_length=1, max_length=8)] = (8, 16, 32)


class Thresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits for detections. A scenario may override `score`. `nms_iou` is the overlap at which boxes of one class are suppressed."""

    score: UnitInterval = 0.4
    nms_iou: UnitInterval = 0.45
    max_detections: Annotated[int, msgspec.Meta(ge=1, le=1000)] = MAX_DETECTIONS


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A spec as written; see the format above. `Bundle` adds the files that it names."""

    kind: Name
    file: FileName | None = None
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] | None = None
    task: Literal["detection"] = "detection"
    labels: FileName | Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_LABELS)] | None = None
    architecture: Name | None = None
    weights: Name | None = None
    input: InputSpec | None = None
    output: OutputSpec | None = None
    thresholds: Thresholds = Thresholds()
    options: dict[str, str | int | float | bool] = {}


class Bundle(msgspec.Struct, frozen=True):
    """A spec and the files that it names, checked but not loaded.

    `path` is the file from which the spec was read. `weights_path` is None without weights. `labels` is empty if the spec
    names none. `sha256` is a digest of everything that affects results: the spec, the labels and the weights.
    """

    spec: ModelSpec
    path: Path
    weights_path: Path | None
    weights_sha256: str | None
    labels: tuple[str, ...]
    sha256: str


def parse_spec(text: bytes, origin: str) -> ModelSpec:
    """Parse a spec from TOML. `origin` names it in errors.

    Raises ModelError (model_spec_invalid), which names the invalid key.
    """
    try:
        table = tomllib.loads(text.decode("utf-8"))
        spec = msgspec.convert(table, ModelSpec)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise spec_error(origin, f"not valid TOML ({error})") from error
    except msgspec.ValidationError as error:
        raise spec_error(origin, str(error)) from error
    _check_kind(spec, origin)
    return spec


def read_bundle(path: Path, kinds: Collection[str] | None = None) -> Bundle:
    """Return the spec at `path` with its labels and the digest of its weights.

    `kinds`: the allowed kinds (None: all). No further file is opened for another kind. Raises ModelError if the kind is not
    allowed, the spec is invalid, or a file is missing, outside the spec's folder or has another sha256 than in the spec.
    """
    text = files.read_file(path, files.MAX_SPEC_BYTES)
    spec = parse_spec(text, path.name)
    if kinds is not None and spec.kind not in kinds:
        raise models_folder_error(spec.kind, path.name)
    labels_text, labels = _labels(spec, path)
    weights_path = files.resolve_in_folder(path.parent, spec.file) if spec.file is not None else None
    weights_sha256 = files.sha256_of_file(weights_path) if weights_path is not None else None
    check_sha256(spec, weights_sha256, path.name)
    sha256 = files.sha256_of_bytes(b"\0".join((text, labels_text, (weights_sha256 or "").encode())))
    return Bundle(spec, path, weights_path, weights_sha256, labels, sha256)


def read_weights(bundle: Bundle) -> bytes:
    """Return the weights. Raises ModelError if they changed since the bundle was read."""
    if bundle.weights_path is None:
        raise spec_error(bundle.path.name, "`file` is missing")
    content = files.read_file(bundle.weights_path, files.MAX_WEIGHTS_BYTES)
    if files.sha256_of_bytes(content) != bundle.weights_sha256:
        raise ModelError(
            f"{bundle.weights_path} changed since it was looked up. Start the scenario again.", code="model_changed"
        )
    return content


def check_sha256(spec: ModelSpec, actual: str | None, origin: str) -> None:
    """Raise ModelError (model_changed) if the weights do not have the digest in the spec."""
    if spec.sha256 is not None and spec.sha256 != actual:
        raise ModelError(
            f"{spec.file} is not the file described by {origin}: its sha256 is {actual}, not {spec.sha256}. "
            "Get the right file, or write its digest into the spec if you trust it.",
            code="model_changed",
        )


def validate_labels(labels: list[str], origin: str) -> tuple[str, ...]:
    """Return the labels. Raises ModelError (model_spec_invalid) if they are too many, too long or not printable."""
    if not 1 <= len(labels) <= MAX_LABELS:
        raise spec_error(origin, f"{len(labels)} labels; 1 to {MAX_LABELS} are allowed")
    for number, label in enumerate(labels):
        if len(label) > MAX_LABEL_LENGTH or not label.isprintable():
            raise spec_error(origin, f"label {number} is longer than {MAX_LABEL_LENGTH} characters or not printable")
    return tuple(labels)


def check_known_labels(requested: Sequence[str], known: Sequence[str]) -> None:
    """Raise ParameterError for a requested label that is not known."""
    unknown = sorted(set(requested) - set(known))
    if unknown:
        available = ", ".join(sorted(set(known) - UNUSED_LABELS)[:20])
        raise ParameterError(f"The model has no label {unknown[0]!r}. Available: {available}.")


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


def _labels(spec: ModelSpec, path: Path) -> tuple[bytes, tuple[str, ...]]:
    if spec.labels is None:
        return b"", ()
    if isinstance(spec.labels, list):
        return b"", validate_labels(spec.labels, path.name)
    content = files.read_file(files.resolve_in_folder(path.parent, spec.labels), files.MAX_LABELS_BYTES)
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise spec_error(spec.labels, "not UTF-8 text") from error
    while lines and not lines[-1].strip():
        lines.pop()
    return content, validate_labels([line.strip() for line in lines], spec.labels)


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


def _tensor_fault(spec: ModelSpec) -> str | None:
    required = {"file": spec.file, "labels": spec.labels, "[input]": spec.input, "[output]": spec.output}
    missing = [name for name, value in required.items() if value is None]
    if missing:
        return f"kind {spec.kind!r} needs {', '.join(missing)}"
    if spec.architecture or spec.weights:
        return "`architecture` and `weights` are only for kind 'torchvision'"
    return None


def _exported_fault(spec: ModelSpec) -> str | None:
    if spec.sha256 is None:
        return "kind 'exported' needs `sha256`: loading such a file can run code, so the spec must vouch for it"
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
    return f"kind 'motion' does not support {', '.join(present)}" if present else None


_RULES: Final = {ONNX: _tensor_fault, EXPORTED: _exported_fault, TORCHVISION: _torchvision_fault, MOTION: _motion_fault}
