"""Small graphs with a Loop, as the passes find them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from mythos_export.graph_parts import LOOP_NAME, Builder

__all__ = ["loop_around", "value"]


def value(name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def loop_around(
    inputs: Sequence[ir.Value], body: Builder, index: ir.Value, carried: ir.Value, out: ir.Value
) -> ir.Model:
    """trips, start and `inputs` -> what `carried` is after the last iteration; `out` is what it becomes in one."""
    assert carried.shape is not None
    trips, start = value("trips", ir.DataType.INT64, []), value("start", ir.DataType.FLOAT, list(carried.shape))
    condition = value("condition", ir.DataType.BOOL, [])
    always = body.op("Constant", [], value=ir.tensor(True))
    for made, like in ((always, condition), (out, carried)):
        made.type, made.shape = like.type, like.shape
    graph = ir.Graph([index, condition, carried], [always, out], nodes=body.take(), name="body")
    loop = ir.Node("", "Loop", [trips, None, start], [ir.AttrGraph("body", graph)], num_outputs=1, name=LOOP_NAME)
    result = loop.outputs[0]
    result.name, result.type, result.shape = "result", carried.type, carried.shape
    main = ir.Graph([trips, start, *inputs], [result], nodes=[loop], opset_imports={"": 21}, name="main")
    return ir.Model(main, ir_version=10)
