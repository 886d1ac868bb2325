"""`mythos::RMSNorm` as primitives, in the order that ONNX Runtime fuses into one kernel."""

from __future__ import annotations

import onnx_ir as ir

from mythos_export.graph_parts import Builder, given
from mythos_export.passes.rewriting import Lowering, attribute

__all__ = ["LowerNorm"]


class LowerNorm(Lowering):
    """x / sqrt(mean(x^2) + eps) * weight."""

    op_type = "RMSNorm"

    def lower(self, build: Builder, node: ir.Node, main: ir.Graph) -> ir.Value:
        x, weight = given(node)
        square = build.op("Pow", [x, build.scalar(2.0)])
        mean = build.op("ReduceMean", [square, build.ints(-1)], keepdims=1)
        root = build.op("Sqrt", [build.op("Add", [mean, build.scalar(attribute(node, "epsilon"))])])
        return build.op("Mul", [build.op("Div", [x, root]), weight])
