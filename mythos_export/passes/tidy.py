"""What every graph gets at the end: nothing unused, nothing of our own domain, every name unique."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import IdentityEliminationPass, RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

__all__ = ["Tidy"]


class Tidy(ir.passes.InPlacePass):
    """Ensures of every graph, nested ones too: no `mythos::` node, no name used twice, no initializer without a use.

    ONNX Runtime prints a warning for each of the last, of which `Hoist` leaves some in the body.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for clean in (IdentityEliminationPass(), RemoveUnusedNodesPass()):
            clean(model)
        for graph, value in _unused(model):
            graph.initializers.pop(str(value.name))
        RemoveUnusedOpsetsPass()(model)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        for _, value in _unused(model):
            raise ir.passes.PostconditionError(f"Tidy: nothing uses {value.name}")
        seen: set[str] = set()
        for node in model.graph.all_nodes():
            if node.domain == "mythos":
                raise ir.passes.PostconditionError(f"Tidy: {node.op_type} survives at {node.name}")
            for value in node.outputs:
                if value.name in seen:
                    raise ir.passes.PostconditionError(f"Tidy: two values are called {value.name}")
                seen.add(str(value.name))


def _unused(model: ir.Model) -> list[tuple[ir.Graph, ir.Value]]:
    """Initializers that no node reads, with their graphs."""
    return [
        (graph, value)
        for graph in model.graphs()
        for value in graph.initializers.values()
        if not value.uses() and not value.is_graph_output()
    ]
