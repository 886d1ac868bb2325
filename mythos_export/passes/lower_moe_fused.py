"""`mythos::SparseMoE` as one `com.microsoft::QMoE`: ONNX Runtime's own kernel over all experts.

The node would route by itself. Here it is told: the weights to mix the chosen experts by, and 0 for all
others, leave it no choice (its own way with ties is not TopK's, but ties of 0 are not computed), and they
are its mixing weights too. Experts' weights are quantised as single layers are, and lie in one stack for
gate and up, one for down.
"""

from __future__ import annotations

import onnx_ir as ir

from mythos_export.graph_parts import RUNTIME_DOMAIN, Builder, given, parameter
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

    def __init__(self, quantization: Quantization, *, experts: int, top_k: int, dim: int, expert_dim: int) -> None:
        if quantization.block is None or dim % quantization.block or expert_dim % quantization.block:
            raise ValueError(f"blocks of {quantization.block} do not divide dim {dim} and expert_dim {expert_dim}")
        self.quantization, self.block = quantization, quantization.block
        self.experts, self.top_k, self.dim, self.expert_dim = experts, top_k, dim, expert_dim

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        model.graph.opset_imports[RUNTIME_DOMAIN] = 1
        return super().call(model)

    def lower(self, build: Builder, node: ir.Node, main: ir.Graph) -> ir.Value:
        tokens, chosen, weights = given(node)  # [n, d], [n, k], [n, k]
        gate_up = self._stack(main, "gate_up", 2 * self.expert_dim, self.dim)
        down = self._stack(main, "down", self.dim, self.expert_dim)
        rows = build.op("Shape", [chosen], start=0, end=1)
        nowhere = build.op("ConstantOfShape", [build.op("Concat", [rows, build.ints(self.experts)], axis=0)])
        shares = build.op("ScatterElements", [nowhere, chosen, weights], axis=1)  # [n, experts]
        inputs = [tokens, shares, *gate_up, None, *down]
        return build.runtime_op(
            "QMoE",
            [*inputs, *[None] * (_MIXING_WEIGHTS - len(inputs)), shares],
            k=self.top_k,
            expert_weight_bits=self.quantization.format.bits,
            block_size=self.block,
            accuracy_level=4,
            activation_type="swiglu",
            activation_alpha=1.0,
            activation_beta=0.0,
            swiglu_fusion=1,  # gate and up in alternate rows
            normalize_routing_weights=0,
        )

    def _stack(self, main: ir.Graph, name: str, channels: int, contraction: int) -> list[ir.Value]:
        """Numbers and scales of all experts; the scales come first in the graph, and so into the data file."""
        stacked = stored_name(f"{ROUTED_EXPERTS}.{name}", self.quantization)
        scales = parameter(main, f"{stacked}.scale", [self.experts, channels, contraction // self.block])
        numbers = parameter(main, stacked, [self.experts, channels, self.quantization.bytes_of(contraction)])
        numbers.type = ir.TensorType(self.quantization.dtype)
        return [numbers, scales]
