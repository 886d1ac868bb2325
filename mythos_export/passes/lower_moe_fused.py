"""`mythos::SparseMoE` as one `com.microsoft::QMoE`: ONNX Runtime's own kernel over all experts.

The node would route by itself. Here it is told: the weights to mix the chosen experts by, and 0 for all
others, leave it no choice (its own way with ties is not TopK's, but ties of 0 are not computed), and they
are its mixing weights too. Experts' weights are quantised as single layers are, and lie in one stack for
gate and up, one for down.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from mythos_export.graph_parts import RUNTIME_DOMAIN, Builder, given, parameter
from mythos_export.passes.rewriting import Lowering
from mythos_export.quantization import Quantization
from mythos_export.weights.layout import stack_shapes
from mythos_export.weights.names import SCALE
from reference_model.architecture import Architecture

__all__ = ["LowerMoEFused"]

_MIXING_WEIGHTS = 14  # index of that input; those between are biases, a third matrix and zero points


class LowerMoEFused(Lowering):
    """Spread the routing over all experts, one QMoE.

    Requires sizes that the block divides: for others the kernel dequantises all weights at every call. And
    weights that are not negative, as a softmax gives them: the kernel leaves out an expert of such a weight.
    """

    op_type = "SparseMoE"

    def __init__(self, quantization: Quantization, architecture: Architecture) -> None:
        (group,) = architecture.experts
        if quantization.block is None or group.dim % quantization.block or group.hidden % quantization.block:
            raise ValueError(f"blocks of {quantization.block} do not divide dim {group.dim} and width {group.hidden}")
        self.quantization, self.block = quantization, quantization.block
        self.group, self.experts, self.top_k = group, group.count, group.active

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        model.graph.opset_imports[RUNTIME_DOMAIN] = 1
        return super().call(model)

    def lower(self, build: Builder, node: ir.Node, main: ir.Graph) -> ir.Value:
        tokens, chosen, weights = given(node)  # [n, d], [n, k], [n, k]
        gate_up, down = (self._stack(main, *stack) for stack in stack_shapes(self.group, self.quantization))
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

    def _stack(
        self, main: ir.Graph, name: str, numbers_shape: Sequence[int], scales_shape: Sequence[int]
    ) -> list[ir.Value]:
        """Numbers and scales of all experts; the scales come first in the graph, and so into the data file."""
        scales = parameter(main, f"{name}{SCALE}", scales_shape)
        numbers = parameter(main, name, numbers_shape)
        numbers.type = ir.TensorType(self.quantization.dtype)
        return [numbers, scales]
