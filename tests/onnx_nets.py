"""Small ONNX files for tests, and the models that a spec makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from vidflow.infra.models import registry
from vidflow.infra.models.model import Model

OPSET = 17
IR_VERSION = 8


def image_input(*shape: int | str, dtype: int = TensorProto.FLOAT, name: str = "image") -> ValueInfoProto:
    """Return an input of this shape."""
    return helper.make_tensor_value_info(name, dtype, shape)


def constant_net(outputs: Mapping[str, NDArray[Any]], *inputs: ValueInfoProto) -> onnx.ModelProto:
    """Return a net that gives these outputs for every picture."""
    nodes = [helper.make_node("Identity", [f"value of {name}"], [name]) for name in outputs]
    constants = {f"value of {name}": value for name, value in outputs.items()}
    return build_net(nodes, constants, outputs, *inputs)


def build_net(
    nodes: Sequence[NodeProto],
    constants: Mapping[str, NDArray[Any]],
    outputs: Mapping[str, NDArray[Any]],
    *inputs: ValueInfoProto,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """Return a net of these nodes. Each output has the type and shape of its array."""
    graph = helper.make_graph(
        nodes,
        "net",
        inputs,
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in outputs.items()
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)


def with_metadata(net: onnx.ModelProto, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Return the net with these metadata."""
    helper.set_model_props(net, dict(metadata))
    return net


def load_net(folder: Path, net: onnx.ModelProto, spec: str) -> Model:
    """Return the model of a net and its spec, without `kind` and `file`, through the files that a user has."""
    (folder / "net.onnx").write_bytes(net.SerializeToString())
    (folder / "net.toml").write_text(f'kind = "onnx"\nfile = "net.onnx"\n{spec}')
    return registry.load(registry.resolve("net", folder, keep_weights=True))


def floats(values: Any) -> NDArray[np.float32]:
    """Return nested lists as an array of single precision."""
    return np.array(values, dtype=np.float32)
