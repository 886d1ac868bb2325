"""The past of a layer read by all threads.

One layer's rows lie together in `past.<stage>.<part>`, so a Gather by the layer copies one block, and a runtime that
shares work out by blocks (ONNX Runtime does) copies it with one thread. Seen as several blocks a layer it is copied by
as many threads: at 3,072 past tokens that copy is the dearest part of attention.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience

from mythos_export.graph_parts import Builder
from mythos_export.passes.rewriting import PassDidNothing

__all__ = ["SpreadPast"]

_BLOCKS = 16  # at most: threads that a small device has


class SpreadPast(ir.passes.InPlacePass):
    """Gathers each layer's past in several blocks, where a row's size can be divided.

    Requires that every layer reads the past by a Gather along the first axis; ensures that none gathers a single block.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self._main = model.graph
        self._indices: dict[tuple[ir.Value, int], ir.Value] = {}  # by layer and number of blocks
        pasts = [value for value in model.graph.inputs if str(value.name).startswith("past.")]
        modified = [self._spread(value) for value in pasts if value.uses()]
        if not modified:
            raise PassDidNothing("SpreadPast: no layer reads a past")
        return ir.passes.PassResult(model, modified=any(modified))

    def _spread(self, past: ir.Value) -> bool:
        """past [layers, b, p, *row] as blocks [layers * blocks, b * p * size / blocks]."""
        assert past.shape is not None
        row = [int(size) for size in past.shape[3:]]  # type: ignore[arg-type]  # the contract has numbers there
        blocks = math.gcd(math.prod(row), _BLOCKS)
        gathers = [node for node, _ in past.uses()]
        if blocks == 1 or any(node.op_type != "Gather" for node in gathers):
            return False
        build = Builder(f"{past.name}.blocks")
        sizes = build.op("Shape", [past], start=0, end=3)
        per_layer = build.op("ReduceProd", [build.op("Slice", [sizes, build.ints(1), build.ints(3)])], keepdims=1)
        count = build.op("Mul", [build.op("Slice", [sizes, build.ints(0), build.ints(1)]), build.ints(blocks)])
        length = build.op("Mul", [per_layer, build.ints(math.prod(row) // blocks)])
        flat = build.op("Reshape", [past, build.op("Concat", [count, length], axis=0)], allowzero=1)
        layer_shape = build.op("Shape", [past], start=1)
        first = next(iter(self._main))
        self._main.insert_before(first, build.take())
        for node in gathers:
            self._gather_blocks(node, flat, layer_shape, blocks)
        return True

    def _gather_blocks(self, node: ir.Node, flat: ir.Value, layer_shape: ir.Value, blocks: int) -> None:
        graph, layer, rows = node.graph, node.inputs[1], node.outputs[0]
        assert isinstance(graph, ir.Graph) and layer is not None
        build = Builder(f"{node.name}.blocks")
        gathered = build.op("Gather", [flat, self._blocks_of(build, layer, blocks)], axis=0)
        result = build.op("Reshape", [gathered, layer_shape], allowzero=1)
        result.type = rows.type
        convenience.replace_nodes_and_values(graph, node, [node], build.take(), [rows], [result])

    def _blocks_of(self, build: Builder, layer: ir.Value, blocks: int) -> ir.Value:
        """Numbers of a layer's blocks; two parts of one layer share them, and their Gathers stand side by side."""
        if (layer, blocks) not in self._indices:
            own = build.op("Constant", [], value=ir.tensor(np.arange(blocks, dtype=np.int64)))
            start = build.op("Mul", [layer, build.ints(blocks)])
            self._indices[layer, blocks] = build.op("Add", [start, own])
        return self._indices[layer, blocks]
