"""Bound the functions of an ONNX file. onnxruntime copies a function into each call, so a kilobyte can become millions of nodes."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Final

from vidflow.domain.errors import ModelError
from vidflow.infra.models.protobuf import DamagedError, Field, MessageReader

MAX_NODES: Final = 20_000
"""Several times as many as the largest detectors have. onnxruntime needs up to 3 s for 16,000 of them, and 37 s for 65,000."""
MAX_FIELDS: Final = 1_000_000
"""Fields of a file with functions, of which all nodes are read. That takes some seconds."""

# Numbers of fields in onnx.proto
MODEL_GRAPH, MODEL_FUNCTION = 7, 25
FUNCTION_NAME, FUNCTION_NODE, FUNCTION_DOMAIN, FUNCTION_DEFAULT = 1, 7, 10, 11
GRAPH_NODE: Final = 1
NODE_OPERATOR, NODE_ATTRIBUTE, NODE_DOMAIN = 4, 5, 7
ATTRIBUTE_GRAPHS: Final = (6, 11)
DEFAULT_DOMAIN: Final = "ai.onnx"

Operator = tuple[str, str]
"""The domain and the name of an operator or a function. Overloads of a name, which onnxruntime does not tell apart, are taken together."""


class _Nodes:
    """The nodes of a graph or function, those of its inner graphs included: how many there are of each operator."""

    def __init__(self) -> None:
        self.counts: Counter[Operator] = Counter()
        self.with_graphs: set[Operator] = set()
        """Operators to which a node passes a graph, as it does to `If` and `Loop`."""


def check_functions(content: bytes, origin: str) -> None:
    """Raise ModelError (model_refused) if the functions of an ONNX file expand to too many nodes. Takes linear time."""
    reader = MessageReader(io.BytesIO(content), MAX_FIELDS)
    try:
        parts = list(reader.fields(0, reader.size_bytes))
        if not any(part.number == MODEL_FUNCTION for part in parts):
            return
        graph, functions = _Nodes(), defaultdict[Operator, _Nodes](_Nodes)
        for part in parts:
            if part.number == MODEL_GRAPH:
                _read_nodes(reader, part, GRAPH_NODE, graph)
            elif part.number == MODEL_FUNCTION:
                name = _read_operator(reader, part, (FUNCTION_DOMAIN, FUNCTION_NAME))
                _read_nodes(reader, part, FUNCTION_NODE, functions[name])
                if any(_graphs(reader, default) for default in _parts(reader, part, FUNCTION_DEFAULT)):
                    functions[name].with_graphs.add(name)
    except DamagedError as error:
        raise _refusal(origin, "it is not an ONNX model", "Export or copy it again.") from error
    bodies = [graph, *functions.values()]
    if any(body.with_graphs & functions.keys() for body in bodies):
        raise _refusal(origin, "its functions take graphs as attributes")
    nodes = count_nodes(graph.counts, {name: body.counts for name, body in functions.items()})
    if nodes is None:
        raise _refusal(origin, "its functions call each other in a circle")
    if nodes > MAX_NODES:
        raise _refusal(origin, f"its functions call each other so often that it has more than {MAX_NODES} nodes")


def count_nodes(graph: Mapping[Operator, int], functions: Mapping[Operator, Mapping[Operator, int]]) -> int | None:
    """Return how many nodes the graph has with each function copied into its calls, or a number above MAX_NODES.

    `graph` and `functions` have the number of nodes of each operator. Returns None if functions call each other in a circle.
    """
    callers: defaultdict[Operator, list[Operator]] = defaultdict(list)
    for name, body in functions.items():
        for callee in body.keys() & functions.keys():
            callers[callee].append(name)
    open_callees = {name: len(body.keys() & functions.keys()) for name, body in functions.items()}
    ready = [name for name, count in open_callees.items() if not count]
    sizes: dict[Operator, int] = {}
    while ready:
        name = ready.pop()
        sizes[name] = _size(functions[name], sizes)
        for caller in callers[name]:
            open_callees[caller] -= 1
            if not open_callees[caller]:
                ready.append(caller)
    return _size(graph, sizes) if len(sizes) == len(functions) else None


def _size(body: Mapping[Operator, int], sizes: Mapping[Operator, int]) -> int:
    """Return the number of nodes, each call counted too. It is cut, as it could have thousands of digits."""
    return min(sum(count * (1 + sizes.get(operator, 0)) for operator, count in body.items()), MAX_NODES + 1)


def _read_nodes(reader: MessageReader, message: Field, node_number: int, nodes: _Nodes) -> None:
    """Add the nodes of a graph or function to `nodes`, and those of the graphs in their attributes."""
    pending = [(message, node_number)]
    while pending:
        part, number = pending.pop()
        for node in _parts(reader, part, number):
            operator = _read_operator(reader, node, (NODE_DOMAIN, NODE_OPERATOR))
            graphs = [
                graph for attribute in _parts(reader, node, NODE_ATTRIBUTE) for graph in _graphs(reader, attribute)
            ]
            nodes.counts[operator] += 1
            if graphs:
                nodes.with_graphs.add(operator)
                pending += [(graph, GRAPH_NODE) for graph in graphs]


def _parts(reader: MessageReader, message: Field, number: int) -> list[Field]:
    return [part for part in reader.fields(message.start, message.end) if part.number == number]


def _graphs(reader: MessageReader, attribute: Field) -> list[Field]:
    return [part for part in reader.fields(attribute.start, attribute.end) if part.number in ATTRIBUTE_GRAPHS]


def _read_operator(reader: MessageReader, message: Field, numbers: tuple[int, int]) -> Operator:
    """Return the texts of the fields with these numbers."""
    texts = dict.fromkeys(numbers, "")
    for part in reader.fields(message.start, message.end):
        if part.number in texts:
            texts[part.number] = reader.text(part)
    domain, name = texts.values()
    return ("" if domain == DEFAULT_DOMAIN else domain, name)


def _refusal(origin: str, fault: str, advice: str = "Export it without functions.") -> ModelError:
    return ModelError(f"Cannot load {origin}: {fault}. {advice}", code="model_refused")
