"""Linear layers in int8, fp8 or int4, by explicit Q/DQ, in the main graph and inside the Loop.

Weights are symmetric, per output channel or in blocks along the contraction; activations symmetric and
per tensor. Each MatMul has a Q/DQ pair and a weight's DequantizeLinear of its own, beside it, with
constants of its own in its own graph: only so does ONNX Runtime make an integer GEMM of every one of
them in a body (what is shared, it merges first and then no longer recognises).

A range per depth is not a scale gathered by the iteration (TensorRT then falls back to float): the
activation is multiplied by 1/s[t], quantised with the constant scale 1, and the result multiplied by s[t].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir import convenience

from mythos_export.graph_parts import HEAD_NAME, Builder, parameter, recurrent_loop, sizes
from mythos_export.linears import Linear, find_linears
from mythos_export.passes.embedding_table import int8_table, quantize_embedding
from mythos_export.passes.rewriting import NothingToQuantize
from mythos_export.quantization import (
    EMBEDDING,
    Choices,
    MissingRange,
    Quantization,
    scale_shape,
    stored_name,
)

__all__ = ["Quantize"]


@dataclass
class _Scaled:
    """An activation divided by its depth's scale, and the scale that undoes it."""

    value: ir.Value
    undo: ir.Value
    moved: dict[ir.Node, ir.Node] = field(default_factory=dict)  # nodes that move it -> their copies


class Quantize(ir.passes.InPlacePass):
    """Quantises every linear layer but those to keep, and the embedding's table to int8.

    Requires lowered float graphs with the `Loop`; ensures that no MatMul reads a float weight it was to quantise.
    """

    def __init__(self, quantization: Quantization, choices: Choices) -> None:
        self.quantization, self.limits, self.keep = quantization, choices.limits, choices.keep

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Quantise, or raise MissingRange or NothingToQuantize."""
        self._main = model.graph
        self._scaled: dict[ir.Value, _Scaled] = {}
        linears = [linear for linear in find_linears(model) if linear.layer not in self.keep]
        if not linears:
            raise NothingToQuantize("--keep names every layer; there is nothing left to quantise, so keep fewer")
        for linear in linears:
            self._quantize(linear)
        if EMBEDDING not in self.keep:
            quantize_embedding(self._main)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        left = [linear.layer for linear in find_linears(model) if linear.layer not in self.keep]
        if left:
            raise ir.passes.PostconditionError(f"Quantize: {left[0]} still computes in float")

    def _quantize(self, linear: Linear) -> None:
        node = linear.node
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        build = Builder(f"{node.name}.quantized")
        x, undo = self._input(build, linear, graph)
        out, channels = self._product(build, linear, x, graph)
        for factor in (undo, channels):
            out = out if factor is None else build.op("Mul", [out, factor])
        out.type = node.outputs[0].type
        convenience.replace_nodes_and_values(graph, node, [node], build.take(), [node.outputs[0]], [out])

    def _input(self, build: Builder, linear: Linear, graph: ir.Graph) -> tuple[ir.Value, ir.Value | None]:
        """What the MatMul reads, and what its result must be multiplied by."""
        x = linear.node.inputs[0]
        assert x is not None
        if not self.quantization.activations:
            return x, None
        scales, undo = self._scales(linear), None
        if len(scales) > 1:
            x, undo = self._scale_by_depth(linear, x, scales, graph)
            scales = np.ones(1, np.float32)
        zero_point = np.zeros((), self.quantization.dtype.numpy())
        scale = _constant(graph, f"{build.prefix}.x_scale", scales[0])
        zero = _constant(graph, f"{build.prefix}.x_zero_point", zero_point)
        return build.op("DequantizeLinear", [build.op("QuantizeLinear", [x, scale, zero]), scale, zero]), undo

    def _scales(self, linear: Linear) -> NDArray[np.float32]:
        """Of the activation: one, or one per depth."""
        if linear.point not in self.limits:
            raise MissingRange(f"the recipe has no range for {linear.point}; it was made for another model")
        limits = np.array(self.limits[linear.point], np.float32)
        return limits / np.float32(self.quantization.format.largest)

    def _scale_by_depth(
        self, linear: Linear, x: ir.Value, scales: NDArray[np.float32], graph: ir.Graph
    ) -> tuple[ir.Value, ir.Value]:
        """The activation over its depth's scale: computed once, and moved as the activation is."""
        root = linear.moves[0].inputs[0] if linear.moves else x
        assert root is not None
        if root not in self._scaled:
            self._scaled[root] = self._divide(root, linear.point, scales, graph)
        scaled = self._scaled[root]
        value = scaled.value
        behind = [*(move.inputs[0] for move in linear.moves[1:]), x]
        for move, result in zip(linear.moves, behind):
            assert result is not None
            if move not in scaled.moved:
                scaled.moved[move] = _copy(move, value)
            value = scaled.moved[move].outputs[move.outputs.index(result)]
        return value, scaled.undo

    def _divide(self, root: ir.Value, point: str, scales: NDArray[np.float32], graph: ir.Graph) -> _Scaled:
        """Past the calibrated depths, the last one's scale."""
        producer = root.producer()
        assert producer is not None
        build = Builder(f"{root.name}.by_depth")
        last = _constant(graph, f"{point}.last_depth", np.int64(len(scales) - 1))
        loop_index = recurrent_loop(self._main).attributes["body"].as_graph().inputs[0]
        depth = build.op("Min", [loop_index, last])
        # _constant makes each table once, though several values (the experts') share a point
        redo, undo = (
            build.op("Gather", [_constant(graph, f"{point}.{name}", table), depth], axis=0)
            for name, table in (("reciprocals", np.float32(1) / scales), ("scales", scales))
        )
        value = build.op("Mul", [root, redo])
        graph.insert_after(producer, build.take())
        return _Scaled(value, undo)

    def _product(
        self, build: Builder, linear: Linear, x: ir.Value, graph: ir.Graph
    ) -> tuple[ir.Value, ir.Value | None]:
        """x times the weight, dequantised in the graph that uses it; and scales to multiply the result by."""
        name, shape, quantization = str(linear.weight.name), sizes(linear.weight), self.quantization
        if linear.node.name == HEAD_NAME:  # its weight is the table [vocab, dim]
            if quantization.tied_head and EMBEDDING not in self.keep:
                return build.op("Gemm", [x, self._rows(build)], transB=1), None
            name, shape = f"{name}.T", shape[::-1]
        stored = parameter(self._main, stored_name(name, quantization), shape)
        stored.type = ir.TensorType(quantization.dtype)
        scale = parameter(self._main, f"{stored.name}.scale", scale_shape(shape, quantization))
        last, channels = len(shape) - 1, None
        if quantization.block is not None:
            weight = build.op("DequantizeLinear", [stored, scale], axis=last - 1, block_size=quantization.block)
        elif len(shape) == 2:
            weight = build.op("DequantizeLinear", [stored, scale], axis=last)
        else:  # a batch of matrices has a scale per matrix and channel, which DequantizeLinear cannot say
            one = _constant(graph, f"{build.prefix}.w_scale", np.float32(1))
            weight, channels = build.op("DequantizeLinear", [stored, one]), scale
        return build.op("MatMul", [x, weight]), channels

    def _rows(self, build: Builder) -> ir.Value:
        """The embedding's int8 table, dequantised whole: a row is an output channel of the head."""
        table, scale = int8_table(self._main)
        zero = _constant(self._main, f"{build.prefix}.w_zero_point", np.zeros(sizes(scale), np.int8))
        return build.op("DequantizeLinear", [table, scale, zero], axis=0)


def _constant(graph: ir.Graph, name: str, content: NDArray[Any] | np.generic) -> ir.Value:
    """An initialiser of this very graph: of a body, it is not captured from outside."""
    if name not in graph.initializers:
        tensor = ir.tensor(np.asarray(content), name=name)
        value = ir.Value(
            name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(np.shape(content))
        )
        graph.register_initializer(value)
    return graph.initializers[name]


def _copy(node: ir.Node, source: ir.Value) -> ir.Node:
    """The same node on another value, right behind the original."""
    assert node.graph is not None
    attributes = list(node.attributes.values())
    inputs, outputs, name = [source, *node.inputs[1:]], len(node.outputs), f"{node.name}.by_depth"
    copy = ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=outputs, name=name)
    for ours, theirs in zip(copy.outputs, node.outputs):
        ours.name = f"{theirs.name}.by_depth"
    node.graph.insert_after(node, copy)
    return copy
