"""A model's spec and the files that it names: each is read once, checked once, and handed on as one value, the Bundle."""

from __future__ import annotations

import io
from io import BufferedReader, BytesIO
from pathlib import Path

import msgspec

from vidflow.domain.errors import ModelError
from vidflow.infra.models import files
from vidflow.infra.models.onnx_metadata import SPEC_KEY, read_metadata
from vidflow.infra.models.paths import ONNX_SUFFIX, SPEC_SUFFIX, ModelFile
from vidflow.infra.models.spec import (
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


class Bundle(msgspec.Struct, frozen=True):
    """A model whose files are checked. It is not loaded, and what follows, loading included, reads none of its files again.

    `name` resolves to the same model again. `path` is the file from which the spec was read, None for a model without files.
    `labels` is empty if only the loaded model knows them. `sha256` is a digest of everything in the files that affects results:
    the spec, the labels and the weights; None without files. `weights` are the bytes with the digest `weights_sha256`, only for
    a model that is to be loaded. `from_models_dir`: whether the files are in the models folder, where the operator put them.
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


def read_bundle(name: str, file: ModelFile, *, keep_weights: bool) -> Bundle:
    """Read a spec with the files that it names, or an ONNX file that contains its spec.

    `keep_weights`: keep the weights in memory, to load the bytes that were checked. Raises ModelError if a file is invalid,
    missing or changed, or if a kind that is not in `KINDS_ANYWHERE` is outside the models folder. Of such a model only the spec
    is opened.
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


def _read_spec(name: str, file: ModelFile, *, keep_weights: bool) -> Bundle:
    path = file.path
    text = files.read_file(path, files.MAX_SPEC_BYTES)
    spec = parse_spec(text, path.name)
    if not file.from_models_dir and spec.kind not in KINDS_ANYWHERE:
        raise models_folder_error(spec.kind, path.name)
    labels_text, labels = _read_labels(spec, path)
    weights_path, weights_sha256, weights = None, None, None
    if spec.file is not None:
        weights_path = files.resolve_in_folder(path.parent, spec.file)
        with _open_weights(weights_path, keep=keep_weights) as weights_file:
            weights_sha256, weights = _digest(weights_file)
        _check_sha256(spec, weights_sha256, path.name)
    sha256 = files.sha256_of_bytes(b"\0".join((text, labels_text, (weights_sha256 or "").encode())))
    return Bundle(name, spec, path, weights_path, weights_sha256, weights, labels, sha256, file.from_models_dir)


def _read_onnx(name: str, file: ModelFile, *, keep_weights: bool) -> Bundle:
    """Read an ONNX file with the spec inside it. Its labels must be a list, since it has no folder with other files."""
    path = file.path
    with _open_weights(path, keep=keep_weights) as weights_file:
        text = read_metadata(weights_file, path).get(SPEC_KEY)
        if text is None:
            raise ModelError(
                f"{path.name} does not describe how to run it; write a spec (.toml) next to it and name the spec, or put the "
                f"spec into its metadata under {SPEC_KEY!r}.",
                code="model_refused",
            )
        spec = parse_spec(f'file = "this.onnx"\n{text}'.encode(), path.name)
        if spec.kind != ONNX or spec.sha256 is not None or not isinstance(spec.labels, list):
            raise spec_error(
                path.name, "the spec in its metadata must have kind 'onnx', no `sha256`, and a list of labels"
            )
        sha256, weights = _digest(weights_file)
    labels = validate_labels(spec.labels, path.name)
    return Bundle(name, spec, path, path, sha256, weights, labels, sha256, file.from_models_dir)


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


def _read_labels(spec: ModelSpec, path: Path) -> tuple[bytes, tuple[str, ...]]:
    """Return the content of the labels' file, which is empty without such a file, and the labels."""
    if spec.kind == MOTION:
        return b"", (MOTION,)
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
