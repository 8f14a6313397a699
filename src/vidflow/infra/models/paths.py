"""Decides which file a request may name as a model. Requests are hostile: a path is judged as written, and with its links followed.

With a models folder, only files in that folder. Without one, and only where `any_onnx` allows it, an ONNX file or its spec
anywhere, which is read as data. Other kinds can run code when they are loaded and come from the models folder alone.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import msgspec

from vidflow.domain.errors import ModelError
from vidflow.infra.models import files

SPEC_SUFFIX: Final = ".toml"
ONNX_SUFFIX: Final = ".onnx"
SUFFIXES: Final = frozenset({SPEC_SUFFIX, ONNX_SUFFIX, ".pt", ".pth", ".pt2", ".safetensors"})
"""A name that ends like this is a path, though it has no slash."""
SYSTEM_FOLDERS: Final = tuple(Path(name) for name in ("/proc", "/sys", "/dev"))
"""What is below these is made by the system at each look: no model is there."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SHOWN_CHARACTERS: Final = 200


class ModelFile(msgspec.Struct, frozen=True):
    """A model's spec or ONNX file, its links followed. `from_models_dir`: the operator put it there and vouches for it."""

    path: Path
    from_models_dir: bool


def is_path(model: str) -> bool:
    """Return whether a request's `model` names a file, rather than a model by its name."""
    return "/" in model or Path(model).suffix in SUFFIXES


def model_file(model: str, models_dir: Path | None, *, any_onnx: bool) -> ModelFile:
    """Return the file that `model` names. `~` is not expanded.

    Raises ModelError if the file does not exist or may not be named.
    """
    if _CONTROL.search(model):
        raise ModelError(f"{_quote(model)} has a control character; rename the file", code="model_refused")
    if models_dir is not None:
        return ModelFile(_resolve_in_models_dir(model, models_dir), from_models_dir=True)
    if any_onnx:
        return ModelFile(_resolve_anywhere(model), from_models_dir=False)
    raise ModelError(
        f"this server takes models by name only, not the path {_quote(model)}; start it with --models-dir, put the "
        "spec there and give the spec's stem",
        code="model_refused",
    )


def _resolve_in_models_dir(model: str, models_dir: Path) -> Path:
    """The answer is the same for what is elsewhere and for what does not exist, so that nobody can look around."""
    absent = ModelError(f"the models folder has no file {_quote(model)}; give a spec's stem")
    path = models_dir.absolute() / model
    try:
        homes = (models_dir.absolute(), models_dir.resolve())
        real = files.require_inside(models_dir, path)
    except (ModelError, OSError, RuntimeError) as error:
        raise absent from error
    if ".." in Path(model).parts or not any(path.is_relative_to(home) for home in homes):
        raise absent
    return real


def _resolve_anywhere(model: str) -> Path:
    written = Path(os.path.normpath(model))
    if not written.is_absolute():
        raise ModelError(f"{_quote(model)} is not an absolute path; begin it with /", code="model_refused")
    _require_allowed_location(written, model)
    real = files.require_inside(Path("/"), Path(model))
    _require_allowed_location(real, model)
    return real


def _require_allowed_location(path: Path, model: str) -> None:
    if any(path.is_relative_to(folder) for folder in SYSTEM_FOLDERS):
        raise ModelError(f"{_quote(model)} leads into a system folder; copy the model elsewhere", code="model_refused")
    if path.suffix not in {SPEC_SUFFIX, ONNX_SUFFIX}:
        raise ModelError(
            f"{_quote(model)} is neither an ONNX file (.onnx) nor its spec (.toml); put other models into the models "
            "folder (--models-dir) and give the spec's stem",
            code="model_refused",
        )


def _quote(model: str) -> str:
    return repr(model[:_SHOWN_CHARACTERS])
