"""What the passes share: the base of a lowering, and the error of a pass that had nothing to do."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import onnx_ir as ir
from onnx_ir import convenience

from mythos_export.graph_parts import Builder

__all__ = ["Lowering", "NothingToQuantize", "PassDidNothing", "attribute"]


class PassDidNothing(RuntimeError):
    """A pass found nothing to do where the graph must hold something to do."""


class NothingToQuantize(PassDidNothing):
    """Every layer is to be kept in float: a mistake of the user's, not of a pass."""


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
        left = [
            node.name for node in model.graph.all_nodes() if node.domain == "mythos" and node.op_type == self.op_type
        ]
        if left:
            raise ir.passes.PostconditionError(f"{type(self).__name__}: {self.op_type} left at {left[0]}")

    def _replace(self, node: ir.Node, main: ir.Graph) -> None:
        build = Builder(f"{node.name}.{self.op_type}")
        result = self.lower(build, node, main)
        graph, old = node.graph, node.outputs[0]
        assert graph is not None
        result.type = old.type
        convenience.replace_nodes_and_values(graph, node, [node], build.nodes, [old], [result])


def attribute(node: ir.Node, name: str) -> Any:
    """Value of a node's attribute."""
    return node.attributes[name].value
