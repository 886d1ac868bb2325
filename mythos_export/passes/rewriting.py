"""What the passes share: a small graph builder, and the base of a lowering."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
from onnx_ir import convenience

__all__ = ["Builder", "Lowering", "PassDidNothing", "parameter"]


class PassDidNothing(RuntimeError):
    """A pass found nothing to do where the graph must hold something to do."""


class Builder:
    """Collects new nodes under a name prefix, so that names stay unique across nested graphs."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[ir.Node] = []

    def op(self, op_type: str, inputs: Sequence[ir.Value | None], /, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; returns its output, or a list of them where `outputs` is not 1."""
        name = f"{self.prefix}.{op_type}_{len(self.nodes)}"
        node = ir.Node("", op_type, inputs, convenience.convert_attributes(attributes), num_outputs=outputs, name=name)
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


class Lowering(ir.passes.InPlacePass):
    """Replaces every node of one domain op by standard ops.

    Requires at least one such node; ensures that none is left, in any nested graph.
    """

    op_type: str

    @abstractmethod
    def lower(self, build: Builder, node: ir.Node, main: ir.Graph) -> ir.Value:
        """Build the replacement; returns what takes the place of the node's output."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [node for node in model.graph.all_nodes() if node.domain == "mythos" and node.op_type == self.op_type]
        if not found:
            raise PassDidNothing(f"{type(self).__name__}: the graph holds no {self.op_type} node")
        for node in found:
            self._replace(node, model.graph)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        left = [node.name for node in model.graph.all_nodes() if node.domain == "mythos" and node.op_type == self.op_type]
        if left:
            raise ir.passes.PostconditionError(f"{type(self).__name__}: {self.op_type} left at {left[0]}")

    def _replace(self, node: ir.Node, main: ir.Graph) -> None:
        build = Builder(f"{node.name}.{self.op_type}")
        result = self.lower(build, node, main)
        graph, old = node.graph, node.outputs[0]
        assert graph is not None
        result.type = old.type
        convenience.replace_nodes_and_values(graph, node, [node], build.nodes, [old], [result])


def parameter(main: ir.Graph, name: str, shape: Sequence[int]) -> ir.Value:
    """A parameter of the main graph, without a value yet; made on first use."""
    if name not in main.initializers:
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
        main.initializers.add(value)
    return main.initializers[name]


def attribute(node: ir.Node, name: str) -> Any:
    """Value of a node's attribute."""
    values: Mapping[str, ir.Attr] = node.attributes
    return values[name].value
