"""Read what an ONNX file says about itself, without an ONNX library: its metadata, and the inputs and outputs of its graph.

A model may contain its own spec in its metadata under the key `vidflow`, as TOML without `file` and `sha256`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from vidflow.domain.errors import ModelError
from vidflow.infra.models import files
from vidflow.infra.models.protobuf import DamagedError, Field, MessageReader

SPEC_KEY: Final = "vidflow"
MAX_ENTRY_BYTES: Final = {
    SPEC_KEY: files.MAX_SPEC_BYTES, "names": files.MAX_LABELS_BYTES, "kpt_names": files.MAX_LABELS_BYTES,
    **dict.fromkeys(("description", "license", "task", "imgsz", "kpt_shape"), 4096),
}  # fmt: skip
"""The metadata entries that are read, with their longest value. The others, and longer ones, are skipped."""
MAX_TENSORS: Final = 10_000
"""Inputs or outputs of a graph. Old exporters list every weight as an input."""
MAX_AXES: Final = 64

# Numbers of fields in onnx.proto
MODEL_GRAPH, MODEL_METADATA = 7, 14
ENTRY_KEY, ENTRY_VALUE = 1, 2
GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT = 5, 11, 12
INITIALIZER_NAME: Final = 8
VALUE_NAME, VALUE_TYPE = 1, 2
TYPE_TENSOR: Final = 1
TENSOR_ELEMENT, TENSOR_SHAPE = 1, 2
SHAPE_AXIS: Final = 1
AXIS_LENGTH, AXIS_NAME = 1, 2

ELEMENT_TYPES: Final = {
    1: "float", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "double", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip
OTHER: Final = "other"


class TensorInfo(msgspec.Struct, frozen=True):
    """An input or output of a graph. `dtype` is one of ELEMENT_TYPES, or `other`.

    `shape` has the lengths of its axes: a length that the file leaves open is its name, or None. Without a shape it is None.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


class Graph(msgspec.Struct, frozen=True):
    """The inputs and outputs of a model. Inputs that the file itself fills, as old exporters list them, are left out."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


def read_metadata(file: BinaryIO, path: Path) -> dict[str, str]:
    """Return the entries of MAX_ENTRY_BYTES that the metadata of an open ONNX file has.

    `path` names the file in errors. Raises ModelError (model_refused) if it is not an ONNX file.
    """
    with _refusing(path):
        reader = MessageReader(file)
        fields = reader.fields(0, reader.size_bytes)
        return dict(
            entry
            for field in fields
            if field.number == MODEL_METADATA and (entry := _read_entry(reader, field)) is not None
        )


def read_graph(file: BinaryIO, path: Path) -> Graph:
    """Return the inputs and outputs of an open ONNX file. Errors are those of `read_metadata`."""
    with _refusing(path):
        reader = MessageReader(file)
        inputs: dict[str, TensorInfo] = {}
        outputs: dict[str, TensorInfo] = {}
        weights: set[str] = set()
        for graph in reader.fields(0, reader.size_bytes):
            if graph.number == MODEL_GRAPH:
                for field in reader.fields(graph.start, graph.end):
                    if field.number == GRAPH_INITIALIZER:
                        weights.add(_read_name(reader, field))
                    elif field.number in {GRAPH_INPUT, GRAPH_OUTPUT}:
                        value = _read_value(reader, field)
                        tensors = inputs if field.number == GRAPH_INPUT else outputs
                        tensors[value.name] = value
                        if len(tensors) > MAX_TENSORS:
                            raise DamagedError
        return Graph(tuple(value for name, value in inputs.items() if name not in weights), tuple(outputs.values()))


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except DamagedError as error:
        raise ModelError(f"{path} is not an ONNX model. Export or copy it again.", code="model_refused") from error


def _read_entry(reader: MessageReader, entry: Field) -> tuple[str, str] | None:
    """Return the key and the value of a metadata entry, None for one that is not read."""
    key = value = None
    for part in reader.fields(entry.start, entry.end):
        if part.number == ENTRY_KEY:
            key = part
        elif part.number == ENTRY_VALUE:
            value = part
    if key is None or value is None or key.end - key.start > max(map(len, MAX_ENTRY_BYTES)):
        return None
    name = reader.text(key)
    return (name, reader.text(value)) if value.end - value.start <= MAX_ENTRY_BYTES.get(name, -1) else None


def _read_name(reader: MessageReader, tensor: Field) -> str:
    name = ""
    for part in reader.fields(tensor.start, tensor.end):
        if part.number == INITIALIZER_NAME:
            name = reader.text(part)
    return name


def _read_value(reader: MessageReader, value: Field) -> TensorInfo:
    """Return an input or output. What is no tensor has the type `other`."""
    name, dtype, shape = "", OTHER, None
    for part in reader.fields(value.start, value.end):
        if part.number == VALUE_NAME:
            name = reader.text(part)
        elif part.number == VALUE_TYPE:
            for kind in reader.fields(part.start, part.end):
                if kind.number == TYPE_TENSOR:
                    dtype, shape = _read_tensor_type(reader, kind)
    return TensorInfo(name, dtype, shape)


def _read_tensor_type(reader: MessageReader, tensor: Field) -> tuple[str, tuple[int | str | None, ...] | None]:
    dtype, shape = OTHER, None
    for part in reader.fields(tensor.start, tensor.end):
        if part.number == TENSOR_ELEMENT:
            dtype = ELEMENT_TYPES.get(part.value, OTHER)
        elif part.number == TENSOR_SHAPE:
            axes: list[int | str | None] = []
            for axis in reader.fields(part.start, part.end):
                if axis.number == SHAPE_AXIS:
                    axes.append(_read_axis(reader, axis))
                if len(axes) > MAX_AXES:
                    raise DamagedError
            shape = tuple(axes)
    return dtype, shape


def _read_axis(reader: MessageReader, axis: Field) -> int | str | None:
    """Return the length of an axis, or its name. A length beyond 63 bits is negative, which exporters write for an open one."""
    length: int | str | None = None
    for part in reader.fields(axis.start, axis.end):
        if part.number == AXIS_LENGTH:
            length = part.value if 0 < part.value < 2**63 else None
        elif part.number == AXIS_NAME:
            length = reader.text(part) or None
    return length
