"""Rotary positions in four nodes: the numbers of each pair change places, and cos and sin are spread over them.

`mythos::RotaryEmbedding` rotates pairs, adjacent ones or of the two halves: (a, b) becomes (a cos - b sin, b cos + a
sin). Taking the pairs apart and putting them together again takes fourteen nodes, at every depth. What is made of cos
and sin here depends on no depth, and leaves the Loop.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mythos_export.graph_parts import Builder, given
from mythos_export.passes.rewriting import Lowering, attribute

__all__ = ["LowerRotary"]


class LowerRotary(Lowering):
    """x [b, s, h, r], cos and sin [b, s, r / 2] -> [b, s, h, r]."""

    op_type = "RotaryEmbedding"

    def lower(self, build: Builder, node: ir.Node, main: ir.Graph) -> ir.Value:
        x, cos, sin = given(node)
        places, half = range(attribute(node, "width")), attribute(node, "width") // 2
        interleaved = attribute(node, "interleaved")
        both = build.ints(*(place // 2 if interleaved else place % half for place in places))  # of each pair
        sign = [-1, 1] * half if interleaved else [-1] * half + [1] * half
        signs = build.op("Constant", [], value=ir.tensor(np.array(sign, np.float32)))
        cos, sin = (build.op("Gather", [part, both], axis=2) for part in (cos, sin))
        sin = build.op("Mul", [sin, signs])
        cos, sin = (build.op("Unsqueeze", [part, build.ints(2)]) for part in (cos, sin))  # for all heads
        other = build.ints(*(place ^ 1 if interleaved else (place + half) % len(places) for place in places))
        swapped = build.op("Gather", [x, other], axis=3)
        return build.op("Add", [build.op("Mul", [x, cos]), build.op("Mul", [swapped, sin])])
