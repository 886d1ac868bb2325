"""`mythos::SparseMoE`, dense: every expert on every token, weighed by its share of it, which is mostly 0.

For compilers that know shapes only as functions of the inputs' shapes, as TensorRT's: how many tokens an
expert gets depends on data, and what splits or compacts by it (Split by counts, NonZero) does not build
inside a Loop. Each expert keeps its own matrices, so its GEMMs stay ordinary ones that quantise.
"""

from __future__ import annotations

import onnx_ir as ir

from mythos_export.graph_parts import Builder, given
from mythos_export.passes.lower_moe import Sizes, sizes_of, swiglu
from mythos_export.passes.rewriting import Lowering

__all__ = ["LowerMoEDense"]


class LowerMoEDense(Lowering):
    """One SwiGLU per expert over all tokens, masked, weighed, summed."""

    op_type = "SparseMoE"

    def lower(self, build: Builder, node: ir.Node, main: ir.Graph) -> ir.Value:
        tokens, chosen, weights = given(node)  # [n, d], [n, k], [n, k]
        sizes = sizes_of(node)
        experts = build.ints(*range(sizes.experts))
        hits = build.op("Equal", [build.op("Unsqueeze", [chosen, build.ints(2)]), experts])  # [n, k, experts]
        shares = build.op("Where", [hits, build.op("Unsqueeze", [weights, build.ints(2)]), build.scalar(0.0)])
        shares = build.op("ReduceSum", [shares, build.ints(1)], keepdims=0)  # [n, experts]
        mixed = None
        for index, share in enumerate(self._columns(build, shares, sizes.experts)):
            weighed = self._weighed(build, tokens, share, main, index, sizes)
            mixed = weighed if mixed is None else build.op("Add", [mixed, weighed])
        assert mixed is not None  # a config has one expert at least
        return mixed

    @staticmethod
    def _columns(build: Builder, shares: ir.Value, experts: int) -> list[ir.Value]:
        """Each expert's shares, [n, 1]."""
        if experts == 1:
            return [shares]
        return build.op("Split", [shares], outputs=experts, axis=1, num_outputs=experts)

    @staticmethod
    def _weighed(
        build: Builder, tokens: ir.Value, share: ir.Value, main: ir.Graph, index: int, sizes: Sizes
    ) -> ir.Value:
        """[n, d]. Where the share is 0 the expert's answer may be anything, infinity in fp16 too: it is left out."""
        out = swiglu(build, tokens, main, index, sizes)
        zero = build.scalar(0.0)
        wanted = build.op("Greater", [share, zero])
        return build.op("Mul", [build.op("Where", [wanted, out, zero]), share])
