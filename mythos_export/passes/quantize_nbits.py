"""Linear layers in int8 or int4 as `com.microsoft::MatMulNBits`, in the main graph and inside the Loop.

One node does what Q/DQ needs three for, and reads the weight as it lies in the file, of int4 two numbers a byte.
At accuracy level 4 it multiplies integers: each block of a row of activations is rounded to int8 as it comes, so
nothing is calibrated.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import convenience

from mythos_export.graph_parts import RUNTIME_DOMAIN, Builder, parameter, sizes
from mythos_export.linears import Linear, find_linears
from mythos_export.passes.embedding_table import quantize_embedding
from mythos_export.passes.rewriting import NothingToQuantize
from mythos_export.quantization import Choices, Quantization
from mythos_export.weights.layout import scale_shape, stored_name, stored_shape
from mythos_export.weights.names import SCALE
from reference_model.architecture import Architecture

__all__ = ["QuantizeNBits"]


class QuantizeNBits(ir.passes.InPlacePass):
    """Quantises every linear layer but those to keep, and the embedding's table to int8.

    Requires lowered float graphs in which only layers to keep multiply with a batch of matrices; ensures
    that no MatMul reads a float weight it was to quantise.
    """

    def __init__(self, quantization: Quantization, choices: Choices, architecture: Architecture) -> None:
        self.quantization, self.keep, self.architecture = quantization, choices.keep, architecture

    def requires(self, model: ir.Model) -> None:
        for linear in self._linears(model):
            if len(sizes(linear.weight)) != 2:
                raise ir.passes.PreconditionError(f"QuantizeNBits: {linear.layer} is no matrix; it has to be kept")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        linears = self._linears(model)
        if not linears and not any(node.domain == RUNTIME_DOMAIN for node in model.graph.all_nodes()):
            raise NothingToQuantize("--keep names every layer; there is nothing left to quantise, so keep fewer")
        model.graph.opset_imports[RUNTIME_DOMAIN] = 1
        for linear in linears:
            self._quantize(linear, model.graph)
        if self.architecture.lookup.name not in self.keep:
            quantize_embedding(model.graph, self.architecture.table.name)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        left = [linear.layer for linear in self._linears(model)]
        if left:
            raise ir.passes.PostconditionError(f"QuantizeNBits: {left[0]} still computes in float")

    def _linears(self, model: ir.Model) -> list[Linear]:
        return [linear for linear in find_linears(model, self.architecture) if linear.layer not in self.keep]

    def _quantize(self, linear: Linear, main: ir.Graph) -> None:
        node, weight, shape = linear.node, str(linear.weight.name), sizes(linear.weight)
        if weight == self.architecture.table.name:  # [vocab, dim], of a tied head
            weight, shape = f"{weight}.T", shape[::-1]
        numbers = parameter(main, stored_name(weight, self.quantization), stored_shape(shape, self.quantization))
        numbers.type = ir.TensorType(self.quantization.dtype)
        scales = parameter(main, f"{numbers.name}{SCALE}", scale_shape(shape, self.quantization))
        build = Builder(f"{node.name}.quantized")
        out = build.runtime_op(
            "MatMulNBits",
            [node.inputs[0], numbers, scales],
            K=shape[0],
            N=shape[1],
            bits=self.quantization.format.bits,
            block_size=self.quantization.block,
            accuracy_level=4,
        )
        out.type = node.outputs[0].type
        assert node.graph is not None
        convenience.replace_nodes_and_values(node.graph, node, [node], build.take(), [node.outputs[0]], [out])
