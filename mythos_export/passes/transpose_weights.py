"""Linear weights as MatMul wants them.

PyTorch stores [out, in]; the tracer transposes in the graph, which a runtime would do at every load,
in memory of its own. Here the transposed weight becomes a parameter of its own, `<name>.T`, and is
written that way.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import convenience

from mythos_export.graph_parts import HEAD_NAME, Builder, is_parameter, parameter, sizes
from mythos_export.passes.rewriting import PassDidNothing

__all__ = ["TransposeWeights"]


class TransposeWeights(ir.passes.InPlacePass):
    """Transpose(parameter) + MatMul, and Gemm(transB) over a parameter, become MatMul(x, `<name>.T`).

    The output head keeps its Gemm: its weight is the embedding, which is read row by row as well.
    Ensures that no Transpose of a parameter is left.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        main, changed = model.graph, 0
        for node in list(main.all_nodes()):
            if node.op_type == "Transpose" and is_parameter(node.inputs[0], main):
                self._fold(node, main)
                changed += 1
            elif node.op_type == "Gemm" and node.name != HEAD_NAME and is_parameter(node.inputs[1], main):
                self._to_matmul(node, main)
                changed += 1
        if not changed:
            raise PassDidNothing("TransposeWeights: no linear weight found")
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        for node in model.graph.all_nodes():
            if node.op_type == "Transpose" and is_parameter(node.inputs[0], model.graph):
                raise ir.passes.PostconditionError(f"TransposeWeights: {node.name} still transposes a parameter")

    @staticmethod
    def _fold(node: ir.Node, main: ir.Graph) -> None:
        convenience.replace_all_uses_with(node.outputs[0], _transposed(node.inputs[0], main))
        assert node.graph is not None
        node.graph.remove(node, safe=True)

    @staticmethod
    def _to_matmul(node: ir.Node, main: ir.Graph) -> None:
        build = Builder(str(node.name))
        out = build.op("MatMul", [node.inputs[0], _transposed(node.inputs[1], main)])
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            out = build.op("Add", [out, node.inputs[2]])
        assert node.graph is not None
        out.type = node.outputs[0].type
        convenience.replace_nodes_and_values(node.graph, node, [node], build.nodes, [node.outputs[0]], [out])


def _transposed(weight: ir.Value | None, main: ir.Graph) -> ir.Value:
    assert weight is not None
    rows, columns = sizes(weight)
    return parameter(main, f"{weight.name}.T", [columns, rows])
