"""ONNX files with functions, which onnxruntime copies into each call: what they expand to is bounded before it opens them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import FunctionProto, NodeProto, TensorProto, helper, inliner

from vidflow.domain.errors import ModelError
from vidflow.infra.models import onnx_functions
from vidflow.infra.models.onnx import open_session
from vidflow.infra.models.onnx_functions import MAX_NODES, check_functions, count_nodes

OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
SHAPE = [1, 3, 4, 4]


def call(name: str, source: str, target: str, **attributes: object) -> NodeProto:
    return helper.make_node(name, [source], [target], domain="own", **attributes)


def function(name: str, *nodes: NodeProto, overload: str = "") -> FunctionProto:
    """Return a function of x that returns y."""
    return helper.make_function("own", name, ["x"], ["y"], list(nodes), OPSETS, overload=overload)


def branch(*nodes: NodeProto) -> onnx.GraphProto:
    """Return a graph without inputs that returns "branch y"."""
    return helper.make_graph(
        list(nodes), "branch", [], [helper.make_tensor_value_info("branch y", TensorProto.FLOAT, None)]
    )


def model(nodes: list[NodeProto], functions: list[FunctionProto]) -> onnx.ModelProto:
    """Return a model of `image` that returns `out`."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
    )
    return helper.make_model(graph, functions=functions, opset_imports=OPSETS, ir_version=10)


def doubling(depth: int) -> onnx.ModelProto:
    """Return a model with `depth` functions, each of which calls the next one twice. The last one has two nodes."""
    last = function("f0", helper.make_node("Neg", ["x"], ["t"]), helper.make_node("Neg", ["t"], ["y"]))
    functions = [
        function(f"f{number}", call(f"f{number - 1}", "x", "t"), call(f"f{number - 1}", "t", "y"))
        for number in range(1, depth)
    ]
    return model([call(f"f{depth - 1}", "image", "out")], [last, *functions])


def count(net: onnx.ModelProto) -> int:
    """Return the nodes of the graph, those of its branches included, after onnx itself has inlined the functions."""

    def nodes_of(graph: onnx.GraphProto) -> int:
        graphs = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
        return len(graph.node) + sum(map(nodes_of, graphs))

    return nodes_of(inliner.inline_local_functions(net).graph)


def refusal(net: onnx.ModelProto) -> str:
    with pytest.raises(ModelError) as refused:
        open_session(net.SerializeToString(), "net.onnx")
    assert refused.value.code == "model_refused"
    return refused.value.message


def test_24_functions_that_double_are_refused_before_onnxruntime_opens_them() -> None:
    assert refusal(doubling(24)) == (
        f"Cannot load net.onnx: its functions call each other so often that it has more than {MAX_NODES} nodes. "
        "Export it without functions."
    )


def test_a_model_with_functions_runs() -> None:
    session = open_session(doubling(5).SerializeToString(), "net.onnx")
    picture = np.random.default_rng(1).random(SHAPE, dtype=np.float32)
    (out,) = session.run(["out"], {"image": picture})
    assert np.array_equal(out, picture)


@pytest.mark.parametrize("allowed", [-1, 0])
def test_the_bound_counts_the_nodes_after_inlining_and_the_calls(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    net = doubling(6)
    calls = 2**6 - 1
    monkeypatch.setattr(onnx_functions, "MAX_NODES", count(net) + calls + allowed)
    if allowed < 0:
        assert "more than" in refusal(net)
    else:
        check_functions(net.SerializeToString(), "net.onnx")


def in_branches() -> onnx.ModelProto:
    """Return a model whose functions double in the two branches of an `If`."""
    functions = [function("f0", helper.make_node("Neg", ["x"], ["y"]))]
    for number in range(1, 20):
        graphs = [branch(call(f"f{number - 1}", "x", "branch y")) for _ in range(2)]
        constant = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("", TensorProto.BOOL, [], [True]))
        condition = helper.make_node("If", ["c"], ["y"], then_branch=graphs[0], else_branch=graphs[1])
        functions.append(function(f"f{number}", constant, condition))
    return model([call("f19", "image", "out")], functions)


def in_default_domain() -> onnx.ModelProto:
    """Return a model whose functions call each other by both names of the default domain."""
    net = doubling(20)
    for number, made in enumerate(net.functions):
        made.domain = "ai.onnx" if number % 2 else ""
        for node in made.node:
            node.domain = "" if number % 2 else "ai.onnx"
    net.graph.node[0].domain = ""
    return net


def in_overloads() -> onnx.ModelProto:
    """Return a model whose functions have one name and call each other by their overloads."""
    net = doubling(20)
    for number, made in enumerate(net.functions):
        made.name, made.overload = "f", str(number)
        for node in made.node:
            if node.op_type != "Neg":
                node.op_type, node.overload = "f", str(number - 1)
    return net


def empty() -> onnx.ModelProto:
    """Return a model whose last function has no nodes, only its calls."""
    net = doubling(24)
    del net.functions[0].node[:]
    return net


def with_graph_attribute() -> onnx.ModelProto:
    given = branch(helper.make_node("Neg", ["image"], ["branch y"]))
    return model([call("f", "image", "out", body=given)], [function("f", helper.make_node("Neg", ["x"], ["y"]))])


def with_default_graph() -> onnx.ModelProto:
    net = model([call("f", "image", "out")], [function("f", helper.make_node("Neg", ["x"], ["y"]))])
    given = branch(helper.make_node("Neg", ["image"], ["branch y"]))
    net.functions[0].attribute_proto.append(helper.make_attribute("body", given))
    return net


def in_a_circle() -> onnx.ModelProto:
    functions = [function("first", call("second", "x", "y")), function("second", call("first", "x", "y"))]
    return model([call("first", "image", "out")], functions)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (in_branches, "nodes"), (in_default_domain, "nodes"), (in_overloads, "circle"), (empty, "nodes"),
        (with_graph_attribute, "graphs as attributes"), (with_default_graph, "graphs as attributes"), (in_a_circle, "in a circle"),
    ],
)  # fmt: skip
def test_functions_that_could_expand_without_bound_are_refused(build: object, reason: str) -> None:
    assert callable(build)
    assert reason in refusal(build())


def test_functions_that_are_cut_off_are_refused() -> None:
    content = doubling(3).SerializeToString()
    for length in range(1, len(content)):
        try:
            check_functions(content[:length], "net.onnx")
        except ModelError as error:
            assert error.message == "Cannot load net.onnx: it is not an ONNX model. Export or copy it again."  # noqa: PT017 - others pass


def test_long_chains_of_functions_are_counted() -> None:
    length = 100_000
    chain = {("own", str(number)): Counter({("own", str(number + 1)): 1}) for number in range(length)}
    assert count_nodes({("own", str(length - 10)): 1}, chain) == 11
    assert count_nodes({("own", "0"): 1}, chain) == MAX_NODES + 1
