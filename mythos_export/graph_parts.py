"""What assembling and rewriting share: a builder of nodes, parameters, the recurrent loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from onnx_ir import convenience

__all__ = [
    "HEAD_NAME",
    "LOOP_NAME",
    "RUNTIME_DOMAIN",
    "Builder",
    "flattened_rows",
    "given",
    "is_parameter",
    "parameter",
    "recurrent_loop",
    "sizes",
    "state_count",
]

LOOP_NAME = "recurrent"
HEAD_NAME = "head"
RUNTIME_DOMAIN = "com.microsoft"


class Builder:
    """Collects new nodes under a name prefix, so that names stay unique across nested graphs."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[ir.Node] = []

        self._count = 0

    def op(self, op_type: str, inputs: Sequence[ir.Value | None], /, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; returns its output, or a list of them where `outputs` is not 1."""
        return self._add("", op_type, inputs, outputs, attributes)

    def domain_op(self, op_type: str, inputs: Sequence[ir.Value | None], /, **attributes: Any) -> ir.Value:
        """Add a node of our own domain, for a later pass to lower."""
        return self._add("mythos", op_type, inputs, 1, attributes)

    def runtime_op(self, op_type: str, inputs: Sequence[ir.Value | None], /, **attributes: Any) -> ir.Value:
        """Add a node of ONNX Runtime's own domain; the model must import `RUNTIME_DOMAIN`."""
        return self._add(RUNTIME_DOMAIN, op_type, inputs, 1, attributes)

    def take(self) -> list[ir.Node]:
        """The nodes added since the last call."""
        nodes, self.nodes = self.nodes, []
        return nodes

    def _add(
        self, domain: str, op_type: str, inputs: Sequence[ir.Value | None], outputs: int, attributes: dict[str, Any]
    ) -> Any:
        name = f"{self.prefix}.{op_type}_{self._count}"
        self._count += 1
        converted = convenience.convert_attributes(attributes)
        node = ir.Node(domain, op_type, inputs, converted, num_outputs=outputs, name=name)
        for index, value in enumerate(node.outputs):
            value.name = name if outputs == 1 else f"{name}.{index}"
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else list(node.outputs)

    def ints(self, *values: int) -> ir.Value:
        """An int64 vector."""
        return self.op("Constant", [], value=ir.tensor(list(values), dtype=ir.DataType.INT64))

    def scalar(self, value: float) -> ir.Value:
        """An fp32 scalar."""
        return self.op("Constant", [], value=ir.tensor(float(value), dtype=ir.DataType.FLOAT))


def parameter(main: ir.Graph, name: str, shape: Sequence[int]) -> ir.Value:
    """A parameter of the main graph, without a value yet; made on first use."""
    if name not in main.initializers:
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
        main.initializers.add(value)
    return main.initializers[name]


def given(node: ir.Node) -> list[ir.Value]:
    """A node's inputs, none of which may be left out."""
    values = [value for value in node.inputs if value is not None]
    if len(values) != len(node.inputs):
        raise ValueError(f"{node.name}: an input is missing")
    return values


def sizes(value: ir.Value) -> list[int]:
    """A shape that holds numbers only."""
    if value.shape is None or not value.shape.is_static():
        raise ValueError(f"{value.name}: its shape is not known")
    return [int(size) for size in value.shape]  # type: ignore[arg-type]  # static, so all are integers


def is_parameter(value: ir.Value | None, main: ir.Graph) -> bool:
    """Is this a parameter of the main graph (not a constant, not a computed value)?

    Parameters have no value yet, or one in the bundle's data file.
    """
    if value is None or main.initializers.get(str(value.name)) is not value:
        return False
    return value.const_value is None or isinstance(value.const_value, ir.ExternalTensor)


def recurrent_loop(graph: ir.Graph) -> ir.Node:
    """The one recurrent `Loop` of an assembled graph."""
    (loop,) = (node for node in graph if node.op_type == "Loop" and node.name == LOOP_NAME)
    return loop


def state_count(loop: ir.Node) -> int:
    """How many of a Loop's outputs are states, which come first; the others are scans."""
    return len(loop.inputs) - 2  # behind trip count and condition


def flattened_rows(scan: ir.Value) -> ir.Value | None:
    """The graph output that a Loop's scan becomes once the layers of its loops lie in one row; None if it is none."""
    for node, _ in scan.uses():
        if node.op_type == "Reshape" and node.outputs[0].is_graph_output():
            return node.outputs[0]
    return None
