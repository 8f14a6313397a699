"""Resolve the name that a user gives to a model, and load the model. Only loading needs numpy, torch or onnxruntime.

A model is named by one of these:

* a built-in name: `motion`, or a torchvision detector such as `ssdlite320_mobilenet_v3_large` (weights COCO_V1);
* the stem of a spec in the models folder: `yolox_nano` for `<models_dir>/yolox_nano.toml`;
* an entry point in the group `vidflow.models`, for models of other packages: a function that takes the Bundle (None without
  a spec) and the Parameters, and returns a Model;
* the path of a spec (`.toml`), or of an ONNX file (`.onnx`) whose metadata contains its spec, as TOML, under `vidflow`.

paths.py decides which paths a request may name. Kinds other than `onnx` must be in the models folder, since loading them can
run code or cannot be proved not to.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec

from vidflow.domain.errors import MissingExtra, ModelError, format_install_hint
from vidflow.domain.messages import Parameters
from vidflow.infra.models import files
from vidflow.infra.models.model import Model
from vidflow.infra.models.onnx_metadata import SPEC_KEY, read_metadata
from vidflow.infra.models.paths import ONNX_SUFFIX, SPEC_SUFFIX, ModelFile, is_path, model_file
from vidflow.infra.models.plugin import load_plugin
from vidflow.infra.models.spec import (
    EXPORTED,
    KINDS,
    KINDS_ANYWHERE,
    MOTION,
    ONNX,
    TORCHVISION,
    Bundle,
    ModelSpec,
    Thresholds,
    check_known_labels,
    models_folder_error,
    parse_spec,
    read_bundle,
    read_weights,
    spec_error,
    validate_labels,
)

ENTRY_POINTS: Final = "vidflow.models"
TORCHVISION_WEIGHTS: Final = "COCO_V1"
TORCHVISION_DETECTORS: Final = (
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)
"""Listed here so that they are known without torch. A test compares them with torchvision's own list."""
EXTRAS: Final = {MOTION: "runner", ONNX: "runner", TORCHVISION: "torch", EXPORTED: "torch"}
"""The extra that each kind needs."""
LIBRARIES: Final = {"runner": ("numpy", "scipy", "onnxruntime"), "torch": ("numpy", "scipy", "torch", "torchvision")}
MAX_LISTED: Final = 1000


class ModelRef(msgspec.Struct, frozen=True):
    """A model that exists but is not loaded.

    `name` resolves to the same model again. `kind` selects the loader. `needs` is the extra of vidflow that it requires, None
    for models of other packages. `path` is its spec or ONNX file. `sha256` covers everything in its files that affects
    results; None without files. `labels` is None if only the loaded model knows them. `from_models_dir`: whether its files
    are in the models folder, where the operator put them.
    """

    name: str
    kind: str
    needs: str | None
    path: Path | None = None
    sha256: str | None = None
    labels: tuple[str, ...] | None = None
    from_models_dir: bool = False


class ModelListing(msgspec.Struct, frozen=True):
    """A model's name for listings. `error` is the reason if the model cannot be used."""

    name: str
    kind: str
    needs: str | None = None
    error: str | None = None


def resolve(model: str, models_dir: Path | None = None, *, any_onnx: bool = False) -> ModelRef:
    """Return the model with this name or path.

    `any_onnx`: without a models folder, allow an ONNX file or its spec anywhere. Raises ModelError if the model is unknown or
    its files are invalid.
    """
    if is_path(model):
        return _from_file(model, model_file(model, models_dir, any_onnx=any_onnx))
    if model == MOTION:
        return ModelRef(MOTION, MOTION, EXTRAS[MOTION], labels=(MOTION,))
    if model in TORCHVISION_DETECTORS:
        return ModelRef(model, TORCHVISION, EXTRAS[TORCHVISION])
    spec = _spec_paths(models_dir).get(model)
    if spec is not None and models_dir is not None:
        return _from_file(model, ModelFile(files.require_inside(models_dir, spec.name), from_models_dir=True))
    if model in _entry_points():
        return ModelRef(model, model, None)
    available = ", ".join(listed.name for listed in list_models(models_dir))
    raise ModelError(f"Unknown model {model[:200]!r}. Available: {available}. A path to a model spec also works.")


def list_models(models_dir: Path | None = None) -> list[ModelListing]:
    """Return all names that resolve on this machine, built-in ones first. A name whose spec is invalid has an error."""
    built_in = [ModelListing(MOTION, MOTION, EXTRAS[MOTION])]
    built_in += [ModelListing(name, TORCHVISION, EXTRAS[TORCHVISION]) for name in TORCHVISION_DETECTORS]
    taken = {listed.name for listed in built_in}
    specs = [_list_spec(name, path) for name, path in _spec_paths(models_dir).items() if name not in taken]
    taken |= {listed.name for listed in specs}
    return built_in + specs + [ModelListing(name, name) for name in sorted(_entry_points()) if name not in taken]


def require_same(ref: ModelRef, sha256: str | None) -> None:
    """Raise ModelError (model_changed) if the model differs from the one with which the scenario was created."""
    if sha256 is not None and ref.sha256 != sha256:
        raise ModelError(
            f"Model {ref.name!r} differs from the one with which the scenario was created. Install the same files on all "
            "machines, or create a new scenario.",
            code="model_changed",
        )


def load(ref: ModelRef, parameters: Parameters | None = None) -> Model:
    """Load the model, ready to infer, with the scenario's score threshold and labels.

    Raises MissingExtra (with the command that installs it) if a library is missing, ModelError if the model's files are
    invalid or changed since it was resolved, ParameterError for a label that it does not have, and Unavailable if its weights
    cannot be fetched.
    """
    require_extra(ref)
    bundle, content = _read(ref) if ref.path is not None else (None, b"")
    loader = _LOADERS.get(ref.kind)
    parameters = parameters or Parameters()
    if loader is not None:
        return loader(ref, bundle, content, parameters)
    entry = _entry_points().get(ref.kind)
    if entry is None:
        raise ModelError(f"The package that provides the model kind {ref.kind!r} is not installed here. Install it.")
    return load_plugin(ref.kind, lambda: entry.load()(bundle, parameters))


def check_parameters(ref: ModelRef, parameters: Parameters) -> None:
    """Raise ParameterError for a label that the model does not have, if its labels are known without loading it."""
    if ref.labels is not None:
        check_known_labels(parameters.labels or (), ref.labels)


def require_extra(ref: ModelRef) -> None:
    """Raise MissingExtra if libraries that this model needs are not installed. Import none of them."""
    missing = [name for name in LIBRARIES.get(ref.needs or "", ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(f"Model {ref.name!r} needs {', '.join(missing)}. {format_install_hint(ref.needs or '')}.")


def _spec_paths(models_dir: Path | None) -> dict[str, Path]:
    """Return the specs in the models folder by their stems."""
    if models_dir is None or not models_dir.is_dir():
        return {}
    return {path.stem: path for path in sorted(models_dir.glob("*.toml"))[:MAX_LISTED]}


def _list_spec(name: str, path: Path) -> ModelListing:
    try:
        ref = _from_file(name, ModelFile(files.require_inside(path.parent, path.name), from_models_dir=True))
    except ModelError as error:
        return ModelListing(name, "unusable", error=error.message)
    return ModelListing(name, ref.kind, ref.needs)


def _from_file(name: str, file: ModelFile) -> ModelRef:
    path, bundle = file.path, _bundle(file)
    kind = bundle.spec.kind
    if kind not in KINDS and kind not in _entry_points():
        raise spec_error(
            path.name, f"unknown kind {kind!r}; use {', '.join(KINDS)}, or install the package that provides it"
        )
    if bundle.spec.architecture is not None and bundle.spec.architecture not in TORCHVISION_DETECTORS:
        detectors = ", ".join(TORCHVISION_DETECTORS)
        raise spec_error(
            path.name, f"{bundle.spec.architecture!r} is not a torchvision detector; use one of {detectors}"
        )
    built_in = (MOTION,) if kind == MOTION else None
    labels = bundle.labels or built_in
    return ModelRef(name, kind, EXTRAS.get(kind), path, bundle.sha256, labels, file.from_models_dir)


def _bundle(file: ModelFile) -> Bundle:
    path = file.path
    if path.suffix == SPEC_SUFFIX:
        return read_bundle(path, None if file.from_models_dir else KINDS_ANYWHERE)
    if path.suffix == ONNX_SUFFIX:
        return _bundle_of_onnx(path)
    file_type = f"{path.suffix} file" if path.suffix else "file without a suffix"
    raise ModelError(
        f"A {file_type} does not describe how to run it; write a spec (.toml) next to it and name the spec.",
        code="model_refused",
    )


def _bundle_of_onnx(path: Path) -> Bundle:
    """Return the bundle of the spec inside an ONNX file. Its labels must be a list, since it has no folder with other files."""
    text = read_metadata(path).get(SPEC_KEY)
    if text is None:
        raise ModelError(
            f"{path.name} does not describe how to run it; write a spec (.toml) next to it and name the spec, or put the spec "
            f"into its metadata under {SPEC_KEY!r}.",
            code="model_refused",
        )
    spec = parse_spec(f'file = "this.onnx"\n{text}'.encode(), path.name)
    if spec.kind != ONNX or spec.sha256 is not None or not isinstance(spec.labels, list):
        raise spec_error(path.name, "the spec in its metadata must have kind 'onnx', no `sha256`, and a list of labels")
    sha256 = files.sha256_of_file(path)
    return Bundle(spec, path, path, sha256, validate_labels(spec.labels, path.name), sha256)


def _read(ref: ModelRef) -> tuple[Bundle, bytes]:
    """Read the model's files again. Return the bundle and the weights. Raises ModelError if they changed since `ref` was made."""
    if ref.path is None:
        raise ModelError(f"Model {ref.name!r} has no files.")
    bundle = _bundle(ModelFile(ref.path, ref.from_models_dir))
    if bundle.sha256 != ref.sha256:
        raise ModelError(
            f"The files of model {ref.name!r} changed while it was loaded. Start the scenario again.",
            code="model_changed",
        )
    return bundle, read_weights(bundle) if bundle.weights_path is not None else b""


def _load_motion(_ref: ModelRef, bundle: Bundle | None, _content: bytes, parameters: Parameters) -> Model:
    from vidflow.infra.models import detector, motion  # noqa: PLC0415  (heavy: imported only to run a model)

    thresholds = bundle.spec.thresholds if bundle is not None else Thresholds()
    return motion.MotionModel(
        detector.build_filter(thresholds, (MOTION,), parameters.score_threshold, parameters.labels)
    )


def _load_onnx(_ref: ModelRef, bundle: Bundle | None, content: bytes, parameters: Parameters) -> Model:
    from vidflow.infra.models import detector, onnx  # noqa: PLC0415

    bundle = _require_bundle(bundle)
    detection_filter = detector.build_filter(
        bundle.spec.thresholds, bundle.labels, parameters.score_threshold, parameters.labels
    )
    return onnx.load_onnx(content, bundle.spec, bundle.labels, detection_filter, bundle.path)


def _load_exported(ref: ModelRef, bundle: Bundle | None, content: bytes, parameters: Parameters) -> Model:
    if not ref.from_models_dir:  # checked again directly before loading, which can run code
        raise models_folder_error(EXPORTED, ref.name)
    from vidflow.infra.models import detector, exported  # noqa: PLC0415

    bundle = _require_bundle(bundle)
    detection_filter = detector.build_filter(
        bundle.spec.thresholds, bundle.labels, parameters.score_threshold, parameters.labels
    )
    return exported.load_exported(content, bundle.spec, bundle.labels, detection_filter, bundle.path)


def _load_torchvision(ref: ModelRef, bundle: Bundle | None, content: bytes, parameters: Parameters) -> Model:
    from vidflow.infra.models import detector, torchvision  # noqa: PLC0415

    spec = (
        bundle.spec
        if bundle is not None
        else ModelSpec(TORCHVISION, architecture=ref.name, weights=TORCHVISION_WEIGHTS)
    )
    architecture = spec.architecture or ref.name
    score = spec.thresholds.score if parameters.score_threshold is None else parameters.score_threshold
    if spec.weights is not None or bundle is None:
        net, labels = torchvision.load_by_name(
            architecture, spec.weights or TORCHVISION_WEIGHTS, spec.thresholds, score
        )
    else:
        labels = bundle.labels
        state = torchvision.load_state_dict(content, bundle.path)
        net = torchvision.build_detector(architecture, state, len(labels), spec.thresholds, score, str(bundle.path))
    return torchvision.TorchvisionModel(
        net, labels, detector.build_filter(spec.thresholds, labels, score, parameters.labels)
    )


def _require_bundle(bundle: Bundle | None) -> Bundle:
    if bundle is None:
        raise ModelError("A model of this kind needs a spec. Name the spec's path or stem.", code="model_refused")
    return bundle


Loader = Callable[[ModelRef, Bundle | None, bytes, Parameters], Model]
_LOADERS: Final[dict[str, Loader]] = {
    MOTION: _load_motion,
    ONNX: _load_onnx,
    EXPORTED: _load_exported,
    TORCHVISION: _load_torchvision,
}


@cache
def _entry_points() -> dict[str, metadata.EntryPoint]:
    """Return the models of other packages by name. They cannot replace built-in kinds."""
    return {entry.name: entry for entry in metadata.entry_points(group=ENTRY_POINTS) if entry.name not in KINDS}
