"""`mythos::SparseMoE`, dense: every expert on every token, weighed by its share of it, which is mostly 0.

For compilers that know shapes only as functions of the inputs' shapes, as TensorRT's: how many tokens an
expert gets depends on data, and what splits or compacts by it (Split by counts, NonZero) does not build
inside a Loop. Each expert keeps its own matrices, so its GEMMs stay ordinary ones that quantise.
"""

from __future__ import annotations

import onnx_ir as ir

from mythos_export.graph_parts import Builder, given
from mythos_export.passes.lower_moe import swiglu
from mythos_export.passes.rewriting import Lowering
from mythos_export.weights.names import experts_of
from reference_model.architecture import Architecture

__all__ = ["LowerMoEDense"]


class LowerMoEDense(Lowering):
    """One SwiGLU per expert over all tokens, masked, weighed, summed."""

    op_type = "SparseMoE"

    def __init__(self, architecture: Architecture) -> None:
        (group,) = architecture.experts
        self.experts, self.weights = group.count, experts_of(group.name, architecture)

    def lower(self, build: Builder, node: ir.Node, main: ir.Graph) -> ir.Value:
        tokens, chosen, weights = given(node)  # [n, d], [n, k], [n, k]
        experts = build.ints(*range(self.experts))
        hits = build.op("Equal", [build.op("Unsqueeze", [chosen, build.ints(2)]), experts])  # [n, k, experts]
        shares = build.op("Where", [hits, build.op("Unsqueeze", [weights, build.ints(2)]), build.scalar(0.0)])
        shares = build.op("ReduceSum", [shares, build.ints(1)], keepdims=0)  # [n, experts]
        mixed = None
        for index, share in enumerate(self._columns(build, shares)):
            weighed = self._weighed(build, tokens, share, main, index)
            mixed = weighed if mixed is None else build.op("Add", [mixed, weighed])
        assert mixed is not None  # a config has one expert at least
        return mixed

    def _columns(self, build: Builder, shares: ir.Value) -> list[ir.Value]:
        """Each expert's shares, [n, 1]."""
        if self.experts == 1:
            return [shares]
        return build.op("Split", [shares], outputs=self.experts, axis=1, num_outputs=self.experts)

    def _weighed(self, build: Builder, tokens: ir.Value, share: ir.Value, main: ir.Graph, index: int) -> ir.Value:
        """[n, d]. Where the share is 0 the expert's answer may be anything, infinity in fp16 too: it is left out."""
        out = swiglu(build, tokens, main, self.weights[index])
        zero = build.scalar(0.0)
        wanted = build.op("Greater", [share, zero])
        return build.op("Mul", [build.op("Where", [wanted, out, zero]), share])
