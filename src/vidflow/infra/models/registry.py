"""From what a user calls a model to a loaded Model. Naming and checking need no numpy, torch or onnxruntime; loading does.

A model is called by

* a name of our own: `motion`, or a detector of torchvision such as `ssdlite320_mobilenet_v3_large` (weights COCO_V1);
* the stem of a spec in the models folder: `yolox_nano` for `<models_dir>/yolox_nano.toml`;
* a name from the entry-point group `vidflow.models`, for models of other packages: a function of the Bundle (None where
  there is no spec) and the Parameters that gives a Model;
* the path of a spec (`.toml`) or of an ONNX file (`.onnx`) that carries its spec, as TOML, in its metadata under `vidflow`.

Which paths a request may name is decided in paths.py. Kinds other than `onnx` come from the models folder alone, since loading
them can run code, or cannot be shown not to.
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
"""Known here by name, so that they can be listed without torch; a test compares them with torchvision's own list."""
EXTRAS: Final = {MOTION: "runner", ONNX: "runner", TORCHVISION: "torch", EXPORTED: "torch"}
"""The extra that runs a kind."""
LIBRARIES: Final = {"runner": ("numpy", "scipy", "onnxruntime"), "torch": ("numpy", "scipy", "torch", "torchvision")}
MAX_LISTED: Final = 1000


class ModelRef(msgspec.Struct, frozen=True):
    """A model that exists, not loaded.

    `name` is what resolves to it again, `kind` who runs it, `needs` the extra of vidflow for that (None: another package's
    affair), `path` its spec or ONNX file. `sha256` covers all in those files that decides on results (None: no files).
    `labels` is None where only the loaded model knows them. `from_models_dir`: the operator put its files there.
    """

    name: str
    kind: str
    needs: str | None
    path: Path | None = None
    sha256: str | None = None
    labels: tuple[str, ...] | None = None
    from_models_dir: bool = False


class ModelListing(msgspec.Struct, frozen=True):
    """A name that can be asked for; `error` says why it cannot be used as it stands."""

    name: str
    kind: str
    needs: str | None = None
    error: str | None = None


def resolve(model: str, models_dir: Path | None = None, *, any_onnx: bool = False) -> ModelRef:
    """Return the model that this name or path means.

    `any_onnx`: without a models folder, an ONNX file or its spec may be named wherever it is. Raises ModelError that says what
    is known, or what is wrong with its files.
    """
    if is_path(model):
        return _from_file(model, model_file(model, models_dir, any_onnx=any_onnx))
    if model == MOTION:
        return ModelRef(MOTION, MOTION, EXTRAS[MOTION], labels=(MOTION,))
    if model in TORCHVISION_DETECTORS:
        return ModelRef(model, TORCHVISION, EXTRAS[TORCHVISION])
    spec = _spec_paths(models_dir).get(model)
    if spec is not None and models_dir is not None:
        return _from_file(model, ModelFile(files.require_inside(models_dir, spec), from_models_dir=True))
    if model in _entry_points():
        return ModelRef(model, model, None)
    known = ", ".join(listed.name for listed in list_models(models_dir))
    raise ModelError(f"there is no model {model[:200]!r}; known here are {known}; a spec's path is taken too")


def list_models(models_dir: Path | None = None) -> list[ModelListing]:
    """All names that resolve here, ours first; those whose spec is wrong come with the error."""
    ours = [ModelListing(MOTION, MOTION, EXTRAS[MOTION])]
    ours += [ModelListing(name, TORCHVISION, EXTRAS[TORCHVISION]) for name in TORCHVISION_DETECTORS]
    taken = {listed.name for listed in ours}
    specs = [_list_spec(name, path, models_dir) for name, path in _spec_paths(models_dir).items() if name not in taken]
    taken |= {listed.name for listed in specs}
    return ours + specs + [ModelListing(name, name) for name in sorted(_entry_points()) if name not in taken]


def require_same(ref: ModelRef, sha256: str | None) -> None:
    """Raises ModelError (model_changed) where the model here is not the one that the scenario was made with."""
    if sha256 is not None and ref.sha256 != sha256:
        raise ModelError(
            f"the model {ref.name!r} is another here than when the scenario was made; put the same files everywhere, "
            "or ask for a new scenario",
            code="model_changed",
        )


def load(ref: ModelRef, parameters: Parameters | None = None) -> Model:
    """The model, ready to infer, with the scenario's score threshold and labels in force.

    Raises MissingExtra (with the command to type) where a library is missing, ModelError where its files are wrong or
    changed since it was resolved, ParameterError for a label that it does not know, Unavailable for weights out of reach.
    """
    require_extra(ref)
    bundle, content = _read(ref) if ref.path is not None else (None, b"")
    loader = _LOADERS.get(ref.kind)
    chosen = parameters or Parameters()
    if loader is not None:
        return loader(ref, bundle, content, chosen)
    entry = _entry_points().get(ref.kind)
    if entry is None:
        raise ModelError(f"the package that offers the model kind {ref.kind!r} is not installed here; install it")
    return load_plugin(ref.kind, lambda: entry.load()(bundle, chosen))


def check_parameters(ref: ModelRef, parameters: Parameters) -> None:
    """Raises ParameterError for a label that the model does not have, where its labels are known without loading it."""
    if ref.labels is not None:
        check_known_labels(parameters.labels or (), ref.labels)


def require_extra(ref: ModelRef) -> None:
    """Raises MissingExtra where the libraries that run this model are not installed; imports none of them."""
    missing = [name for name in LIBRARIES.get(ref.needs or "", ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(f"the model {ref.name!r} needs {', '.join(missing)}; {format_install_hint(ref.needs or '')}")


def _spec_paths(models_dir: Path | None) -> dict[str, Path]:
    """The specs of the models folder by their stems."""
    if models_dir is None or not models_dir.is_dir():
        return {}
    return {path.stem: path for path in sorted(models_dir.glob("*.toml"))[:MAX_LISTED]}


def _list_spec(name: str, path: Path, models_dir: Path | None) -> ModelListing:
    try:
        ref = _from_file(name, ModelFile(files.require_inside(models_dir or path.parent, path), from_models_dir=True))
    except ModelError as error:
        return ModelListing(name, "unusable", error=error.message)
    return ModelListing(name, ref.kind, ref.needs)


def _from_file(name: str, file: ModelFile) -> ModelRef:
    path, bundle = file.path, _bundle(file)
    kind = bundle.spec.kind
    if kind not in KINDS and kind not in _entry_points():
        raise spec_error(
            path.name, f"there is no kind {kind!r}; use {', '.join(KINDS)}, or install the package that has it"
        )
    if bundle.spec.architecture is not None and bundle.spec.architecture not in TORCHVISION_DETECTORS:
        detectors = ", ".join(TORCHVISION_DETECTORS)
        raise spec_error(
            path.name, f"{bundle.spec.architecture!r} is no detector of torchvision; use one of {detectors}"
        )
    own = (MOTION,) if kind == MOTION else None
    return ModelRef(name, kind, EXTRAS.get(kind), path, bundle.sha256, bundle.labels or own, file.from_models_dir)


def _bundle(file: ModelFile) -> Bundle:
    path = file.path
    if path.suffix == SPEC_SUFFIX:
        return read_bundle(path, None if file.from_models_dir else KINDS_ANYWHERE)
    if path.suffix == ONNX_SUFFIX:
        return _bundle_of_onnx(path)
    raise ModelError(
        f"a {path.suffix or 'file without ending'} does not say how it is to be run; write a spec (.toml) beside it and "
        "name that",
        code="model_refused",
    )


def _bundle_of_onnx(path: Path) -> Bundle:
    """The spec that an ONNX file carries. Its labels must be a list: it has no folder of its own to name files in."""
    text = read_metadata(path).get(SPEC_KEY)
    if text is None:
        raise ModelError(
            f"{path.name} does not say how it is to be run; write a spec (.toml) beside it and name that, or put the spec "
            f"into its metadata under {SPEC_KEY!r}",
            code="model_refused",
        )
    spec = parse_spec(f'file = "this.onnx"\n{text}'.encode(), path.name)
    if spec.kind != ONNX or spec.sha256 is not None or not isinstance(spec.labels, list):
        raise spec_error(
            path.name, "the spec in its metadata must be of kind 'onnx', without `sha256`, its labels a list"
        )
    sha256 = files.sha256_of_file(path)
    return Bundle(spec, path, path, sha256, validate_labels(spec.labels, path.name), sha256)


def _read(ref: ModelRef) -> tuple[Bundle, bytes]:
    """The bundle that the reference was made of, read again, and its weights."""
    if ref.path is None:
        raise ModelError(f"the model {ref.name!r} has no files")
    bundle = _bundle(ModelFile(ref.path, ref.from_models_dir))
    if bundle.sha256 != ref.sha256:
        raise ModelError(
            f"the files of the model {ref.name!r} changed while it was started; start anew", code="model_changed"
        )
    return bundle, read_weights(bundle) if bundle.weights_path is not None else b""


def _load_motion(_ref: ModelRef, bundle: Bundle | None, _content: bytes, chosen: Parameters) -> Model:
    from vidflow.infra.models import detector, motion  # noqa: PLC0415  (heavy: only where a model is run)

    thresholds = bundle.spec.thresholds if bundle is not None else Thresholds()
    keep = detector.build_filter(thresholds, (MOTION,), chosen.score_threshold, chosen.labels)
    return motion.MotionModel(keep)


def _load_onnx(_ref: ModelRef, bundle: Bundle | None, content: bytes, chosen: Parameters) -> Model:
    from vidflow.infra.models import detector, onnx  # noqa: PLC0415

    given = _require_bundle(bundle)
    keep = detector.build_filter(given.spec.thresholds, given.labels, chosen.score_threshold, chosen.labels)
    return onnx.load_onnx(content, given.spec, given.labels, keep, given.path)


def _load_exported(ref: ModelRef, bundle: Bundle | None, content: bytes, chosen: Parameters) -> Model:
    if not ref.from_models_dir:  # checked once more, right before what can run code
        raise models_folder_error(EXPORTED, ref.name)
    from vidflow.infra.models import detector, exported  # noqa: PLC0415

    given = _require_bundle(bundle)
    keep = detector.build_filter(given.spec.thresholds, given.labels, chosen.score_threshold, chosen.labels)
    return exported.load_exported(content, given.spec, given.labels, keep, given.path)


def _load_torchvision(ref: ModelRef, bundle: Bundle | None, content: bytes, chosen: Parameters) -> Model:
    from vidflow.infra.models import detector, torchvision  # noqa: PLC0415

    spec = (
        bundle.spec
        if bundle is not None
        else ModelSpec(TORCHVISION, architecture=ref.name, weights=TORCHVISION_WEIGHTS)
    )
    architecture = spec.architecture or ref.name
    score = spec.thresholds.score if chosen.score_threshold is None else chosen.score_threshold
    if spec.weights is not None or bundle is None:
        net, labels = torchvision.load_by_name(
            architecture, spec.weights or TORCHVISION_WEIGHTS, spec.thresholds, score
        )
    else:
        labels = bundle.labels
        state = torchvision.load_state_dict(content, bundle.path)
        net = torchvision.build_detector(architecture, state, len(labels), spec.thresholds, score, str(bundle.path))
    return torchvision.TorchvisionModel(
        net, labels, detector.build_filter(spec.thresholds, labels, score, chosen.labels)
    )


def _require_bundle(bundle: Bundle | None) -> Bundle:
    if bundle is None:
        raise ModelError("a model of this kind is run by its spec; name the spec's path or stem", code="model_refused")
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
    """Models of other packages by name; ours cannot be replaced."""
    return {entry.name: entry for entry in metadata.entry_points(group=ENTRY_POINTS) if entry.name not in KINDS}
