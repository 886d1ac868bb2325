"""`mythos::SparseMoE` as one `com.microsoft::QMoE`: ONNX Runtime's own kernel over all experts.

The node would route by itself. Here it is told: the weights to mix the chosen experts by, and 0 for all
others, leave it no choice (its own way with ties is not TopK's, but ties of 0 are not computed), and they
are its mixing weights too. Experts' weights are quantised as single layers are, and lie in one stack for
gate and up, one for down.
"""

from __future__ import annotations

import onnx_ir as ir

from mythos_export.graph_parts import RUNTIME_DOMAIN, Builder, given, parameter
from mythos_export.passes.lower_moe import sizes_of
from mythos_export.passes.rewriting import Lowering
from mythos_export.quantization import ROUTED_EXPERTS, Quantization, stored_name

__all__ = ["LowerMoEFused"]

_MIXING_WEIGHTS = 14  # index of that input; those between are biases, a third matrix and zero points


class LowerMoEFused(Lowering):
    """Spread the routing over all experts, one QMoE.

    Requires sizes that the block divides: for others the kernel dequantises all weights at every call. And
    weights that are not negative, as a softmax gives them: the kernel leaves out an expert of such a weight.
    """

    op_type = "SparseMoE"

    def __init__(self, quantization: Quantization) -> None:
        self.quantization = quantization

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        model.graph.opset_imports[RUNTIME_DOMAIN] = 1
        return super().call(model)

    def lower(self, build: Builder, node: ir.Node, main: ir.Graph) -> ir.Value:
        tokens, chosen, weights = given(node)  # [n, d], [n, k], [n, k]
        experts, top_k, dim, expert_dim = sizes_of(node)
        block = self.quantization.block
        if block is None or dim % block or expert_dim % block:
            raise ValueError(f"blocks of {block} do not divide dim {dim} and expert_dim {expert_dim}")
        gate_up = self._stack(main, "gate_up", [experts, 2 * expert_dim, dim], block)
        down = self._stack(main, "down", [experts, dim, expert_dim], block)
        rows = build.op("Shape", [chosen], start=0, end=1)
        nowhere = build.op("ConstantOfShape", [build.op("Concat", [rows, build.ints(experts)], axis=0)])
        shares = build.op("ScatterElements", [nowhere, chosen, weights], axis=1)  # [n, experts]
        inputs = [tokens, shares, *gate_up, None, *down]
        return build.runtime_op(
            "QMoE",
            [*inputs, *[None] * (_MIXING_WEIGHTS - len(inputs)), shares],
            k=top_k,
            expert_weight_bits=self.quantization.format.bits,
            block_size=block,
            accuracy_level=4,
            activation_type="swiglu",
            activation_alpha=1.0,
            activation_beta=0.0,
            swiglu_fusion=1,  # gate and up in alternate rows
            normalize_routing_weights=0,
        )

    def _stack(self, main: ir.Graph, name: str, shape: list[int], block: int) -> list[ir.Value]:
        """Numbers and scales of all experts; the scales come first in the graph, and so into the data file."""
        *channels, contraction = shape
        stacked = stored_name(f"{ROUTED_EXPERTS}.{name}", self.quantization)
        scales = parameter(main, f"{stacked}.scale", [*channels, contraction // block])
        numbers = parameter(main, stacked, [*channels, self.quantization.bytes_of(contraction)])
        numbers.type = ir.TensorType(self.quantization.dtype)
        return [numbers, scales]
