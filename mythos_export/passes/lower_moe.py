"""`mythos::SparseMoE`, grouped by expert: each expert runs once, on exactly the tokens sent to it.

The (token, expert) pairs are sorted by expert (TopK), the tokens gathered in that order and split by
the experts' counts. An expert without tokens gets a tensor of no rows, and a MatMul of no rows reads
no weights: so one formulation serves the prompt (every expert at most once) and the single token
(only its top-k), without a branch, and the weights stay two-dimensional constants that a runtime can
pack. A pair that weighs nothing (its sequence has reached its depth) is sent to no expert.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from mythos_export.graph_parts import Builder, given, parameter
from mythos_export.passes.rewriting import Lowering, attribute
from mythos_export.quantization import ROUTED_EXPERTS

__all__ = ["LowerMoEGrouped", "Sizes", "sizes_of", "swiglu"]


class Sizes(NamedTuple):
    """Of the mixture that a node stands for."""

    experts: int
    top_k: int
    dim: int
    expert_dim: int


def sizes_of(node: ir.Node) -> Sizes:
    """From the node's attributes."""
    return Sizes(*(attribute(node, name) for name in Sizes._fields))


class LowerMoEGrouped(Lowering):
    """Sort, split, one SwiGLU per expert, put back, weigh."""

    op_type = "SparseMoE"

    def lower(self, build: Builder, node: ir.Node, main: ir.Graph) -> ir.Value:
        tokens, chosen, weights = given(node)  # [n, d], [n, k], [n, k]
        sizes = sizes_of(node)
        nowhere = build.op("Constant", [], value=ir.tensor(sizes.experts, dtype=ir.DataType.INT64))
        counted = build.op("Greater", [weights, build.scalar(0.0)])
        sent = build.op("Where", [counted, chosen, nowhere])
        pairs = build.op("Reshape", [sent, build.ints(-1)])  # [n * k] expert of each pair
        count = build.op("Shape", [pairs])
        _, order = build.op("TopK", [pairs, count], outputs=2, axis=0, largest=0, sorted=1)
        source = build.op("Div", [order, build.ints(sizes.top_k)])  # the token of each pair, by expert
        by_expert = build.op("Gather", [tokens, source], axis=0)  # [n * k, d]
        *groups, idle = self._split(build, by_expert, pairs, sizes.experts)
        done = [self.expert(build, rows, main, index, sizes) for index, rows in enumerate(groups)]
        joined = build.op("Concat", [*done, idle], axis=0)
        restored = build.op("Gather", [joined, self._inverse(build, order, count)], axis=0)  # pairs in token order
        restored = build.op("Reshape", [restored, build.ints(-1, sizes.top_k, sizes.dim)])
        weighed = build.op("Mul", [restored, build.op("Unsqueeze", [weights, build.ints(2)])])
        return build.op("ReduceSum", [weighed, build.ints(1)], keepdims=0)

    def expert(self, build: Builder, rows: ir.Value, main: ir.Graph, index: int, sizes: Sizes) -> ir.Value:
        """What one expert makes of its rows, [m, d] -> [m, d]; m may be 0."""
        return swiglu(build, rows, main, index, sizes)

    @staticmethod
    def _split(build: Builder, by_expert: ir.Value, pairs: ir.Value, experts: int) -> list[ir.Value]:
        """Rows of each expert, and last of the pairs that are sent nowhere."""
        hits = build.op("Equal", [build.op("Unsqueeze", [pairs, build.ints(1)]), build.ints(*range(experts + 1))])
        counts = build.op("ReduceSum", [build.op("Cast", [hits], to=ir.DataType.INT64), build.ints(0)], keepdims=0)
        return build.op("Split", [by_expert, counts], outputs=experts + 1, axis=0)

    @staticmethod
    def _inverse(build: Builder, order: ir.Value, count: ir.Value) -> ir.Value:
        """The permutation that undoes `order`."""
        zero = build.op("Squeeze", [build.ints(0)])
        one = build.op("Squeeze", [build.ints(1)])
        positions = build.op("Range", [zero, build.op("Squeeze", [count]), one])
        return build.op("ScatterElements", [order, order, positions], axis=0)


def swiglu(build: Builder, rows: ir.Value, main: ir.Graph, index: int, sizes: Sizes) -> ir.Value:
    """One routed expert: [n, dim] -> [n, dim]."""
    wide, narrow = [sizes.dim, sizes.expert_dim], [sizes.expert_dim, sizes.dim]
    gate, up, down = (
        parameter(main, f"{ROUTED_EXPERTS}.{index}.{name}.weight.T", shape)
        for name, shape in (("gate", wide), ("up", wide), ("down", narrow))
    )
    gated = build.op("MatMul", [rows, gate])
    gated = build.op("Mul", [gated, build.op("Sigmoid", [gated])])
    return build.op("MatMul", [build.op("Mul", [gated, build.op("MatMul", [rows, up])]), down])
