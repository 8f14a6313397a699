"""ONNX files whose labels are in another file: the spec of both, for the time of one command or to keep."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from vidflow.commands.run.model import locate_model
from vidflow.commands.run.source import local_path
from vidflow.domain.errors import ModelError, ParameterError
from vidflow.infra.models.bundle import recognise_file
from vidflow.infra.models.label_files import BUILT_IN_LABELS, read_labels
from vidflow.infra.models.paths import ONNX_SUFFIX, is_path, model_file
from vidflow.infra.models.recognition import Recognition

_STEM: Final = "model"


@contextmanager
def labelled_model(model: str, labels_file: str | None) -> Iterator[str]:
    """Yield the name of the model: its own without `labels_file`, or else the path of a spec that gives the labels to its ONNX file.

    Raises ModelError or ParameterError if the file is not recognised, has a spec, or the labels do not fit.
    """
    if labels_file is None:
        yield model
        return
    with temporary_spec(model, recognise_with_labels(model, labels_file)) as path:
        yield path


@contextmanager
def temporary_spec(model: str, recognition: Recognition) -> Iterator[str]:
    """Yield the path of a spec of an ONNX file, which exists as long as the block runs."""
    with TemporaryDirectory(prefix="vidflow-labels-") as name:
        folder = Path(name)
        write_spec(folder / f"{_STEM}.toml", recognition, f"{_STEM}{ONNX_SUFFIX}")
        (folder / f"{_STEM}{ONNX_SUFFIX}").symlink_to(locate_model(model))
        yield str(folder / f"{_STEM}.toml")


def recognise_with_labels(model: str, labels_file: str) -> Recognition:
    """Return the spec of an ONNX file with these labels: a file with one label a line, or `coco80` or `coco91`. Errors as above."""
    located = locate_model(model)
    if not is_path(located) or Path(located).suffix != ONNX_SUFFIX:
        raise ParameterError(
            f"--labels-file is for an {ONNX_SUFFIX} file without a spec, not for {model[:200]!r}. Write the labels into the model's spec."
        )
    built_in = BUILT_IN_LABELS.get(labels_file)
    try:
        path = (built_in or local_path(labels_file)).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"Cannot read the labels file {labels_file[:200]!r}. Check its name and permissions, or use {' or '.join(BUILT_IN_LABELS)}.",
            code="model_file_missing",
        ) from error
    return recognise_file(model_file(located, None, any_onnx=True), read_labels(path))


def write_spec(path: Path, recognition: Recognition, weights: str, sha256: str | None = None) -> list[Path]:
    """Write the spec of an ONNX file beside it, with its labels in a file of their own. Return the paths.

    Raises ParameterError if one of the files exists.
    """
    texts = {path: recognition.to_toml(weights, sha256)}
    if isinstance(recognition.spec.labels, list):
        names = path.with_suffix(".names")
        texts = {
            path: recognition.to_toml(weights, sha256, labels_file=names.name),
            names: "".join(f"{label}\n" for label in recognition.spec.labels),
        }
    existing = [str(each) for each in texts if os.path.lexists(each)]
    if existing:
        raise ParameterError(f"{' and '.join(existing)} exists. Rename or delete it first.")
    for each, text in texts.items():
        try:
            with each.open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise ParameterError(f"Cannot write {each} ({error.strerror}). Check the folder's permissions.") from error
    return list(texts)
