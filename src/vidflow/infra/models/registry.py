"""Resolve the name that a user gives to a model, and load the model. Only loading needs numpy, torch or onnxruntime.

A model is named by one of these:

* a built-in name: `yolox_nano`, which is the default, `motion`, or a torchvision detector such as `ssdlite320_mobilenet_v3_large`
  (weights COCO_V1);
* the stem of a spec in the models folder: `helmets` for `<models_dir>/helmets.toml`. It may replace a built-in spec (`yolox_nano`);
* an entry point in the group `vidflow.models`, for models of other packages: a function that takes the Bundle (None without
  a spec) and the Parameters, and returns a Model;
* the path of a spec (`.toml`), or of an ONNX file (`.onnx`) whose metadata contains its spec, as TOML, under `vidflow`, or which
  has the form of a known exporter (recognition.py).

`resolve` reads and checks the model's files and returns a Bundle, which `load` takes. paths.py decides which paths a request may
name. Kinds other than `onnx` must be in the models folder, since loading them can run code or cannot be proved not to.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from vidflow.domain.device import CPU, Device
from vidflow.domain.errors import MissingExtra, ModelError, format_install_hint
from vidflow.domain.messages import Parameters
from vidflow.infra.models.bundle import Bundle, KeepWeights, find_files, read_bundle
from vidflow.infra.models.label_files import BUILT_IN_FOLDER
from vidflow.infra.models.model import Model
from vidflow.infra.models.paths import ModelFile, is_path, listed_file, model_file
from vidflow.infra.models.plugin import load_plugin
from vidflow.infra.models.spec import (
    EXPORTED,
    EXTRAS,
    KINDS,
    MOTION,
    ONNX,
    TORCHVISION,
    ModelSpec,
    check_known_labels,
    models_folder_error,
    spec_error,
    torchvision_task,
)

if TYPE_CHECKING:
    from vidflow.infra.models.detector import Network

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
LIBRARIES: Final = {"runner": ("numpy", "scipy", "onnxruntime"), "torch": ("numpy", "scipy", "torch", "torchvision")}
MAX_LISTED: Final = 1000


class ModelListing(msgspec.Struct, frozen=True):
    """A model's name for listings. `error` is the reason if the model cannot be used."""

    name: str
    kind: str
    needs: str | None = None
    error: str | None = None


BUILT_IN: Final = {
    MOTION: Bundle(MOTION, ModelSpec(MOTION), labels=(MOTION,)),
    **{
        name: Bundle(
            name, ModelSpec(TORCHVISION, task=torchvision_task(name), architecture=name, weights=TORCHVISION_WEIGHTS)
        )
        for name in TORCHVISION_DETECTORS
    },
}
"""The models without files, by name."""
BUILT_IN_SPECS: Final = {"yolox_nano": BUILT_IN_FOLDER / "yolox_nano.toml"}
"""The specs of the models whose files are part of vidflow, by name."""


def resolve(
    model: str, models_dir: Path | None = None, *, any_onnx: bool = False, keep_weights: KeepWeights = False
) -> Bundle:
    """Return the model with this name or path. Its files are read and checked once; what follows takes the Bundle.

    `any_onnx`: without a models folder, allow an ONNX file or its spec anywhere. `keep_weights`: whether to keep the weights in
    memory, which `load` needs. Raises ModelError if the model is unknown or its files are invalid.
    """
    if is_path(model):
        return _read(model, model_file(model, models_dir, any_onnx=any_onnx), keep_weights=keep_weights)
    if model in BUILT_IN:
        return BUILT_IN[model]
    spec = _spec_paths(models_dir).get(model)
    if spec is not None:
        return _read_listed(model, spec, keep_weights=keep_weights)
    if model in _entry_points():
        return Bundle(model, ModelSpec(model))
    available = ", ".join(list_names(models_dir))
    raise ModelError(f"Unknown model {model[:200]!r}. Available: {available}. A path to a model spec also works.")


class ModelUse(msgspec.Struct, frozen=True):
    """What a process needs in order to load a model.

    `files`: the real paths of its files. `kind`: the kind of its spec, None if that is not known or needs nothing. `fetches_weights`:
    torchvision fetches its weights unless it has them.
    """

    files: tuple[Path, ...] = ()
    kind: str | None = None
    fetches_weights: bool = False

    @property
    def is_plugin(self) -> bool:
        """Whether it belongs to another package, which may need anything."""
        return self.kind is not None and self.kind not in KINDS


def find_use(model: str, models_dir: Path | None = None, *, any_onnx: bool = False) -> ModelUse:
    """Return what loading the model needs, by its name and its spec alone. For one that cannot be used: what shows why."""
    if not is_path(model) and model not in _spec_paths(models_dir):
        is_fetched = model in TORCHVISION_DETECTORS
        kind = TORCHVISION if is_fetched else model if model in _entry_points() else None
        return ModelUse(kind=kind, fetches_weights=is_fetched)
    try:
        spec_path = None if is_path(model) else _spec_paths(models_dir)[model]
        file = model_file(model, models_dir, any_onnx=any_onnx) if spec_path is None else listed_file(spec_path)
    except ModelError:
        return ModelUse()
    found = find_files(file)
    if found.spec is None:
        return ModelUse(found.paths)
    return ModelUse(found.paths, found.spec.kind, found.spec.weights is not None)


def import_libraries(use: ModelUse) -> None:
    """Import the libraries of the model's kind. A confined process cannot import all of them: torch's import runs programs.

    What fails is raised when the model is loaded.
    """
    entry = _entry_points().get(use.kind or "")
    try:
        if entry is not None:
            entry.load()
        elif EXTRAS.get(use.kind or "") == "torch":
            importlib.import_module("torch")
            importlib.import_module("torchvision")
    except Exception:  # noqa: BLE001 - a package may raise anything
        return


def list_names(models_dir: Path | None = None) -> list[str]:
    """Return all names of models on this machine, built-in ones first. No file is read, so a spec may be invalid."""
    return list(dict.fromkeys([*BUILT_IN_SPECS, *BUILT_IN, *_spec_paths(models_dir), *sorted(_entry_points())]))


def list_models(models_dir: Path | None = None) -> list[ModelListing]:
    """Return the models of `list_names`. A name whose spec is invalid has an error."""
    specs = _spec_paths(models_dir)
    return [_list_model(name, specs.get(name)) for name in list_names(models_dir)]


def require_same(bundle: Bundle, sha256: str | None) -> None:
    """Raise ModelError (model_changed) if the model differs from the one with which the scenario was created."""
    if sha256 is not None and bundle.sha256 != sha256:
        raise ModelError(
            f"Model {bundle.name!r} differs from the one with which the scenario was created. Install the same files on all "
            "machines, or create a new scenario.",
            code="model_changed",
        )


def load(bundle: Bundle, parameters: Parameters | None = None, device: Device = CPU) -> Model:
    """Load a model that was resolved with its weights, ready to infer, with the scenario's score threshold and labels.

    `device`: what it runs on; `motion` always runs on the CPU, and models of other packages choose their device themselves.

    Raises MissingExtra (with the command that installs it) if a library is missing, ModelError if the model's files are
    invalid, ParameterError for a label that it does not have, DeviceUnavailable if it cannot use the device, and Unavailable if its
    weights cannot be fetched.
    """
    require_extra(bundle)
    loader = _LOADERS.get(bundle.kind)
    parameters = parameters or Parameters()
    if loader is not None:
        return loader(bundle, parameters, device)
    entry = _entry_points().get(bundle.kind)
    if entry is None:
        raise ModelError(f"The package that provides the model kind {bundle.kind!r} is not installed here. Install it.")
    return load_plugin(bundle.kind, lambda: entry.load()(bundle if bundle.path is not None else None, parameters))


def can_be_shared(spec: ModelSpec, parameters: Parameters) -> bool:
    """Return whether one process can run the model for several workers: a network that takes tensors and keeps no state.

    torchvision's detectors drop low scores themselves, and their masks are too large to be passed between processes.
    """
    if spec.kind == TORCHVISION:
        keeps_all = parameters.score_threshold is None or parameters.score_threshold >= spec.thresholds.score
        return keeps_all and spec.task != "instance_segmentation"
    return spec.kind in _NETWORKS


def open_network(bundle: Bundle, device: Device = CPU) -> Network:
    """Open the network of a model that can be shared and was resolved with its weights. Errors are those of `load`."""
    require_extra(bundle)
    return _NETWORKS[bundle.kind](bundle, device)


def detect_with(network: Network, bundle: Bundle, parameters: Parameters) -> Model:
    """Return the model that runs on this network, here or in another process. Errors are those of `load`."""
    if bundle.kind == TORCHVISION:
        from vidflow.infra.models.torchvision_model import TorchvisionModel  # noqa: PLC0415

        return TorchvisionModel(network, bundle, parameters)
    from vidflow.infra.models.detector import TensorDetector  # noqa: PLC0415

    return TensorDetector(network, bundle, parameters)


def check_labels(bundle: Bundle, labels: Iterable[str]) -> None:
    """Raise ParameterError for a label that the model does not have, if the model's labels are known without loading it."""
    if bundle.labels:
        check_known_labels(labels, bundle.labels)


def require_extra(bundle: Bundle) -> None:
    """Raise MissingExtra if libraries that this model needs are not installed. Import none of them."""
    missing = missing_libraries(bundle.needs or "")
    if missing:
        raise MissingExtra(
            f"Model {bundle.name!r} needs {', '.join(missing)}. {format_install_hint(bundle.needs or '')}."
        )


def missing_libraries(extra: str) -> list[str]:
    """Return the libraries of an extra that models need and that are not installed. Import none of them."""
    return [name for name in LIBRARIES.get(extra, ()) if importlib.util.find_spec(name) is None]


def _spec_paths(models_dir: Path | None) -> dict[str, Path]:
    """Return the specs in the models folder and the built-in ones by their stems. Those in the folder replace the others."""
    if models_dir is None or not models_dir.is_dir():
        return BUILT_IN_SPECS
    return BUILT_IN_SPECS | {path.stem: path for path in sorted(models_dir.glob("*.toml"))[:MAX_LISTED]}


def _list_model(name: str, spec: Path | None) -> ModelListing:
    try:
        if name in BUILT_IN or spec is None:
            bundle = BUILT_IN.get(name) or Bundle(name, ModelSpec(name))
        else:
            bundle = _read_listed(name, spec, keep_weights=False)
    except ModelError as error:
        return ModelListing(name, "unusable", error=error.message)
    return ModelListing(name, bundle.kind, bundle.needs)


def _read_listed(name: str, spec: Path, *, keep_weights: KeepWeights) -> Bundle:
    """Read a spec in the models folder, or a built-in one."""
    return _read(name, listed_file(spec), keep_weights=keep_weights)


def _read(name: str, file: ModelFile, *, keep_weights: KeepWeights) -> Bundle:
    bundle = read_bundle(name, file, keep_weights=keep_weights)
    kind, architecture = bundle.kind, bundle.spec.architecture
    if kind not in KINDS and kind not in _entry_points():
        raise spec_error(
            file.path.name, f"unknown kind {kind!r}; use {', '.join(KINDS)}, or install the package that provides it"
        )
    if architecture is not None and architecture not in TORCHVISION_DETECTORS:
        detectors = ", ".join(TORCHVISION_DETECTORS)
        raise spec_error(file.path.name, f"{architecture!r} is not a torchvision detector; use one of {detectors}")
    return bundle


def _load_motion(bundle: Bundle, parameters: Parameters, _device: Device) -> Model:
    from vidflow.infra.models.motion import load_motion  # noqa: PLC0415  (heavy: imported only to run a model)

    return load_motion(bundle, parameters)


def _load_tensor_detector(bundle: Bundle, parameters: Parameters, device: Device) -> Model:
    return detect_with(open_network(bundle, device), bundle, parameters)


def _open_onnx(bundle: Bundle, device: Device) -> Network:
    from vidflow.infra.models.onnx import open_network as open_onnx  # noqa: PLC0415

    return open_onnx(bundle, device)


def _open_exported(bundle: Bundle, device: Device) -> Network:
    if not bundle.from_models_dir:  # the last barrier before code from the file may run
        raise models_folder_error(EXPORTED, bundle.name)
    from vidflow.infra.models.exported import open_program  # noqa: PLC0415

    return open_program(bundle, device)


def _load_torchvision(bundle: Bundle, parameters: Parameters, device: Device) -> Model:
    from vidflow.infra.models.torchvision import open_detector  # noqa: PLC0415

    return detect_with(open_detector(bundle, device, parameters.score_threshold), bundle, parameters)


def _open_torchvision(bundle: Bundle, device: Device) -> Network:
    from vidflow.infra.models.torchvision import open_detector  # noqa: PLC0415

    return open_detector(bundle, device)


_LOADERS: Final[dict[str, Callable[[Bundle, Parameters, Device], Model]]] = {
    MOTION: _load_motion,
    ONNX: _load_tensor_detector,
    EXPORTED: _load_tensor_detector,
    TORCHVISION: _load_torchvision,
}

_NETWORKS: Final[dict[str, Callable[[Bundle, Device], Network]]] = {
    ONNX: _open_onnx,
    EXPORTED: _open_exported,
    TORCHVISION: _open_torchvision,
}


@cache
def _entry_points() -> dict[str, metadata.EntryPoint]:
    """Return the models of other packages by name. They cannot replace built-in kinds."""
    return {entry.name: entry for entry in metadata.entry_points(group=ENTRY_POINTS) if entry.name not in KINDS}
