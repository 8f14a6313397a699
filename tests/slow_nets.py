"""An ONNX model that takes any batch, is as slow as wanted, gives each picture's brightness as its box, and hangs on a bright picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tests import clips
from tests.onnx_nets import IR_VERSION, OPSET, floats, image_input

LABEL = "brightness"
SCORE, BOTTOM = 0.9, 50.0
BOX_SCALE = 0.25
"""Pixels of a box's width per unit of brightness, so that each box lies in the picture."""


def write(folder: Path, name: str, *, iterations: int = 0, hangs_above: float = 1e9) -> str:
    """Write the model and its spec into a models folder, and return its name.

    `iterations`: of a loop, some microseconds each. `hangs_above`: the brightness above which the loop has no end in practice.
    A frame of brightness b has one box (0, 0, BOX_SCALE * b, BOTTOM).
    """
    (folder / f"{name}.onnx").write_bytes(_build(iterations, hangs_above).SerializeToString())
    (folder / f"{name}.toml").write_text(
        f'kind = "onnx"\nfile = "{name}.onnx"\nlabels = ["{LABEL}"]\n'
        f"[input]\nsize = [{clips.HEIGHT}, {clips.WIDTH}]\n"
        '[output]\ndecoder = "yolo_end2end"\n'
    )
    return name


def _build(iterations: int, hangs_above: float) -> onnx.ModelProto:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["goes on"], ["still goes on"]),
            helper.make_node("Add", ["sum", "one"], ["next sum"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("goes on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("still goes on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next sum", TensorProto.FLOAT, []),
        ],
    )
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("ReduceMax", ["mean"], ["brightest"], keepdims=0),
        helper.make_node("Greater", ["brightest", "limit"], ["hangs"]),
        helper.make_node("Cast", ["hangs"], ["hangs as number"], to=TensorProto.INT64),
        helper.make_node("Mul", ["hangs as number", "endless"], ["more"]),
        helper.make_node("Add", ["more", "iterations"], ["trips"]),
        helper.make_node("Loop", ["trips", "true", "zero"], ["total"], body=body),
        helper.make_node("Mul", ["total", "zero"], ["nothing"]),
        helper.make_node("Mul", ["mean", "box scale"], ["width"]),
        helper.make_node("Add", ["width", "nothing"], ["right"]),
        helper.make_node("Reshape", ["right", "column"], ["x2"]),
        helper.make_node("Mul", ["x2", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "bottom value"], ["y2"]),
        helper.make_node("Add", ["zeros", "score value"], ["score"]),
        helper.make_node("Concat", ["zeros", "zeros", "x2", "y2", "score", "zeros"], ["boxes"], axis=2),
    ]
    constants = {
        "limit": floats(hangs_above), "zero": floats(0), "one": floats(1), "bottom value": floats(BOTTOM),
        "box scale": floats(BOX_SCALE),
        "score value": floats(SCORE), "endless": np.array(2**50), "iterations": np.array(iterations), "true": np.array(True),
        "column": np.array([-1, 1, 1]),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "net",
        [image_input("batch", 3, clips.HEIGHT, clips.WIDTH)],
        [helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["batch", 1, 6])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
