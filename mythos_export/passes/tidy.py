"""What every graph gets at the end: nothing unused, nothing of our own domain, every name unique."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import IdentityEliminationPass, RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

__all__ = ["Tidy"]


class Tidy(ir.passes.InPlacePass):
    """Ensures that no `mythos::` node survives and that no name is used twice, in any nested graph."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for clean in (IdentityEliminationPass(), RemoveUnusedNodesPass()):
            clean(model)
        for name, value in list(model.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                model.graph.initializers.pop(name)
        RemoveUnusedOpsetsPass()(model)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        seen: set[str] = set()
        for node in model.graph.all_nodes():
            if node.domain == "mythos":
                raise ir.passes.PostconditionError(f"Tidy: {node.op_type} survives at {node.name}")
            for value in node.outputs:
                if value.name in seen:
                    raise ir.passes.PostconditionError(f"Tidy: two values are called {value.name}")
                seen.add(str(value.name))
