"""A model's spec and the files that it names: each is read once, checked once, and handed on as one value, the Bundle."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Final

import msgspec

from vidflow.domain.errors import ModelError
from vidflow.infra.models import files
from vidflow.infra.models.label_files import BUILT_IN_LABELS, parse_labels
from vidflow.infra.models.onnx_metadata import SPEC_KEY, read_graph, read_metadata
from vidflow.infra.models.paths import ONNX_SUFFIX, SPEC_SUFFIX, ModelFile
from vidflow.infra.models.recognition import Recognition, recognise
from vidflow.infra.models.spec import (
    EXPORTED,
    EXTRAS,
    KINDS_ANYWHERE,
    MOTION,
    ONNX,
    ModelSpec,
    models_folder_error,
    parse_spec,
    spec_error,
    validate_labels,
)

BYTE_ORDER_MARK: Final = "\ufeff"
KeepWeights = bool | Callable[[ModelSpec], bool]
"""Whether the weights are kept in memory, of all models or by the model's spec."""


class Bundle(msgspec.Struct, frozen=True):
    """A model whose files are checked. It is not loaded, and what follows, loading included, reads none of its files again unchecked.

    `name` resolves to the same model again. `path` is the file from which the spec was read, None for a model without files.
    `labels` is empty if only the loaded model knows them. `sha256` is a digest of everything in the files that affects results:
    the spec, the labels and the weights; None without files. `weights` are the bytes with the digest `weights_sha256`, only for
    a model that is to be loaded. `from_models_dir`: whether the files are in the models folder, where the operator put them.
    `recognition`: how the spec follows from the file, if no spec was written.
    """

    name: str
    spec: ModelSpec
    path: Path | None = None
    weights_path: Path | None = None
    weights_sha256: str | None = None
    weights: bytes | None = None
    labels: tuple[str, ...] = ()
    sha256: str | None = None
    from_models_dir: bool = False
    recognition: Recognition | None = None

    @property
    def kind(self) -> str:
        """The spec's kind, which selects the loader."""
        return self.spec.kind

    @property
    def needs(self) -> str | None:
        """The extra of vidflow that the model requires; None for models of other packages."""
        return EXTRAS.get(self.spec.kind)

    @property
    def origin(self) -> str:
        """The spec's path, for errors; the name of a model without files."""
        return str(self.path or self.name)

    def require_weights(self) -> bytes:
        """Return the weights. Raises ValueError if the model was resolved without them."""
        if self.weights is None:
            raise ValueError(f"the weights of {self.origin} are not in memory: resolve the model with keep_weights")
        return self.weights

    def __repr__(self) -> str:
        return f"Bundle({self.name!r}, kind={self.kind!r}, path={self.path!r}, sha256={self.sha256!r})"


def read_bundle(name: str, file: ModelFile, *, keep_weights: KeepWeights) -> Bundle:
    """Read a spec with the files that it names, or an ONNX file that contains its spec or from which it follows.

    `keep_weights`: whether to keep the weights in memory, to load the bytes that were checked. Raises ModelError if a file is invalid,
    missing or changed, if a kind that is not in `KINDS_ANYWHERE` is outside the models folder, or if a program is named by a path.
    Of a model that may not be used only the spec is opened.
    """
    if file.path.suffix == SPEC_SUFFIX:
        return _read_spec(name, file, keep_weights=keep_weights)
    if file.path.suffix == ONNX_SUFFIX:
        return _read_onnx(name, file, keep_weights=keep_weights)
    file_type = f"{file.path.suffix} file" if file.path.suffix else "file without a suffix"
    raise ModelError(
        f"A {file_type} does not describe how to run it; write a spec (.toml) next to it and name the spec.",
        code="model_refused",
    )


def _read_spec(name: str, file: ModelFile, *, keep_weights: KeepWeights) -> Bundle:
    path = file.path
    text = files.read_file(file.real, files.MAX_SPEC_BYTES)
    spec = parse_spec(text, path.name)
    _check_place(spec, file)
    labels_text, labels = _read_labels(spec, file)
    weights_path, weights_sha256, weights = None, None, None
    if spec.file is not None:
        weights_path = _resolve_beside(file, spec, spec.file)
        with _open_weights(weights_path, keep=_is_kept(keep_weights, spec)) as weights_file:
            weights_sha256, weights = _digest(weights_file)
        _check_sha256(spec, weights_sha256, path.name)
    sha256 = files.sha256_of_bytes(b"\0".join((text, labels_text, (weights_sha256 or "").encode())))
    return Bundle(name, spec, path, weights_path, weights_sha256, weights, labels, sha256, file.from_models_dir)


def _read_onnx(name: str, file: ModelFile, *, keep_weights: KeepWeights) -> Bundle:
    """Read an ONNX file with the spec inside it, or else with the spec that follows from its form."""
    path = file.path
    recognition = None
    with _open_weights(file.real, keep=_is_kept(keep_weights, ModelSpec(ONNX))) as weights_file:
        metadata = read_metadata(weights_file, path)
        if SPEC_KEY in metadata:
            spec = _parse_spec_inside(metadata[SPEC_KEY], path.name)
        else:
            recognition = recognise(path.name, metadata, read_graph(weights_file, path))
            spec = recognition.spec
        weights_sha256, weights = _digest(weights_file)
    _, labels = _read_labels(spec, file)
    sha256 = weights_sha256
    if recognition is not None:  # what is recognised may depend on the version of vidflow
        sha256 = files.sha256_of_bytes(b"\0".join((recognition.digest_text(), weights_sha256.encode())))
    return Bundle(
        name, spec, path, file.real, weights_sha256, weights, labels, sha256, file.from_models_dir, recognition
    )


class ModelFiles(msgspec.Struct, frozen=True):
    """What `read_bundle` would read: the real paths, and the spec if one was read. A file that is missing is left out."""

    paths: tuple[Path, ...]
    spec: ModelSpec | None = None


def find_files(file: ModelFile) -> ModelFiles:
    """Return the files of a model. Of them, only a spec is opened."""
    if file.path.suffix != SPEC_SUFFIX:
        return ModelFiles((file.real,))
    paths = [file.real]
    try:
        spec = parse_spec(files.read_file(file.real, files.MAX_SPEC_BYTES), file.path.name)
        names = (name for name in (spec.file, spec.labels) if isinstance(name, str) and name not in BUILT_IN_LABELS)
        paths.extend(_resolve_beside(file, spec, name) for name in names)
    except ModelError:  # raised again when the model is read
        return ModelFiles(tuple(paths))
    return ModelFiles(tuple(paths), spec)


def recognise_file(file: ModelFile, labels: tuple[str, ...]) -> Recognition:
    """Return the spec of an ONNX file with these labels. Raises ModelError, also if the file contains a spec."""
    path = file.path
    with _open_weights(file.real, keep=False) as weights_file:
        metadata = read_metadata(weights_file, path)
        if SPEC_KEY in metadata:
            raise ModelError(
                f"{path.name} contains its spec, which has labels. Run it without others.", code="model_refused"
            )
        return recognise(path.name, metadata, read_graph(weights_file, path), labels)


def _parse_spec_inside(text: str, origin: str) -> ModelSpec:
    """Parse the spec in the metadata of an ONNX file. Its labels must be a list, since it has no folder with other files."""
    spec = parse_spec(f'file = "this.onnx"\n{text.removeprefix(BYTE_ORDER_MARK)}'.encode(), origin)
    names_file = isinstance(spec.labels, str) and spec.labels not in BUILT_IN_LABELS
    if spec.kind != ONNX or spec.sha256 is not None or names_file:
        raise spec_error(origin, "the spec in its metadata must have kind 'onnx', no `sha256`, and a list of labels")
    return spec


def _check_place(spec: ModelSpec, file: ModelFile) -> None:
    """Raise ModelError if a model of this kind may not be there, or may not be named like this."""
    if not file.from_models_dir and spec.kind not in KINDS_ANYWHERE:
        raise models_folder_error(spec.kind, file.path.name)
    if spec.kind == EXPORTED and not file.by_stem:
        raise ModelError(
            f"Model {file.path.name} is of kind {EXPORTED!r}, which can run code, so no path may name it. Name the spec's stem: "
            f"{file.path.stem}.",
            code="model_refused",
        )


def _resolve_beside(file: ModelFile, spec: ModelSpec, name: str) -> Path:
    """Return the real path of a file that a spec names: beside the spec as it was named, or else beside the file it links to.

    A file of a kind that is not in `KINDS_ANYWHERE` may not be a link that leads out of its folder.
    """
    folders = (file.path.parent, file.real.parent)
    folder = next((folder for folder in folders if os.path.lexists(folder / name)), folders[0])
    return files.resolve_in_folder(folder, name, file.link_owners if spec.kind in KINDS_ANYWHERE else None)


def _is_kept(keep_weights: KeepWeights, spec: ModelSpec) -> bool:
    return keep_weights if isinstance(keep_weights, bool) else keep_weights(spec)


def _open_weights(path: Path, *, keep: bool) -> BufferedReader | BytesIO:
    """Open a weights file; with `keep`, as its whole content in memory."""
    if keep:
        return io.BytesIO(files.read_file(path, files.MAX_WEIGHTS_BYTES))
    return files.open_regular_file(path, files.MAX_WEIGHTS_BYTES)


def _digest(file: BufferedReader | BytesIO) -> tuple[str, bytes | None]:
    """Return the digest of a weights file, and its content if that is in memory."""
    if isinstance(file, BufferedReader):
        return files.sha256_of_file(file), None
    content = file.getvalue()
    return files.sha256_of_bytes(content), content


def _check_sha256(spec: ModelSpec, actual: str, origin: str) -> None:
    if spec.sha256 is not None and spec.sha256 != actual:
        raise ModelError(
            f"{spec.file} is not the file described by {origin}: its sha256 is {actual}, not {spec.sha256}. "
            "Get the right file, or write its digest into the spec if you trust it.",
            code="model_changed",
        )


def _read_labels(spec: ModelSpec, file: ModelFile) -> tuple[bytes, tuple[str, ...]]:
    """Return the content of the labels' file, which is empty without such a file, and the labels."""
    if spec.kind == MOTION:
        return b"", (MOTION,)
    if spec.labels is None:
        return b"", ()
    if isinstance(spec.labels, list):
        return b"", validate_labels(spec.labels, file.path.name)
    built_in = BUILT_IN_LABELS.get(spec.labels)
    path = _resolve_beside(file, spec, spec.labels) if built_in is None else built_in.resolve()
    content = files.read_file(path, files.MAX_LABELS_BYTES)
    return content, parse_labels(content, spec.labels)
