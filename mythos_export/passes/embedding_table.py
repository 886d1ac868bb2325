"""The embedding's table in int8: a row is read as it is stored and scaled, whatever the linear layers are in."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import convenience

from mythos_export.graph_parts import Builder, parameter, sizes
from mythos_export.weights.names import SCALE, rows_name

__all__ = ["int8_table", "quantize_embedding"]


def int8_table(main: ir.Graph, name: str) -> tuple[ir.Value, ir.Value]:
    """The table [vocab, dim] of that name in int8 and the scale of each row [vocab], as parameters."""
    vocab, dim = sizes(main.initializers[name])
    table = parameter(main, rows_name(name), [vocab, dim])
    table.type = ir.TensorType(ir.DataType.INT8)
    return table, parameter(main, f"{table.name}{SCALE}", [vocab])


def quantize_embedding(main: ir.Graph, name: str) -> None:
    """Replace the lookup in the float table of that name."""
    embedding = main.initializers[name]
    (lookup,) = (node for node in main if node.op_type == "Gather" and node.inputs[0] is embedding)
    table, scale = int8_table(main, name)
    build = Builder(f"{lookup.name}.quantized")
    row = build.op("Cast", [build.op("Gather", [table, lookup.inputs[1]], axis=0)], to=ir.DataType.FLOAT)
    row_scale = build.op("Unsqueeze", [build.op("Gather", [scale, lookup.inputs[1]], axis=0), build.ints(-1)])
    out = build.op("Mul", [row, row_scale])
    out.type = lookup.outputs[0].type
    convenience.replace_nodes_and_values(main, lookup, [lookup], build.take(), [lookup.outputs[0]], [out])
